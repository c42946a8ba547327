"""The picture of a run: inert, small, and its lines where the telemetry says."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from ciml.transforms.profiles import Profile
from ciml.verdicts.evidence.observe import Subject
from ciml.verdicts.evidence.picture import draw
from tests.transforms.profiles.tables import START_US, STEAL, USED, USR, table_of
from tests.verdicts.evidence.subjects import AVAILABLE, GB, IDLE, LOAD, WRITTEN, run_of, subject_of

SVG = "{http://www.w3.org/2000/svg}"
#: All that a picture may be made of: nothing runs, loads or leads elsewhere.
INERT = {
    "svg": {"viewBox", "width", "height", "font-family", "font-size", "role"},
    "title": set(),
    "rect": {"x", "y", "width", "height", "fill"},
    "path": {"d", "fill", "stroke", "stroke-width", "stroke-dasharray"},
    "text": {"x", "y", "text-anchor", "fill"},
}
MAX_BYTES = 20_000


def parsed(svg: str) -> ElementTree.Element:
    root = ElementTree.fromstring(svg)
    for each in root.iter():
        assert each.tag.startswith(SVG)
        allowed = INERT[each.tag.removeprefix(SVG)]
        assert set(each.attrib) <= allowed
        for name, value in each.attrib.items():
            assert re.fullmatch(r"[A-Za-z0-9 .#-]*", value), (name, value)
            assert "nan" not in value.lower()
    assert len(svg.encode()) < MAX_BYTES
    return root


def texts(svg: str) -> list[str]:
    return [each.text or "" for each in parsed(svg).iter(f"{SVG}text")]


def test_the_asked_series_come_first_and_names_are_those_of_people() -> None:
    found = texts(draw(run_of({STEAL: [40.0] * 60}), [STEAL, "procs:run"]))
    assert found[:3] == ["this run", "20 passing runs, 5 to 95 %", "outside"]
    assert [text for text in found if text in ("Steal", "Number of runnable processes", "User CPU", "Load")] == [
        "Steal", "Number of runnable processes", "User CPU",
    ]  # fmt: skip
    assert found[-3:] == ["0", "64 s", "passing runs end"]
    assert "0 %" in found


def test_the_line_is_where_the_values_are() -> None:
    svg = draw(run_of({STEAL: [0.0] * 20 + [50.0] * 40}, usual=60), [STEAL])
    line = next(each for each in parsed(svg).iter(f"{SVG}path") if each.get("stroke-width") == "1.8")
    points = [[float(part) for part in re.split("[ H]", step)] for step in re.split("[ML]", line.get("d", ""))[1:]]
    heights = [height for _, height, _ in points]
    assert len(points) == 12
    assert len(set(heights[:4])) == len(set(heights[4:])) == 1
    # 50 % is the upper end of the scale, 70 units above 0 %.
    assert heights[0] - heights[4] == pytest.approx(70, abs=1)
    starts = [start for start, _, _ in points]
    assert starts == sorted(starts)
    assert (starts[0], [step for _, _, step in points[:-1]]) == (70, starts[1:])  # without a gap from the left end
    dashed = next(each for each in parsed(svg).iter(f"{SVG}path") if each.get("stroke-dasharray"))
    assert dashed.get("d", "").startswith(f"M{points[-1][2]:.0f} ")
    marked = [each for each in parsed(svg).iter(f"{SVG}rect") if each.get("fill") == "#f5c6bc"][1:]
    assert [float(each.get("x", 0)) for each in marked] == [pytest.approx(points[4][0], abs=1)]


def test_runs_of_any_length_and_with_hostile_values_are_drawn_and_stay_small() -> None:
    for length in (1, 2, 100, 179, 180, 5000):
        parsed(draw(subject_of(length)))
    random = np.random.default_rng(0)
    rows, names = 400_000, [STEAL, USR, LOAD]
    values = {name: (random.gamma(1, 10.0, rows) * (random.random(rows) > 0.1)).tolist() for name in names}
    largest = draw(run_of(values, usual=60), names)
    assert len(largest) > 5000
    parsed(largest)
    years = [START_US + at * 80 * 365 * 864 * 10**6 for at in range(100)]
    wild = [math.inf, -math.inf, math.nan, None, 1e18, -1e18, 1e300, -5.0, 0.0, 1e-300] * 10
    parsed(draw(run_of(dict.fromkeys((USR, STEAL, USED, WRITTEN), wild), times=years), [STEAL, USED, WRITTEN]))
    parsed(draw(run_of(dict.fromkeys((USR, STEAL, IDLE, AVAILABLE), wild)), [STEAL, IDLE, AVAILABLE]))


def test_names_from_outside_are_not_drawn() -> None:
    hostile = '"/><script>alert(1)</script>:x'
    table = table_of({hostile: [1.0] * 60, USR: [1.0] * 60})
    profile = Profile(hostile, 9, (50.0, 60.0, 70.0), {USR: (0.0, 1.0, 2.0)}, {USR: (0.0, 1.0, 2.0)})
    found = texts(draw(Subject(table, profile), [hostile]))
    assert not any("script" in text for text in found)
    assert "User CPU" in found


def test_without_known_series_there_is_no_picture_and_without_runs_no_band() -> None:
    none = Profile("", 0, (0.0, 0.0, 0.0), {})
    assert draw(Subject(table_of({"a:b": [1.0] * 60}), none)) == ""
    assert draw(Subject(table_of({USR: [None] * 60}), none)) == ""
    alone = draw(Subject(table_of({USED: [2 * GB] * 60}), none))
    assert texts(alone)[0] == "this run"
    assert not any("passing" in text for text in texts(alone))
    assert "#cfe3f5" not in alone
