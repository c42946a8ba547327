"""Secrets of sources: read, rotated, checked, and never shown."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from ciml.errors import CimlError
from ciml.integrations.secrets import Key, NamedSettings, Secrets
from ciml.limits import MAX_SECRET_BYTES

LONG = "0123456789abcdef-secret"


def secrets_of(
    where: str, files: Sequence[str], variables: Sequence[str], key: Key = bytes, folder: Path = Path()
) -> Secrets:
    named = NamedSettings(name="a", secret_file=tuple(files), secret_env=tuple(variables))
    return Secrets(where, named, folder, key)


def write(path: Path, text: str, mode: int = 0o600) -> str:
    path.write_text(text)
    path.chmod(mode)
    return path.name


def test_secrets_are_read_from_files_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", LONG + "-env\n")  # as a file becomes a variable
    secrets = secrets_of("x.toml, source a", [write(tmp_path / "one", LONG + "\n")], ["HOOK"], folder=tmp_path)
    assert secrets.keys() == [LONG.encode(), f"{LONG}-env".encode()]
    assert secrets
    assert LONG not in repr(secrets)
    assert not secrets_of("x", [], [])


def test_a_changed_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secrets = secrets_of("x", [write(tmp_path / "one", LONG)], [], folder=tmp_path)
    write(tmp_path / "next", LONG + "-new")
    os.replace(tmp_path / "next", tmp_path / "one")  # as Kubernetes does
    assert secrets.keys() == [f"{LONG}-new".encode()]
    write(tmp_path / "one", "")
    assert secrets.keys() == secrets.keys() == [f"{LONG}-new".encode()]
    (tmp_path / "one").unlink()
    assert secrets.keys() == [f"{LONG}-new".encode()]
    write(tmp_path / "one", LONG + "-third")
    assert secrets.keys() == [f"{LONG}-third".encode()]
    assert [each.message.partition(": ")[2] for each in caplog.records] == [
        f"secret_file {tmp_path}/one was read again",
        f"secret_file {tmp_path}/one is empty; its last secret stays in use",
        f"secret_file {tmp_path}/one was read again",
    ]


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write(tmp_path / "one", LONG)

    def read_late(path: Path, _: str) -> io.BytesIO:
        monkeypatch.undo()
        content = path.read_bytes()
        write(path, LONG + "-new")
        return io.BytesIO(content)

    monkeypatch.setattr(Path, "open", read_late)
    secrets = secrets_of("x", [name], [], folder=tmp_path)
    assert secrets.keys() == [f"{LONG}-new".encode()]


def test_what_is_wrong_is_said_without_the_secret(tmp_path: Path) -> None:
    def refuse(secret: bytes) -> bytes:
        raise ValueError("want another form")

    files = [write(tmp_path / name, LONG) for name in ("one", "two", "three")]
    cases: list[tuple[list[str], list[str], Key, str]] = [
        (files, [], bytes, "3 secrets, at most 2 (MAX_SECRETS)"),
        (["none"], [], bytes, f"secret_file {tmp_path}/none: No such file or directory"),
        ([], ["NO_SUCH"], bytes, "secret_env: the environment variable NO_SUCH is not set"),
        ([write(tmp_path / "empty", "\n")], [], bytes, f"secret_file {tmp_path}/empty is empty"),
        ([write(tmp_path / "blank", " \t  \n\n")], [], bytes, f"secret_file {tmp_path}/blank is empty"),
        ([write(tmp_path / "long", "x" * (MAX_SECRET_BYTES + 1))], [], bytes,
         f"secret_file {tmp_path}/long has more than {MAX_SECRET_BYTES} bytes (MAX_SECRET_BYTES)"),
        ([write(tmp_path / "four", LONG)], [], refuse, f"secret_file {tmp_path}/four: want another form"),
    ]  # fmt: skip
    for files, variables, key, said in cases:
        with pytest.raises(CimlError) as caught:
            secrets_of("x, source a", files, variables, key, tmp_path)
        assert str(caught.value) == f"x, source a: {said}"


def test_an_open_file_and_a_short_secret_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    secrets_of("x", [write(tmp_path / "one", LONG)], [], folder=tmp_path)
    assert caplog.messages == []
    secrets_of("x", [write(tmp_path / "two", LONG, 0o640)], [], folder=tmp_path)
    secrets_of("x", [write(tmp_path / "three", "short")], [], folder=tmp_path)
    secrets_of("x", [write(tmp_path / "four", "whsec_AAAAAAAAAAAA==")], [], lambda secret: b"four", tmp_path)
    assert caplog.messages == [
        f"x: others may read secret_file {tmp_path}/two (mode 0640): chmod 600",
        f"x: secret_file {tmp_path}/three has less than 16 bytes; choose a longer secret",
        f"x: secret_file {tmp_path}/four has less than 16 bytes; choose a longer secret",
    ]
