"""What an earlier job can leave in the spool: trees of folders, files, links and FIFOs, with any content."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.recorder.planted import T0_US, TELEMETRY, planted_facts

#: In a file outside of the spool that no recording may bring in.
MARK = b"1795600001.5,77777,77777,77777\n"
NOBODY = 65534
NAMES = ("dstat-csv_log.txt", "run.json", "end.json", "starts", "seal.json", "lock")

#: Makes something in a folder; the first argument is the test's folder.
Make = Callable[[Path, Path], None]

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
_TIMES = st.sampled_from([T0_US, T0_US + 4_000_000]) | st.integers(-(2**70), 2**70)


@st.composite
def changed(draw: st.DrawFn, content: dict[str, Any]) -> dict[str, Any]:
    """An object with some of its values replaced by any other."""
    for name in draw(st.lists(st.sampled_from(sorted(content)), max_size=2)):
        content = {**content, name: draw(JSON)}
    return content


@st.composite
def plans(draw: st.DrawFn, places: st.SearchStrategy[dict[str, str]]) -> bytes:
    """A ``run.json``: mostly one that can be read."""
    run = (
        draw(changed(planted_facts(draw(st.sampled_from(["1", "a/b", "x" * 90])))))
        if draw(st.booleans())
        else planted_facts()
    )
    if draw(st.integers(0, 3)) == 3:
        run = {**run, "run_id": draw(st.text(max_size=30) | st.just("../../x")), "start_us": draw(_TIMES)}
    content = {"mention": run, "kafka": "", "samples_topic": "samples", "events_topic": "ci-events", "log_dir": "",
               "log_url": "", **draw(places)}  # fmt: skip
    if draw(st.integers(0, 3)) == 3:
        content = draw(changed(content))
    return json.dumps(content).encode(errors="surrogatepass")


@st.composite
def contents(draw: st.DrawFn, name: str, places: st.SearchStrategy[dict[str, str]]) -> bytes:
    """The content of a file of a recording: mostly as it should be."""
    if draw(st.integers(0, 5)) == 5:
        return draw(st.binary(max_size=60) | JSON.map(lambda each: json.dumps(each).encode()) | st.just(b"[" * 5000))
    if name == "run.json":
        return draw(plans(places))
    if name == "end.json":
        end = {"end_us": draw(_TIMES), "result": draw(st.sampled_from(["SUCCESS", "FAILURE", "?"])), "labels": {}}
        return json.dumps(draw(changed(end))).encode()
    if name == "starts":
        starts = [
            {"offset": draw(st.integers(-1, 200)), "recorder_us": draw(_TIMES)} for _ in range(draw(st.integers(0, 3)))
        ]
        return b"".join(json.dumps(each).encode() + b"\n" for each in starts)
    if name == "dstat-csv_log.txt":
        rows = draw(st.lists(st.sampled_from(TELEMETRY.splitlines(keepends=True)) | st.binary(max_size=40), max_size=6))
        return TELEMETRY + b"".join(rows)
    return b""


@st.composite
def entries(draw: st.DrawFn, name: str, content: bytes) -> Make:
    """Makes a file of odd properties, or something else in its place."""
    kind = draw(st.sampled_from(["file", "hard link", "link", "none", "dangling", "itself", "folder", "fifo"]))
    mode = draw(st.sampled_from([0o600, 0o000, 0o666]))
    owner = draw(st.sampled_from([None, None, NOBODY])) if os.geteuid() == 0 else None

    def make(base: Path, folder: Path) -> None:
        path = folder / name
        if kind == "file":
            path.write_bytes(content)
            path.chmod(mode)
        elif kind == "link":
            path.symlink_to(base / "outside")
        elif kind == "hard link":
            path.hardlink_to(base / "outside")
        elif kind == "dangling":
            path.symlink_to(base / "nowhere")
        elif kind == "itself":
            path.symlink_to(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        if owner is not None and kind != "hard link" and kind != "none":
            os.chown(path, owner, owner, follow_symlinks=False)

    return make


@st.composite
def recordings(draw: st.DrawFn, places: st.SearchStrategy[dict[str, str]]) -> list[Make]:
    """The files of a folder that looks like a recording."""
    odd = draw(st.lists(st.sampled_from(NAMES), max_size=2))
    if draw(st.integers(0, 9)) == 9:
        odd.append(draw(st.sampled_from(["more", ".hidden", "run.new"])))
    made: list[Make] = []
    for name in dict.fromkeys((*NAMES, *odd)):
        content = draw(contents(name, places))
        made.append(draw(entries(name, content)) if name in odd else partial(write, name, content))
    return made


def write(name: str, content: bytes, base: Path, folder: Path) -> None:
    """Makes a plain file."""
    (folder / name).write_bytes(content)


@st.composite
def spools(draw: st.DrawFn, places: st.SearchStrategy[dict[str, str]]) -> Make:
    """Fills a spool."""
    made: list[tuple[str, Make | list[Make]]] = []
    for number in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from([f"{T0_US + number}-1"] * 4 + [f"junk{number}", f"{number}-"]))
        if any(name == other for other, _ in made):
            continue
        if draw(st.integers(0, 5)) == 5:
            made.append((name, draw(entries(name, b"a file"))))
        else:
            made.append((name, draw(recordings(places))))

    def fill(base: Path, spool: Path) -> None:
        for name, what in made:
            if callable(what):
                what(base, spool)
                continue
            (spool / name).mkdir(mode=0o700)
            for make in what:
                make(base, spool / name)

    return fill
