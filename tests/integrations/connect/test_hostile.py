"""Options that were copied from elsewhere change no other file, key or command than they should."""

from __future__ import annotations

import os
import shlex
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import CimlError
from ciml.integrations.config import load_receivers
from ciml.integrations.connect import (
    GerritOptions,
    GithubOptions,
    GitlabOptions,
    JenkinsOptions,
    SystemOptions,
    TektonOptions,
    ZuulOptions,
)
from ciml.integrations.connect_files import FETCH, RECEIVERS, TRUST, table, write
from tests.integrations.connect.connecting import ALL, URL

LOGS = ("https://logs.example.org",)
BROKER = "mqtts://mqtt.example.org"
SSH = "ssh://ciml@review.example.org"
#: What a text for another program would have to quote, within an address or a name.
BAD = [
    "\n", "\t", " ", "'", '"', "`", "$(id)", ";", "#", "{", "}", "\\", "|", "&", "<", "*", "\x7f", "\x1b[2J", "\udcff",
    "é",
]  # fmt: skip
OPTIONS: dict[str, tuple[Callable[[str], SystemOptions], str]] = {
    "--url": (lambda text: GithubOptions(url=text), "https://ci.example.org/a@b"),
    "--api": (lambda text: GithubOptions(url=URL, api=text), "https://git.example.org/api@"),
    "--server": (lambda text: GitlabOptions(url=URL, server=text), "https://gitlab@.example.org"),
    "--broker": (lambda text: ZuulOptions(broker=text, logs=LOGS), "mqtts://mqtt@.example.org"),
    "--user": (lambda text: ZuulOptions(broker=BROKER, logs=LOGS, user=text), "ci@ml"),
    "--prefix": (lambda text: ZuulOptions(broker=BROKER, logs=LOGS, prefix=text), "zu@ul"),
    "--pipeline": (lambda text: ZuulOptions(broker=BROKER, logs=LOGS, pipelines=(text,)), "ch@eck"),
    "--ssh": (lambda text: GerritOptions(ssh=text), "ssh://ciml@review.example.org"),
    "--rest": (lambda text: GerritOptions(ssh=SSH, rest=text), "https://review.example.org/@"),
    "--logs": (lambda text: TektonOptions(url=URL, logs=text), "s3://cilogs/@"),
    "--logs of Zuul": (lambda text: ZuulOptions(broker=BROKER, logs=(text,)), "https://logs@.example.org"),
    "--server of Jenkins": (lambda text: JenkinsOptions(url=URL, server=text), "https://ci@.example.org"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_with_a_special_character_is_one_error(option: str) -> None:
    system_of, form = OPTIONS[option]
    system_of(form if option == "--ssh" else form.replace("@", "")).connection()
    for bad in BAD:
        with pytest.raises(CimlError) as caught:
            system_of(form.replace("@", f"{bad}@" if option == "--ssh" else bad)).connection()
        assert str(caught.value).startswith(option.partition(" ")[0])
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--ssh", "ssh://ciml@-oProxyCommand=id"),
        ("--ssh", "ssh://-oProxyCommand=id@review.example.org"),
        ("--ssh", "ssh://ciml:password@review.example.org"),
        ("--ssh", "ssh://ciml@review.example.org:99999"),
        ("--user", "-b"),
        ("--prefix", "#"),
        ("--broker", "mqtts://[::1"),
        ("--broker", "mqtts://mqtt.example.org:x"),
        ("--api", "https://user@git.example.org/api/v3"),
        ("--api", "https://git.example.org:99999"),
        ("--server", "https://[gitlab"),
        ("--url", "https://user:secret@ci.example.org"),
        ("--logs of Zuul", "https://[logs"),
        ("--logs", "s3://"),
    ],
)
def test_a_malformed_address_is_one_error(option: str, value: str) -> None:
    with pytest.raises(CimlError) as caught:
        OPTIONS[option][0](value).connection()
    assert str(caught.value).startswith(option.partition(" ")[0])


def test_a_path_is_one_word_of_a_command() -> None:
    key = "/home/a b/$(id)/it's"
    made = GerritOptions(ssh=SSH, key_file=key).connection()
    (shell,) = (paste.text for paste in made.pastes if paste.form == "shell")
    assert f"{key}.pub" in shlex.split(shell)


@pytest.mark.parametrize("text", ['a"b\\c', "a\nb = 1\n[x]", "\x00\x1b\x7f", "é\u2028", "]]", "'''"])
def test_any_text_is_one_value_of_toml(tmp_path: Path, text: str) -> None:
    made = JenkinsOptions(url=URL, server="https://jenkins.example.org", client=text).connection()
    write(tmp_path, made)
    (source,) = load_receivers(tmp_path / RECEIVERS).sources
    assert source.clients == (text,)  # type: ignore[attr-defined]
    before = (tmp_path / RECEIVERS).read_bytes()
    write(tmp_path, made)
    assert (tmp_path / RECEIVERS).read_bytes() == before


def test_half_a_character_is_one_error(tmp_path: Path) -> None:
    jenkins = JenkinsOptions(url=URL, server="https://jenkins.example.org", client="CN=\udcff")
    with pytest.raises(CimlError, match=r"clients: .* cannot be written; use another name"):
        write(tmp_path, jenkins.connection())
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CimlError):
        table("[x]", {"key": "\ud800"})


@pytest.mark.parametrize("name", [RECEIVERS, FETCH, TRUST, "secrets", "secrets/github"])
@pytest.mark.parametrize("dangling", [True, False])
def test_nothing_is_written_through_a_symlink(tmp_path: Path, name: str, dangling: bool) -> None:
    folder, other = tmp_path / "folder", tmp_path / "other"
    (folder / name).parent.mkdir(parents=True)
    if not dangling:
        other.mkdir() if name == "secrets" else other.write_text("")
    (folder / name).symlink_to(other)
    with pytest.raises(CimlError, match="is a symlink to"):
        write(folder, ALL["github"])
    assert other.exists() is not dangling
    assert not other.is_file() or other.read_text() == ""
    assert [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()] == []


def test_a_folder_of_secrets_is_of_its_owner(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets").chmod(0o777)
    with pytest.raises(CimlError, match="secrets: others may write to the folder of secrets; chmod go-w it"):
        write(tmp_path, ALL["github"])
    (tmp_path / "secrets").chmod(0o755)
    write(tmp_path, ALL["github"])
    assert stat.S_IMODE((tmp_path / "secrets" / "github").stat().st_mode) == 0o600


def test_a_secret_that_others_may_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir(0o700)
    (tmp_path / "secrets" / "github").write_text("a secret of the operator")
    (tmp_path / "secrets" / "github").chmod(0o644)
    secret = write(tmp_path, ALL["github"])[0]
    assert (secret.change, secret.todo) == ("unchanged", "others may read this secret (mode 0644): chmod 600")
    assert (tmp_path / "secrets" / "github").read_text() == "a secret of the operator"


def test_two_commands_at_once_make_one_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see no secret; the second one must not replace that of the first, which may be in use."""
    both, found = threading.Barrier(2), list[Any]()
    link = os.link

    def later(source: str, path: Path) -> None:
        both.wait(10)
        link(source, path)
        found.append(path.read_bytes())

    monkeypatch.setattr(os, "link", later)
    threads = [threading.Thread(target=write, args=(tmp_path, ALL["github"])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(tmp_path / "secrets" / "github").read_bytes()]
    assert [path.name for path in (tmp_path / "secrets").iterdir()] == ["github"]
