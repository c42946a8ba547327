"""Hostile outputs in one real backfill: each affects its own run alone, memory is bounded, and no secret is stored."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from ciml.data_root import DataRoot
from ciml.events.redaction import redact_text
from ciml.limits import MAX_OUTPUT_UNPACKED_BYTES, MIB
from ciml.runs.latest_runs import latest_runs
from ciml.runs.outputs import OUTPUTS, decompressed, read_output
from ciml.runs.state import open_raw
from ciml.runs.verify import verify_raw
from tests.ciml.events.test_redaction import NAMED, TOKENS, token
from tests.corpus import CORPUS, builds

#: Peak resident memory of the backfill. It is 106 MiB with two small outputs alone.
MAX_RSS = 448 * MIB
_GOOD = b"collecting\n1 failed in 3.2s\n"
_MARKUP = (
    "<script>alert(1)</script><img src=x onerror=y> [x](javascript:y) @all #1 {{7*7}} ${jndi:ldap://h} %n%s `id`\n"
    "\x1b]8;;https://h\x07link\x1b]8;;\x07 \x1b[2J\x1b[31mred\x1b[0m \u202eevil\u2028line \0 \ufeff \x85 \x9b31m\n"
    "##[error]x\n::error file=a::b\n"
) * 50


class Shape(NamedTuple):
    """A text with a secret, and the random parts of it."""

    text: str
    values: list[str]


def shapes() -> list[Shape]:
    """Secrets of more than sixty shapes, of one line each."""
    made = [Shape(*token(template, random.Random(template))) for template in (*TOKENS, *NAMED) if template]
    return [shape for shape in made if "\n" not in shape.text and min(map(len, shape.values), default=0) >= 12]


#: Where a secret may stand. Each returns what a job prints.
PLACES: dict[str, Callable[[str], str]] = {
    "alone": str,
    "in a sentence": "cloning with {} failed".format,
    "as JSON": lambda text: json.dumps({"message": f"used {text}."}),
    "in an address": "GET https://example.org/a?x={} 403".format,
    "in quotes": "export TOKEN_OF_X='{}'".format,
    "in colours": "\x1b[31m{}\x1b[0m".format,
    "under a progress bar": "{}\r 10 %\r 100 %".format,
    "over a progress bar": " 10 %\r{}".format,
    "after a time": "2026-11-24T14:39:48.1234567Z {}".format,
    "after a worker": "[gw3] {}".format,
    "before CRLF": "{}\r".format,
    "far in a line": lambda text: f"{'word ' * 900}{text} end",
    "behind the cut of templates": lambda text: f"{'x' * 4_080} {text} end",
    "at the cut of lines": lambda text: f"{'word ' * 13_105} {text} {'word ' * 100}",
    "behind the cut of lines": lambda text: f"{'word ' * 14_000} {text}",
    "before a bad byte": "{} \ufffd".format,
}


def lines_with_secrets(share: int) -> tuple[list[str], list[str], int]:
    """Each shape at each place; the secrets that may not be stored; and the number of pairs that are not recognised.

    At the places in long lines, only one shape in ``share`` stands, because these lines are 66 KB each.
    """
    lines = []
    secrets = []
    missed = 0
    for place in PLACES.values():
        for number, shape in enumerate(shapes()):
            line = place(shape.text)
            if len(line) > 50_000 and number % share:
                continue
            shown = redact_text(re.sub(r"\x1b\[\d*m", "", line.rstrip("\r").rpartition("\r")[2]))
            if any(value in shown for value in shape.values):
                missed += 1
                continue
            lines.append(line)
            secrets += shape.values
    return lines, sorted(set(secrets)), missed


def write_gzip(path: Path, pieces: Iterable[bytes], layers: int = 1) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for piece in pieces:
            file.write(piece)
    for _ in range(layers - 1):
        path.write_bytes(gzip.compress(path.read_bytes()))


def repeated(text: bytes, size: int) -> Iterator[bytes]:
    """Yield a text again and again, at least ``size`` bytes in all."""
    piece = text * (MIB // len(text) + 1)
    for _ in range(size // len(piece) + 1):
        yield piece


def many_lines(lines: list[str], size: int) -> Iterator[bytes]:
    """Yield the lines with secrets again and again, between lines that differ, until they have a size."""
    numbers = random.Random(0)
    while size > 0:
        filler = "".join(f"step {numbers.random()} of {numbers.random()}\n" for _ in range(2_000))
        numbers.shuffle(lines)
        piece = ("\n".join(lines) + "\n" + filler).encode()
        size -= len(piece)
        yield piece


def hostile_outputs(folder: Path, lines: list[str], scale: int) -> dict[str, str]:
    """Write outputs; return the reason for which each is not stored, "" for one that is.

    Args:
      folder: of the outputs.
      lines: with secrets.
      scale: 1, or more for larger ones.
    """
    big = 64 * MIB * scale
    text = "\n".join(lines).encode()
    (folder / "secrets").write_bytes(text)
    write_gzip(folder / "secrets-packed", [text], layers=2)
    write_gzip(folder / "many-lines", many_lines(list(lines), 18 * MIB * (scale - 1) + 1))
    write_gzip(folder / "secret-in-long-line", [*repeated(b"word ", 3 * MIB), text.replace(b"\n", b" ")])
    write_gzip(folder / "long-line", [b"start ", *repeated(b"x", big), b" end\nlast line"])
    write_gzip(folder / "long-lines-of-words", repeated(b"a word and a number 17 ", big // 4))
    write_gzip(folder / "empty-lines", repeated(b"\n", MIB * scale // 2))
    write_gzip(folder / "carriage-returns", repeated(b"50 %\r", 4 * MIB * scale))
    write_gzip(folder / "escapes", repeated(b"\x1b[31m\x1b[0m\x1b]8;;", 2 * MIB * scale))
    with (folder / "sparse").open("wb") as file:
        file.write(b"start\n")
        file.truncate(min(big, 900 * MIB))
    (folder / "zstd-bomb").write_bytes(pa.Codec("zstd").compress(bytes(64 * MIB * scale), asbytes=True))
    (folder / "random").write_bytes(random.Random(0).randbytes(MIB))
    (folder / "markup").write_text(_MARKUP)
    (folder / "empty").touch()
    write_gzip(folder / "cut", [text])
    os.truncate(folder / "cut", 900)
    write_gzip(folder / "layers", [text], layers=5)
    (folder / "folder").mkdir()
    rejected = {
        "cut": "corrupt_gzip",
        "layers": "corrupt_gzip",
        "folder": "address_not_allowed",
        "absent": "log_not_found",
    }
    if scale > 1:
        with (folder / "too-large").open("wb") as file:
            file.truncate(1100 * MIB)
        write_gzip(folder / "bomb", repeated(bytes(1000), MAX_OUTPUT_UNPACKED_BYTES + MIB), layers=2)
        rejected |= {"too-large": "log_too_large", "bomb": "log_too_large"}
    return {path.name: "" for path in folder.iterdir()} | rejected


#: Runs a command, and writes its peak memory, KiB, to a file. Linux counts the memory of the process that starts a
#: command as the command's, so this small process stands between it and the tests.
_MEASURE = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
open(sys.argv[1], "w").write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def backfill(folder: Path, names: Iterable[str]) -> int:
    """Load a run for each output, and two good ones, by the real command; return its peak memory, bytes."""
    build = builds(1)[0]
    shutil.copy(CORPUS / build["log_path"], folder / "log.gz")
    (folder / "outputs" / "good-first").write_bytes(_GOOD)
    (folder / "outputs" / "good-last").write_bytes(_GOOD)
    keys = ("build_name", "result", "start_time", "end_time")
    (folder / "builds.jsonl").write_text(
        "".join(
            json.dumps(
                {key: build[key] for key in keys}
                | {"build_uuid": name, "log_path": "log.gz", "output_path": f"outputs/{name}"}
            )
            + "\n"
            for name in ("good-first", *names, "good-last")
        )
    )
    words = ["backfill", "builds.jsonl", "--logs", ".", "--data-path", "data"]
    with (folder / "printed").open("wb") as printed:
        command = [sys.executable, "-c", _MEASURE, str(folder / "peak"), sys.executable, "-m", "ciml", *words]
        code = subprocess.run(command, cwd=folder, stdout=printed, stderr=subprocess.STDOUT).returncode
    assert code == 0, (folder / "printed").read_text()
    return int((folder / "peak").read_text()) << 10


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield all that the backfill has written and printed, unpacked."""
    yield "printed", (folder / "printed").read_bytes()
    for path in (folder / "data").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            name = str(path.relative_to(folder / "data"))
            is_packed = name.startswith(f"raw/{OUTPUTS}/") and name.endswith(".zst")
            yield name, b"".join(decompressed(data, name)) if is_packed else data


def secrets_in(content: bytes, secrets: list[str]) -> list[str]:
    """Return the secrets in a content. All are looked up by their first 8 bytes in one pass."""
    prefixes = np.unique(np.array([int.from_bytes(secret.encode()[:8], "little") for secret in secrets], np.uint64))
    seen: set[int] = set()
    for start in range(0, len(content), 16 * MIB):
        piece = content[start : start + 16 * MIB + 8]
        for offset in range(min(8, len(piece))):
            words = np.frombuffer(piece, "<u8", (len(piece) - offset) // 8, offset)
            places = np.searchsorted(prefixes, words).clip(max=len(prefixes) - 1)
            seen |= set(words[prefixes[places] == words].tolist())
    return [
        secret
        for secret in secrets
        if int.from_bytes(secret.encode()[:8], "little") in seen and secret.encode() in content
    ]


def check(tmp_path: Path, scale: int) -> int:
    """Load hostile outputs, and check all that is stored; return the peak memory of the command, bytes."""
    lines, secrets, missed = lines_with_secrets(8 if scale == 1 else 1)
    assert len(shapes()) > 60
    assert len(lines) > 900
    assert missed == 0  # by `redact_text`
    (tmp_path / "outputs").mkdir()
    expected = hostile_outputs(tmp_path / "outputs", lines, scale)
    peak = backfill(tmp_path, expected)
    print(f"\npeak resident memory of ciml backfill: {peak / MIB:,.0f} MiB")
    raw = DataRoot.open(tmp_path / "data").raw
    stored = {run.facts.build_uuid: run for run in latest_runs(*open_raw(raw))}
    assert stored.keys() == {*expected, "good-first", "good-last"}
    outputs = {name: run.output for name, run in stored.items()}
    assert {name: output.missing for name, output in outputs.items() if output} == expected | {
        "good-first": "", "good-last": ""
    }  # fmt: skip
    for name in ("good-first", "good-last"):
        kept = read_output(raw, outputs[name])
        assert not isinstance(kept, str)
        assert kept.data == _GOOD
    assert verify_raw(raw).findings == []
    for name, content in contents(tmp_path):
        assert secrets_in(content, secrets) == [], name
    assert secrets_in(f"{'x' * 99}{secrets[0]}".encode(), secrets) == secrets[:1]
    dropped = outputs["many-lines"]
    assert dropped is not None
    assert (dropped.dropped_lines > 1000) == (scale > 1)  # of more than 256 MiB
    return peak


def test_hostile_outputs_affect_their_own_run_alone(tmp_path: Path) -> None:
    assert check(tmp_path, 1) < MAX_RSS


@pytest.mark.interop
@pytest.mark.timeout(3600)
def test_lines_of_gigabytes_and_bombs(tmp_path: Path) -> None:
    assert check(tmp_path, 24) < MAX_RSS
