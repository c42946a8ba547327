"""The files of a connection are valid, extended, and never overwritten."""

from __future__ import annotations

import stat
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from ciml.errors import CimlError
from ciml.events.records import RunFacts
from ciml.integrations import connect_files as written_files
from ciml.integrations.config import load_receivers
from ciml.integrations.connect import GithubOptions, ZuulOptions
from ciml.integrations.connect_files import FEEDBACK, FETCH, RECEIVERS, TRUST, with_items, without_blocks, write
from ciml.integrations.github.review import GitHubSystem
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.trust import TrustPolicy, evaluate
from ciml.verdicts.feedback.config import load_feedback
from tests.integrations.connect.connecting import ALL, URL


def snapshot(folder: Path) -> dict[str, bytes]:
    """All files, with their content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ALL)
def test_ciml_reads_what_is_written_and_the_same_command_changes_nothing(name: str, tmp_path: Path) -> None:
    connection = ALL[name]
    assert {one.change for one in write(tmp_path, connection)} == {"made"}
    (source,) = load_receivers(tmp_path / RECEIVERS).sources
    assert (source.receiver, source.name, source.adapter) == (
        connection.receiver, connection.name, connection.source["adapter"],
    )  # fmt: skip
    if connection.allowed:
        fetch = FetchPolicy.load(tmp_path / FETCH)
        assert {key: getattr(fetch, key) for key in connection.allowed} == dict(connection.allowed)
    sources = {glob for rule in TrustPolicy.load(tmp_path / TRUST).rules for fact, globs in rule.facts
               if fact == "source" for glob in globs}  # fmt: skip
    assert sources == {"backfill", connection.name}
    before = snapshot(tmp_path)
    assert {one.change for one in write(tmp_path, connection)} == {"unchanged"}
    assert snapshot(tmp_path) == before


def test_all_systems_share_the_files(tmp_path: Path) -> None:
    for name in ("github", "zuul", "gerrit", "gitlab", "tekton", "jenkins"):
        write(tmp_path, ALL[name])
    receivers = load_receivers(tmp_path / RECEIVERS)
    assert [(one.receiver, one.name) for one in receivers.sources] == [
        ("webhooks", "github"), ("mqtt", "zuul"), ("gerrit", "zuul"), ("webhooks", "gitlab"), ("webhooks", "tekton"),
        ("webhooks", "jenkins"),
    ]  # fmt: skip
    assert receivers.webhooks.proxies == ("127.0.0.1",)
    fetch = FetchPolicy.load(tmp_path / FETCH)
    assert set(fetch.hosts) == {"api.github.com", "logs.example.org", "gitlab.example.org", "jenkins.example.org"}
    assert [one.host for one in fetch.credentials] == ["api.github.com", "gitlab.example.org"]
    policy = TrustPolicy.load(tmp_path / TRUST)
    assert [rule.name for rule in policy.rules if rule.name.startswith("listing")] == ["listing"]
    gate = RunFacts("zuul~a~1", "a", "job", source="zuul", pipeline="gate", auth="mqtt-user", branch="main")
    assert evaluate(policy, gate).rule == "gated"
    merged = RunFacts(
        "zuul~a~1", "a", "job", source="zuul", pipeline="check", auth="mqtt-user", review="merged", branch="main"
    )
    assert evaluate(policy, merged).rule == "reviewed (zuul)"
    assert not evaluate(policy, merged.replace(source="gitlab")).trusted


WITH_FEEDBACK = [name for name, one in ALL.items() if one.feedback]


def test_feedback_is_a_dry_run_of_all_systems_until_an_operator_says_otherwise(tmp_path: Path) -> None:
    for name in WITH_FEEDBACK:
        write(tmp_path, ALL[name])
    found = load_feedback(tmp_path / FEEDBACK)
    assert found.policy.dry_run
    assert [(one.kind, one.name, one.sources) for one in found.systems] == [
        ("github", "github", ("github",)), ("github", "ghes", ("ghes",)), ("gitlab", "gitlab", ("gitlab",)),
        ("gerrit", "zuul", ("zuul",)),
    ]  # fmt: skip
    app = found.systems[1]
    assert isinstance(app, GitHubSystem)
    assert (app.api, app.app) == ("https://git.example.org/api/v3", 12345)
    assert {each.path for name in WITH_FEEDBACK for each in ALL[name].needed} >= {
        file for one in found.systems for file in one.secret_file
    }


@pytest.mark.parametrize("name", WITH_FEEDBACK)
def test_feedback_is_added_to_an_own_configuration(name: str, tmp_path: Path) -> None:
    (tmp_path / FEEDBACK).write_text('# ours\ndry_run = false\nmute_word = "quiet please"\n')
    write(tmp_path, ALL[name])
    found = load_feedback(tmp_path / FEEDBACK)
    assert (found.policy.dry_run, found.policy.mute_word, len(found.systems)) == (False, "quiet please", 1)
    assert (tmp_path / FEEDBACK).read_text().startswith("# ours\n")


def test_another_review_system_of_the_name_needs_force(tmp_path: Path) -> None:
    write(tmp_path, ALL["github-feedback"])
    before = snapshot(tmp_path)
    other = GithubOptions(url=URL, feedback=True, app=7).connection()
    with pytest.raises(CimlError, match="system github is there with other values of app; give --force"):
        write(tmp_path, other)
    assert snapshot(tmp_path) == before
    write(tmp_path, other, force=True)
    (system,) = load_feedback(tmp_path / FEEDBACK).systems
    assert isinstance(system, GitHubSystem)
    assert system.app == 7


def test_a_connection_without_feedback_writes_none_and_leaves_it(tmp_path: Path) -> None:
    assert FEEDBACK not in {one.path.name for one in write(tmp_path, ALL["github"])}
    write(tmp_path, ALL["github-feedback"])
    before = snapshot(tmp_path)
    assert FEEDBACK not in {one.path.name for one in write(tmp_path, ALL["github"])}
    assert snapshot(tmp_path) == before


def test_comments_and_own_rules_stay(tmp_path: Path) -> None:
    (tmp_path / FETCH).write_text('# ours\nhosts = [  # all of them\n  "a.example.org"]\nthreads = 4\n')
    (tmp_path / TRUST).write_text('[[rule]]\nname = "ours"\ntrusted = false\nsource = ["github"]  # not yet\n')
    write(tmp_path, ALL["github"])
    fetch = FetchPolicy.load(tmp_path / FETCH)
    assert (set(fetch.hosts), fetch.threads) == ({"a.example.org", "api.github.com"}, 4)
    assert "# all of them" in (tmp_path / FETCH).read_text()
    assert [rule.name for rule in TrustPolicy.load(tmp_path / TRUST).rules] == ["ours"]  # it has a rule for the source
    (tmp_path / TRUST).write_text('[[rule]]\nname = "ours"\ntrusted = false\nsource = "github-two"\n')
    write(tmp_path, ALL["github"])
    assert "reviewed" in {rule.name for rule in TrustPolicy.load(tmp_path / TRUST).rules}


@pytest.mark.parametrize(
    ("own", "globs"),
    [
        ('branch = ["main"]', 2),
        ('branch = ["main", "release/**"]', 2),
        ('branch = ["release/*"]', 1),
        ('branch = "stable-?"', 1),
        ('source = ["all"]', 1),
    ],
)
def test_rules_are_added_to_a_policy_whose_own_rules_keep_their_meaning(tmp_path: Path, own: str, globs: int) -> None:
    (tmp_path / TRUST).write_text(f'# ours\n[[rule]]\nname = "ours"\ntrusted = false\n{own}\n')
    write(tmp_path, ALL["github"])
    policy = TrustPolicy.load(tmp_path / TRUST)
    assert policy.globs == globs
    assert {"ours", "reviewed"} <= {rule.name for rule in policy.rules}
    written = (tmp_path / TRUST).read_text()
    write(tmp_path, ALL["github"])
    assert (tmp_path / TRUST).read_text() == written
    assert written.startswith("# ours\n")


def test_another_source_of_the_name_needs_force(tmp_path: Path) -> None:
    write(tmp_path, ALL["zuul"])
    write(tmp_path, ALL["gerrit"])
    other = ZuulOptions(broker="mqtts://other.example.org", logs=("https://logs.example.org",)).connection()
    before = snapshot(tmp_path)
    with pytest.raises(CimlError, match="source zuul is there with other values of broker; give --force"):
        write(tmp_path, other)
    assert snapshot(tmp_path) == before
    write(tmp_path, other, force=True)
    found = {(one.receiver, getattr(one, "broker", "")) for one in load_receivers(tmp_path / RECEIVERS).sources}
    assert found == {("gerrit", ""), ("mqtt", "mqtts://other.example.org")}


def test_a_secret_is_for_its_owner_alone_and_never_replaced(tmp_path: Path) -> None:
    write(tmp_path, ALL["github"])
    path = tmp_path / "secrets" / "github"
    secret = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(bytes.fromhex(secret)) == 32
    write(tmp_path, GithubOptions(url="https://new.example.org").connection(), force=True)
    assert path.read_text() == secret


def test_a_signing_token_is_one_of_standard_webhooks(tmp_path: Path) -> None:
    from ciml.integrations.webhooks.app import make_endpoints

    write(tmp_path, ALL["gitlab-signed"])
    assert (tmp_path / "secrets" / "gitlab").read_text().startswith("whsec_")
    assert list(make_endpoints(load_receivers(tmp_path / RECEIVERS))) == ["/hooks/gitlab"]


def test_proxies_of_an_existing_server_are_not_guessed(tmp_path: Path) -> None:
    (tmp_path / RECEIVERS).write_text('[webhooks]\nproxies = ["10.0.0.7"]\n')
    with pytest.raises(CimlError, match=r"\[webhooks\]: set proxies = \['127.0.0.1'\]"):
        write(tmp_path, ALL["tekton"])


HUB = '[[source]]\nreceiver = "webhooks"\nname = "Hub"\nadapter = "github"\n'


@pytest.mark.parametrize(
    ("file", "text", "name", "said"),
    [
        *((file, "broken = [", "github", f"{file} is not TOML") for file in (RECEIVERS, FETCH, TRUST, FEEDBACK)),
        (RECEIVERS, HUB, "github", f"{RECEIVERS}, source Hub: name"),
        (RECEIVERS, "", "Hub", "source Hub: name"),
    ],
)
def test_an_invalid_file_or_name_is_reported_and_nothing_is_written(
    file: str, text: str, name: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(CimlError, match=said):
        write(tmp_path, GithubOptions(name=name, url=URL, feedback=True).connection())
    assert snapshot(tmp_path) == {file: text.encode()}


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ALL["github"])
    before = snapshot(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(written_files.os, "replace", fail)
    with pytest.raises(CimlError, match=r"receivers.toml: No space left on device"):
        write(tmp_path, replace(ALL["gitlab"], secret=None))
    assert snapshot(tmp_path) == before


def test_items_go_into_a_list_or_make_it() -> None:
    assert with_items("", "hosts", ["a"], Path("f")) == 'hosts = ["a"]\n'
    assert with_items("# c\n\nx = 1\n[[credentials]]\n", "hosts", ["a"], Path("f")) == (
        '# c\n\nhosts = ["a"]\nx = 1\n[[credentials]]\n'
    )
    assert tomllib.loads(with_items("hosts = []\n", "hosts", ["a", "b"], Path("f"))) == {"hosts": ["a", "b"]}
    assert with_items('hosts = ["a"]\n', "hosts", ["a"], Path("f")) == 'hosts = ["a"]\n'
    with pytest.raises(CimlError, match='f: hosts: cannot be extended by ciml; add "b" by hand'):
        with_items('"hosts" = ["a"]\n', "hosts", ["b"], Path("f"))


def test_only_the_table_that_is_meant_goes() -> None:
    text = '[[source]]\nname = "a"\nreceiver = "x"\n\n[[source]]\nname = "a"\nreceiver = "y"\n[webhooks]\nport = 1\n'
    assert without_blocks(text, "[[source]]", {"name": "a", "receiver": "x"}) == text[text.index("\n\n") + 2 :]
