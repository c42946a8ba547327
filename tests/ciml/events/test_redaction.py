"""Dead letters hold no secret in any encoding; a payload without secrets is kept byte for byte."""

from __future__ import annotations

import base64
import gc
import json
import random
import re
import string
from collections.abc import Callable
from typing import Any

import pytest

from ciml.errors import RejectedInput
from ciml.events.cloudevents import FINISHED, Event, decode_message
from ciml.events.fields import parse_json
from ciml.events.payloads import message_of, payload_of, redact_bytes, redact_header
from ciml.events.records import Message
from ciml.events.redaction import REDACTED, is_secret_name, redact_text, redact_url
from tests.growth import assert_linear

S = "hUnter2zq"  # the secret
RUN: dict[str, Any] = {"id": "r", "job": "j", "result": "SUCCESS", "end_time": 1795521600}


def event(**run: Any) -> bytes:
    data = {**RUN, **run}
    return json.dumps({"specversion": "1.0", "id": "e", "source": "zuul", "type": FINISHED, "data": data}).encode()


def kept(message: Message) -> str:
    """Return the content of a message's dead letter, decoded."""
    payload = payload_of(message)
    again = message_of(payload, 0)
    value = (again.value or b"").replace(b"\0", b"")  # of UTF-16
    encoded = re.findall(rb'data_base64": "([^"]*)"', value)
    return repr((value, again.headers, again.key, [base64.b64decode(each) for each in encoded])) + json.dumps(payload)


def escaped(text: str) -> str:
    """Return a text in JSON with all characters escaped."""
    return "".join(f"\\u{ord(character):04x}" for character in text)


JSON_VALUES = {
    "equals sign": f'"https://h/a?sig\\u003d{S}"',
    "slashes": f'"https:\\u002f\\u002fuser:{S}@h/a"',
    "slashes of JSON": f'"https:\\/\\/user:{S}@h\\/a"',
    "everything": f'"{escaped(f"https://h/a?token={S}")}"',
    "percent": f'"https://h/a?password%3D{S}"',
    "percent twice": f'"https://h/a?next=https%253A%252F%252Fh%253Ftoken%253D{S}"',
    "too many encodings": f'"token%{"25" * 20}3D{S}"',
    "index": f'"https://h/a?user[password]={S}"',
    "slash in a password": f'"https://user:{S}/x{S}@h/a"',
    "at sign in a password": f'"https://user:x@{S}@h/a"',
    "question mark in a password": f'"https://user:x?{S}@h/a"',
    "quote in a password": f'"https://user:x\\"{S}@h/a"',
    "token for a user": f'"https://{S}@h/a"',
    "semicolon": f'"https://h/a?a=1;code={S}"',
    "parameter": f'"https://h/a?key={S}&a=1&session_id={S}"',
    "fragment": f'"see h/a#code={S}"',
    "spaces around a sign": f'"token        =        {S}"',
    "html": f'"https://h/a?a=1&amp;sig&#61;{S}"',
    "html without letters": f'"https&colon;&sol;&sol;user&colon;{S}&commat;h; &quot;token&quot;&colon; {S}"',
    "azure": f'"https://h/a?SharedAccessSignature={S}"',
    "colon": f'"the password: {S}"',
    "bearer": f'"Authorization: Bearer {S}"',
    "JSON in a text": json.dumps(json.dumps({"secret": S})),
    "JSON in JSON in a text": json.dumps(json.dumps(json.dumps({"x": {"api_key": S}}))),
    "container in JSON in a text": json.dumps(json.dumps({"credentials": {"user": S}})),
    "field": f'{{"accessToken": "{S}"}}',
    "field of another kind": f'{{"X-Api-Key": ["{S}"]}}',
    "container": f'{{"credentials": {{"user": "{S}", "list": [["{S}"]]}}}}',
    "escaped field": f'{{"{escaped("password")}": "{S}"}}',
    "name and value": f'{{"value": "{S}", "name": "DB_PASSWORD"}}',
    "key and value": f'{{"key": "secret", "value": {{"text": "{S}"}}}}',
    "arguments": f'["--token", "{S}"]',
    "in a key": f'{{"https://h?sig={S}": 1}}',
    "base64": json.dumps({"data_base64": base64.b64encode(f'{{"token": "{S}"}}'.encode()).decode()}),
    "shape": '"ghp_hUnter2zqhUnter2zqhUnter2zq"',
}
#: Changes that make a payload undecodable.
SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "whole": lambda value: value,
    "cut": lambda value: value[:-1],
    "cut in front": lambda value: value[1:],
    "a key twice": lambda value: b'{"a": 1, "a": 2, "b": ' + value + b"}",
    "not UTF-8": lambda value: b"\xff" + value,
    "deep": lambda value: b"[" * 200 + value + b"]" * 200,
    "too deep": lambda value: b"[" * 5000 + value,
    "in UTF-16": lambda value: value.decode().encode("utf-16"),
}


@pytest.mark.parametrize("spoil", SPOILED)
@pytest.mark.parametrize("name", JSON_VALUES)
def test_no_secret_is_in_a_payload(name: str, spoil: str) -> None:
    value = SPOILED[spoil](b'{"id": "r", "more": ' + JSON_VALUES[name].encode() + b', "z": 1}')
    message = Message(0, value)
    assert S not in kept(message)
    again = message_of(payload_of(message), 0)
    assert payload_of(again) == payload_of(message)


@pytest.mark.parametrize(
    "text",
    [
        f"log_url=https://u:{S}@h/&password={S}&job=x",
        f"password%3D{S}",
        f"token[]={S}",
        f"X-Api-Key: {S}\r\nHost: h",
        f"Cookie: a={S}; b={S}",
        f"password = '{S} {S}'",
        f"-----BEGIN RSA PRIVATE KEY-----\n{S}",
        f"//user:{S}@h",
    ],
)
def test_no_secret_is_in_a_payload_that_is_no_json(text: str) -> None:
    assert S not in kept(Message(0, text.encode(), key=text.encode()))


@pytest.mark.parametrize(
    "name", "x-api-key token Authorization X-Hub-Signature-256 cookie X-Gitlab-Token ce_token CE_secret".split()
)
def test_headers_that_ciml_does_not_read_are_left_out(name: str) -> None:
    headers = ((name, S.encode()), ("ce_source", f"//u:{S}@zuul".encode()), (f"ce_{S}?token={S}", None))
    assert S not in kept(Message(0, b"{", headers[:2]))
    assert f"={S}" not in kept(Message(0, b"{", headers))
    assert ("ce_source", b"//zuul") in message_of(payload_of(Message(0, b"{", headers)), 0).headers


def outcome(message: Message) -> tuple[Event | None, str]:
    """Return the outcome of a message, and the stored text."""
    try:
        event = decode_message(message)
    except RejectedInput as rejected:
        return None, repr(rejected)
    return event, repr(event)


@pytest.mark.parametrize("name", [name for name in JSON_VALUES if JSON_VALUES[name][0] == '"'])
def test_no_secret_is_in_run_facts_or_a_detail(name: str) -> None:
    text = json.loads(JSON_VALUES[name])
    fields = "project branch result review id job start_time log_url labels attempt outcome".split()
    for field in fields:
        value = {"web": text, "password": S} if field == "labels" else text
        message = Message(0, event(**{"log_url": text, field: value}))
        decoded, stored = outcome(message)
        assert S not in stored, field
        if decoded and name not in ("quote in a password", "html"):  # the address ends elsewhere
            again, _ = outcome(message_of(payload_of(message), 0))
            assert again
            assert (again.run_facts, again.key) == (decoded.run_facts, decoded.key), field
    for attribute in ("type", "source", "id", "time", "specversion"):
        envelope = json.loads(event())
        envelope[attribute] = text
        assert S not in outcome(Message(0, json.dumps(envelope).encode()))[1], attribute


@pytest.mark.parametrize("address", ["https://h/a", "https://h/a?b=1", "//h/a", "s3://logs/a b", "https://me@h/a"])
def test_an_address_is_shown_without_its_fragment(address: str) -> None:
    assert redact_url(f"{address}#part") == redact_url(address) == address.replace("me@", "")


SECRET_NAMES = """
    password PASSWORD dbPassword2 mytoken tokens X-Amz-Security-Token client_secret AWSAccessKeyId x-goog-signature sig
    s%69g auth private_key apiKey token[0]
""".split()
OTHER_NAMES = "tokenizer author authority key design job log_url passed sigma code monkey".split()


def test_secret_names() -> None:
    assert [name for name in SECRET_NAMES + OTHER_NAMES if is_secret_name(name)] == SECRET_NAMES


#: Texts that are repeated.
REPEATED = """
    //a: //a@ @ a. token token=a& token=" token:{ %25 \\u005c &# ghp_eyJaaaaaaaa. aB3 /aB3dE5gH1jK2mN4pQ6r
    hooks.slack.com/services/
""".split()
SHAPES: dict[str, Callable[[int], str]] = {
    **{text: lambda n, text=text: text * n for text in REPEATED},  # type: ignore[misc]
    "users and a space": lambda n: "//a:" * n + " @",
    "slashes": lambda n: "/" * n + "@",
    "spaces": lambda n: " " * n + "@ " * n,
    "no end of a value": lambda n: '"token":"' + "\\" * n,
    "percent": lambda n: "%25" * n + "=",
    "percent upon percent": lambda n: "%" + "25" * n + "3D",
    "backslashes": lambda n: "\\" * n + "=",
    "entities": lambda n: "&#" * n + "&#9999999;" * n,
    "bearers": lambda n: "bearer " * n,
    "keys": lambda n: "-----BEGIN PRIVATE " * n,
    "options": lambda n: "--password " * n,
    "an option": lambda n: "--password" + " " * n,
    "quoted options": lambda n: '--token "' * n,
    "random words": lambda n: "x_aB3dE5gH1jK2 " * n,
    "prefixes": lambda n: "a_" * n + "aB3dE5gH1jK2mN4pQ6r",
    "hexadecimal keys": lambda n: "key-" * n + "0" * n,
    "json keys": lambda n: "{" + ",".join(f'"token{i}":"a"' for i in range(n)) + "}",
    "json texts": lambda n: json.dumps([f"//u:{i}@h?sig=1" for i in range(n)]),
    "base64 upon base64": lambda n: json.dumps({"data_base64": base64.b64encode(b'{"data_base64":' * n).decode()}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_redaction_is_linear(shape: str) -> None:
    def redact(value: bytes) -> None:
        is_secret_name.cache_clear()
        payload_of.cache_clear()
        payload_of(Message(0, value))

    gc.disable()  # a collection takes time for all objects of the process
    try:
        assert_linear(lambda n: SHAPES[shape](n).encode(), redact, 1000)
    finally:
        gc.enable()


@pytest.mark.parametrize("address", ["https://user:c4n4ry/c4n4ry@h/a", "https://h/a?token=c4n4ry"])
def test_an_id_that_holds_a_secret_is_replaced(address: str) -> None:
    """Without the secret it could be the id of another run, and a replay would settle that run."""
    for key in ("id", "build_uuid"):
        kept = json.loads(redact_bytes(json.dumps({"data": {key: address, "job": "j"}}).encode()))
        assert kept == {"data": {key: REDACTED, "job": "j"}}
    assert redact_header("ce_id", address.encode()) == ("ce_id", REDACTED.encode())
    assert redact_header("ce_id", b"e1") == ("ce_id", b"e1")


def test_the_proof_of_a_sender_is_kept_and_another_value_of_its_header_is_not() -> None:
    assert redact_header("ciml_auth", b"hmac-sha256") == ("ciml_auth", b"hmac-sha256")
    for value in (b"pa55 w0rd", b"\xe4"):
        assert redact_header("ciml_auth", value) == ("ciml_auth", REDACTED.encode())


def test_what_is_between_two_secrets_stays() -> None:
    assert redact_text("a token=1 b token=2 c") == f"a token={REDACTED} b token={REDACTED} c"


@pytest.mark.parametrize("constant", ["Infinity", "-Infinity", "NaN"])
def test_a_payload_that_is_no_json_stays_so(constant: str) -> None:
    data = f'{{"id": "e1", "token": {{"a": {constant}, "b": 12345}}}}'.encode()
    kept = redact_bytes(data)
    assert b"12345" not in kept
    with pytest.raises(RejectedInput, match="broken_json"):
        parse_json(kept)


def test_a_payload_that_is_not_utf8_stays_so() -> None:
    """Else a replay would accept a message that was rejected."""
    data = b'{"job": "unit\xef", "log_url": "https://user:pa55@logs.example/a.gz"}'
    shown = redact_bytes(data)
    assert b"pa55" not in shown
    assert b"unit\xef" in shown
    with pytest.raises(UnicodeDecodeError):
        shown.decode()
    assert redact_bytes(b'{"job": "\\ud800\xef", "token": "pa55"}').find(b"pa55") < 0


#: Tokens as the documents of their issuers describe them: ``{w36}`` stands for 36 random characters of `_ALPHABETS`.
TOKENS = """
    ghp_{w36} gho_{w36} ghs_{w36} ghr_{w36} github_pat_{w22}_{w59} glpat-{u20} glcbt-64_{u20} gldt-{u20} glrt-{u20}
    glagent-{u50} glft-{u20} glptt-{x40} glimt-{u25} glsoat-{u20} GR1348941{u20} npm_{w36} pypi-AgEIcHlwaS5vcmc{u80}
    hf_{l34} ya29.{u120} 1//0{u60} AIza{u35} xapp-1-A{A10}-{d13}-{x64} xoxb-{d12}-{d12}-{w24} xoxe-1-{w146}
    xoxp-{d12}-{d12}-{d12}-{x32} https://hooks.slack.com/services/T{A8}/B{A10}/{w24} AKIA{A16} ASIA{A16} sk_live_{w24}
    sk_live_{w99} rk_live_{w99} SG.{w22}.{w43} sk-proj-{u120} sk-{w20}T3BlbkFJ{w20} sk-ant-api03-{u93}AA
    dckr_pat_{w27} dop_v1_{x64} doo_v1_{x64} shpat_{x32} EAAC{w120} hvs.{u90} {w14}.atlasv1.{u64} glsa_{w32}_{x8}
    glc_eyJ{w60} lin_api_{w40} ntn_{w46} r8_{w37} gsk_{w52} xai-{w80} pplx-{w48} tskey-auth-{w12}-{w32} ATATT3x{w180}
    key-{x32} NRAK-{A27} dp.pt.{w43} sntrys_eyJ{w80} sntryu_{x64} pscale_tkn_{w43} fm2_{w80} nvapi-{u64}
    eyJ{w40}.eyJ{w80}.{w43} cloudinary://{d15}:{w27}@cloud CFPAT-{u43} AKCp{w69} dt0c01.{A24}.{A64}
    AGE-SECRET-KEY-1{A58} HRKU-{u60} ops_eyJ{w250} vcp_{w56} cflt{w60} AccountKey={w86}== rubygems_{x48} squ_{x40}
    sbp_{x40} pul-{x40} dapi{x32} PMAK-{x24}-{x34} {d9}:AA{u33} sq0atp-{u22} pat{w14}.{x64} {x32}-us12 SK{x32}
    v1.0-{x24}-{x146} bkua_{x40} CCIPAT_{w22}_{x40} sdk-{x8}-{x4}-{x4}-{x4}-{x12} figd_{u40}
""".split()
#: Secrets that only their names give away.
NAMED = """
user=me&pass={w12}
https://h/login?ticket={w20}
otp={d6}
X-Otp: {d6}
psk={w12}
SAMLResponse={w60}
saml-response={w60}
https://h/a?hdnts=exp=1~acl=/*~hmac={x64}
curl --password {w12} https://h
run --api-key "{w6} {w6}" x
openssl -pass {w12} -in x
mysql --db-pass {w12}
DB_PASS={w12}
client_assertion={w60}
""".strip().splitlines()
_ALPHABETS = {
    "w": string.ascii_letters + string.digits,
    "u": string.ascii_letters + string.digits + "-_",
    "l": string.ascii_letters,
    "x": "0123456789abcdef",
    "A": string.ascii_uppercase + string.digits,
    "d": string.digits,
}
#: Tokens of letters and digits are found with this share at least: a few look like names by chance.
_FOUND = 0.9


def token(template: str, source: random.Random) -> tuple[str, list[str]]:
    """Return a text with random values, and these values."""
    values: list[str] = []

    def value(field: re.Match[str]) -> str:
        values.append("".join(source.choices(_ALPHABETS[field[1]], k=int(field[2]))))
        return values[-1]

    return re.sub(r"{(\w)(\d+)}", value, template), values


@pytest.mark.parametrize("around", ["{}", "cloning with {} failed", '{{"message": "used {}."}}', "https://h/a?x={}"])
def test_tokens_of_many_issuers_are_found(around: str) -> None:
    for template in (*TOKENS, "-----BEGIN OPENSSH PRIVATE KEY-----\n{w64}"):
        source = random.Random(f"{template} {around}")
        found = 0
        for _ in range(20):
            text, values = token(template, source)
            shown = redact_bytes(around.format(text).encode()).decode()
            found += not any(value in shown for value in values if len(value) >= 8)
        assert found >= 20 * _FOUND, template


@pytest.mark.parametrize("template", NAMED)
def test_secrets_are_found_by_their_names(template: str) -> None:
    source = random.Random(template)
    for _ in range(20):
        text, values = token(template, source)
        assert not any(value in redact_text(text) for value in values)


@pytest.mark.parametrize(
    "text",
    [
        "8e5a1a0f5b8c4d6e9f0a1b2c3d4e5f60718293a4",  # a commit
        "sha256:0b31b1c02ff458ad9b7b81cbdf8f028bd54699fa151f221d1e8de6817db93427",
        "pkg:oci/myapp@sha256%3A0b31b1c02ff458ad9b7b81cbdf8f028bd54699fa151f221d1e8de6817db93427",
        "sha512-9Kqv0Zb2TnYc1xX4e7R3sD8hJ5mW6pL0aQ2uV1fB3gC4iE7kN9oS==",
        "registry.example.org/app-0b31b1c02ff458ad9b7b81cbdf8f028bd54699fa",
        "Ifc7af9f849cbfb677ef6f1adcf05956292d4f571",  # a change of Gerrit
        "Zf8b3d7cd34f54cb396b488226589db8f",  # a reference of Zuul
        "PR_kwDOABCDEc5aBcDeFgH",  # a node of GitHub
        "f81d4fae-7dec-11d0-a765-00a0c91e6bf6",
        "zuul~8f0e1c2d3b4a59687766554433221100~1",
        "jenkins-Nightly/Build2026-42",
        "release-2026-11-28-ReleaseCandidate20261128-x86-64",
        "openstack-tox-py311-ubuntu-jammy-arm64-2xlarge",
        "kubernetes-e2e-gce-cos-k8sbeta-default",
        "pod-7d9f8b6c5-x2x4z, CamelCaseTestClassName2",
        "org.example.IntegrationTestHTTP2ServerUpgrade",
        "https://ci.example/artifacts/u72ug1Ib1ZBCtek798Hy/dstat.csv.gz",
        "TaskRunResultLargerThanAllowedLimit",
        "reason-PodCreationFailedOnNode2AfterRetry, test_HTTPSConnectionPoolTimesOut",
        "com.example.MyUnitTestForTheNewIOLayerIn2Steps",
        "pass: 12, fail: 3; tests passed",
        "ticket: PROJ-123",
        "make -j4 --keep-going --output-sync=target all",
        "20261128T211601Z-000000000000000042",
        "npm_config_user_agent, hf_transfer_download_everything, pypi-publish-to-the-test-index",
        "s.split_the_line_into_words, dp.create.configuration, sdk-0b31b1c02ff458ad9b7b81cbdf8f028bd54699fa",
        "https://logs.example.org/5e/dstat-csv_log.txt.gz",
        "https://h:8080/a@b/c.gz",
        "https://auth:8080/token/key/a.gz",
        "https://auth.example.org:8443/a.gz?job=1&page=2",
        "s3://bucket/job=auth-test/tokenizer=bpe/a b.gz",
        "https://h/%D0%BF%20x/a%3Fb",
        "file:///srv/logs/me@host/1.gz",
        "file://c:/logs/1.gz",
        "http://[::1]:80/x@y",
        "git@github.com:owner/name",
        "100% of a = b, 12:30; mailto:me@example.org",
        r"C:\Users\nobody\u0041",
    ],
)
def test_addresses_names_digests_and_ids_stay(text: str) -> None:
    assert redact_url(text) == redact_text(text) == text
    value = b' {"id" :"r",  "tokens": 4096, "author": "me", "x": 1.50,"text":' + json.dumps(text).encode() + b"}\n"
    headers = (("content-type", b"application/json"), ("ce_id", b"1"), ("ce_source", b"/zuul"))
    message = Message(0, value, headers, b"zuul~r~1", 12)
    assert message_of(payload_of(message), 0) == message


def test_counts_of_passed_tests_stay_and_passwords_do_not() -> None:
    assert redact_bytes(b'{"pass": 12}') == b'{"pass": 12}'
    assert json.loads(redact_bytes(b'{"pass": "hunter2", "otp": 123456}')) == {"pass": REDACTED, "otp": REDACTED}


@pytest.mark.parametrize("identifier", ["msg_p5jXN8AQM9LWM0D4loKWxJek", "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567"])
def test_a_random_identifier_is_accepted_as_before(identifier: str) -> None:
    """Runs that an older version stored have such ids: later events must find them."""
    decoded = decode_message(Message(0, event(id=identifier)))
    assert [facts.run_id for facts in decoded.run_facts] == [f"zuul~{identifier}~1"]
    value = json.dumps({"data": {"id": identifier, "job": "j"}}).encode()
    assert redact_bytes(value) == value
    assert redact_header("webhook-id", identifier.encode()) == ("webhook-id", identifier.encode())
