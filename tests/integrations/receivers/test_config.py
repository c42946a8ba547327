"""The configuration of receivers: its keys, and an error in one line for each mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ciml.errors import CimlError
from ciml.integrations.config import MqttSource, WebhookSource, load_receivers
from ciml.integrations.webhooks.app import make_endpoints
from ciml.integrations.webhooks.signatures import SCHEMES
from ciml.limits import MAX_DELIVERY_BYTES

pytestmark = pytest.mark.usefixtures("probe")

SOURCE = '[[source]]\nreceiver = "webhooks"\nname = "{}"\nadapter = "probe"\n'
GOOD = SOURCE.format("hub") + 'secret_file = "one"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two", "three"):
        (tmp_path / name).write_text(f"a long secret of file {name}")
        (tmp_path / name).chmod(0o600)
    return tmp_path


def load(folder: Path, text: str) -> dict[str, object]:
    file = folder / "receivers.toml"
    file.write_text(text)
    return dict(make_endpoints(load_receivers(file)))


def test_a_source_has_defaults(folder: Path) -> None:
    file = folder / "receivers.toml"
    file.write_text(GOOD)
    receivers = load_receivers(file)
    (source,) = receivers.of(WebhookSource)
    assert (source.posted_to, source.rate, source.burst, source.max_bytes) == (
        "/hooks/hub", 100.0, 1000, MAX_DELIVERY_BYTES
    )  # fmt: skip
    assert (receivers.webhooks.host, receivers.webhooks.port, receivers.webhooks.answer_s) == ("127.0.0.1", 8470, 8.0)
    (endpoint,) = make_endpoints(receivers).values()
    assert (endpoint.name, endpoint.source.auth, endpoint.scheme) == ("hub", "github", SCHEMES["github"])


def test_all_keys(folder: Path) -> None:
    (folder / "key").write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    text = """
[webhooks]
host = "::1"
port = 0
proxies = ["10.0.0.0/8", "::1"]
connections = 100
header_s = 5
body_s = 10.5
answer_s = 4

[[source]]
receiver = "webhooks"
name = "hub"
adapter = "probe"
path = "/a/b.c"
auth = "standard-webhooks"
secret_file = ["key"]
rate = 50
burst = 5
max_bytes = 1000

[[source]]
receiver = "webhooks"
name = "tekton"
adapter = "probe"
auth = "mtls"
client_header = "X-Client-Subject"
clients = "CN=tekton"

[[source]]
receiver = "webhooks"
name = "open"
adapter = "probe"
auth = "none"
"""
    assert list(load(folder, text)) == ["/a/b.c", "/hooks/tekton", "/hooks/open"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[source", "FILE is not TOML: "),
        ("", 'FILE: no [[source]] has receiver = "webhooks"; add one'),
        ("source = 3", "FILE: source: expected tables, [[source]]"),
        (GOOD + "\n[mqt]\nx = 1", "FILE: 'mqt': unknown key; choose from source, webhooks, gerrit"),
        ("[webhooks]\nports = 1\n" + GOOD, "FILE, [webhooks]: ports: unknown key"),
        ("[webhooks]\nport = 70000\n" + GOOD, "FILE, [webhooks]: port: 70000 is not between 0 and 65535"),
        ("[webhooks]\nanswer_s = nan\n" + GOOD, "FILE, [webhooks]: answer_s: nan is not between 0.1 and 600.0"),
        ('[webhooks]\nproxies = ["x"]\n' + GOOD, "FILE, [webhooks]: proxies: 'x' does not appear to be an IPv4"),
        ('[[source]]\nname = "hub"', "FILE, source hub: receiver: is missing; choose from webhooks, mqtt, gerrit"),
        ('[[source]]\nreceiver = "smtp"', "FILE, source 1: receiver: 'smtp' is unknown; choose from webhooks, mqtt, "),
        ('[[source]]\nreceiver = "webhooks"\nadapter = "probe"', "FILE, source 1: name: is missing"),
        (SOURCE.format("Hub"), "FILE, source Hub: name: 'Hub' is not a source name; use lower-case letters"),
        (GOOD.replace("probe", "prob"), "FILE, source hub: adapter: there is no adapter 'prob'; choose from "),
        (GOOD + "rates = 1", "FILE, source hub: rates: unknown key"),
        (GOOD + "rate = 0", "FILE, source hub: rate: 0.0 is not between 0.01 and 100000.0"),
        (GOOD + "max_bytes = 2000000", "FILE, source hub: max_bytes: 2000000 is not between 1 and 1015808"),
        (GOOD + 'path = "hooks"', "FILE, source hub: path: 'hooks' is not a path such as /hooks/hub"),
        (GOOD + 'path = "/{x}"', "FILE, source hub: path: '/{x}' is not a path such as /hooks/hub"),
        (GOOD + 'path = "/readyz"', "FILE, source hub: path: /readyz is in use already; choose another"),
        (GOOD + GOOD, "FILE: two sources of webhooks have the name hub; rename one"),
        (GOOD + GOOD.replace("hub", "two") + 'path = "/hooks/hub"', "FILE, source two: path: /hooks/hub is in use"),
        (SOURCE.format("hub"), "FILE, source hub: auth github needs secret_file or secret_env"),
        (GOOD + 'auth = "git"', "FILE, source hub: auth: 'git' is unknown; choose from github, gitlab-token, "),
        (GOOD + 'auth = "none"', "FILE, source hub: auth none has no use for secret_file and secret_env"),
        (GOOD + 'clients = "x"', "FILE, source hub: client_header and clients are of auth mtls, not github"),
        (SOURCE.format("hub") + 'auth = "mtls"', "FILE, source hub: auth mtls needs client_header, clients, "),
        (GOOD + 'auth = "standard-webhooks"', "FILE, source hub: secret_file FOLDER/one: want whsec_ and base64"),
        (GOOD.replace('"one"', '["one", "two", "three"]'), "FILE, source hub: 3 secrets, at most 2 (MAX_SECRETS)"),
        (GOOD * 101, "FILE: 101 sources, at most 100 (MAX_SOURCES)"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_its_place(folder: Path, text: str, said: str) -> None:
    with pytest.raises(CimlError) as caught:
        load(folder, text)
    message = str(caught.value)
    assert message.startswith(said.replace("FILE", str(folder / "receivers.toml")).replace("FOLDER", str(folder)))
    assert "\n" not in message
    assert not re.search("a long secret", message)


def test_every_adapter_names_a_scheme() -> None:
    from ciml.integrations.registry import adapters

    assert {one.signature for one in adapters().values()} <= {"", *SCHEMES}


MQTT = '[[source]]\nreceiver = "mqtt"\nname = "zuul"\nadapter = "zuul"\nbroker = "mqtts://mqtt.example.org"\n'
USER = 'user = "ciml"\nsecret_file = "one"\ntopics = "zuul/#"\n'


def load_mqtt(folder: Path, text: str) -> list[MqttSource]:
    file = folder / "receivers.toml"
    file.write_text(text)
    return load_receivers(file).of(MqttSource)


def test_a_source_of_mqtt_has_defaults(folder: Path) -> None:
    (source,) = load_mqtt(folder, MQTT + USER)
    assert source.address == ("mqtt.example.org", 8883, True)
    assert (source.topics, source.version, source.in_flight, source.retained) == (("zuul/#",), "5", 64, "ignore")
    assert MqttSource.from_json({**source.to_json(), "broker": "mqtt://[::1]:1"}).address == ("::1", 1, False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD, 'no [[source]] has receiver = "mqtt"; add one'),
        (MQTT, "source zuul: topics: is missing"),
        (MQTT + "topics = []", "source zuul: topics: [] are not topic filters such as zuul/#"),
        (MQTT + 'topics = ["a/#/b"]', "source zuul: topics: ['a/#/b'] are not topic filters such as zuul/#"),
        (MQTT + 'topics = ["a+/b"]', "source zuul: topics: ['a+/b'] are not topic filters such as zuul/#"),
        (MQTT.replace("mqtts", "http") + USER, "'http://mqtt.example.org' is not mqtts://HOST:8883 or mqtt://HOST:1883"),
        (MQTT.replace("mqtts://", "mqtts://me:pw@") + USER, "is not mqtts://HOST:8883 or mqtt://HOST:1883"),
        (MQTT.replace("org", "org:99999") + USER, "is not mqtts://HOST:8883 or mqtt://HOST:1883"),
        (MQTT.replace("mqtts", "mqtt") + USER + 'ca_file = "x"', "ca_file and certificate_file need a broker of mqtts"),
        (MQTT + USER + 'certificate_file = "x"', "source zuul: certificate_file and key_file go together"),
        (MQTT + 'topics = "a"\nuser = "ciml"', "source zuul: user: needs its password"),
        (MQTT + 'topics = "a"\nsecret_file = "one"', "source zuul: user: needs its password"),
        (MQTT + USER + 'version = "4"', "source zuul: version: '4' is unknown; choose from 5, 3.1.1"),
        (MQTT + USER + 'retained = "x"', "source zuul: retained: 'x' is unknown; choose from ignore, accept"),
        (MQTT + USER + "in_flight = 0", "source zuul: in_flight: 0 is not between 1 and 1024"),
        (MQTT + USER + "session_s = 1", "source zuul: session_s: 1 is not between 60 and "),
    ],
)  # fmt: skip
def test_a_mistake_of_a_source_of_mqtt_is_one_line(folder: Path, text: str, said: str) -> None:
    with pytest.raises(CimlError) as caught:
        load_mqtt(folder, text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
