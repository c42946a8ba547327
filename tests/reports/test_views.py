"""What is drawn of a data set, compared with numbers that were worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from ciml.errors import IntegrityError
from ciml.reports.dataset import views
from ciml.reports.dataset.read import _Selection, read_runs
from tests.reports.scenes import hostile_data, runs


def test_the_rarest_names_are_one_group_and_equals_go_by_name():
    groups = views.group_values(np.array(["b", "a", "c", "c", "", "d", "b"], object), limit=2)
    assert groups.names == ("b", "c", "3 others")
    assert groups.assigned.tolist() == [0, 2, 1, 1, 2, 2, 0]
    assert (groups.counts.tolist(), groups.named) == ([2, 2, 3], 2)
    groups = views.group_values(np.array(["b", "a", ""], object), limit=2)  # one too many is no group of its own
    assert (groups.names, groups.named) == (("a", "b", "unknown"), 3)


def test_classes_are_counted_by_split():
    scene = runs([[1]] * 5, [0, 0, 1, 0, 1], split=["train", "test", "train", "train", "dev"])
    assert views.count_by_split(scene, views.group_values(scene.class_name)).tolist() == [[2, 0, 1], [1, 1, 0]]


def test_lengths_are_shares_of_what_still_runs():
    scene = runs([[1, 1, 1, 1], [1, 1], [1], [1, 1]], [0, 0, 0, 1])
    times_s, share = views.running_shares(scene, views.group_values(scene.class_name))
    assert times_s.tolist() == [0, 10, 20, 30]
    assert share == pytest.approx(np.array([[1, 2 / 3, 1 / 3, 1 / 3], [1, 1, 0, 0]]))


def test_padding_is_no_part_of_a_course():
    scene = runs([[10, 30], [20, 50], [60], [1, 2, 3]], [0, 0, 0, 1])
    (course,) = views.compute_courses(scene, views.group_values(scene.class_name), [0])
    assert (course.feature, course.column, course.times_s.tolist()) == ("usr", "total cpu usage:usr", [0, 10, 20])
    assert course.runs.tolist() == [[3, 2, 0], [1, 1, 1]]
    # of three runs, two are too few for a mean; the class of one run has no more
    np.testing.assert_allclose(course.mean, [[30, np.nan, np.nan], [1, 2, 3]])
    np.testing.assert_allclose(course.low, [[15, np.nan, np.nan], [1, 2, 3]])
    np.testing.assert_allclose(course.high, [[40, np.nan, np.nan], [1, 2, 3]])


def test_long_courses_are_thinned_and_keep_their_times():
    scene = runs([np.arange(1000.0)] * 2, [0, 1])
    (course,) = views.compute_courses(scene, views.group_values(scene.class_name), [0])
    assert course.times_s[:3].tolist() == [0, 30, 60]
    assert course.mean[0].tolist() == list(range(0, 1000, 3))


def test_typical_runs_have_the_length_of_the_median():
    scene = runs([[1], [1, 1], [1, 1, 1], [1] * 9, [1]], [0, 0, 0, 0, 1])
    assert views.choose_typical_runs(scene, views.group_values(scene.class_name)) == [1, 2, 4]


def test_unrolled_examples_are_normalised_by_the_training_split():
    scene = runs([[10, 1], [30, 1], [50, 1]], [0, 1, 0], split=["train", "train", "test"])
    # window 0: mean 20, range 20; window 1: range 0 counts as 1
    np.testing.assert_allclose(views.unroll(scene, [0, 2]), [[-0.5, 0], [1.5, 0]])


def test_an_image_is_ordered_by_class_and_length():
    scene = runs([[1], [1, 1], [1, 1, 1], [1, 1]], [1, 0, 0, 1])
    found = views.make_image(scene, views.group_values(scene.class_name))
    assert (found.indices.tolist(), found.rows.tolist(), found.width) == ([3, 0, 2, 1], [2, 2], 3)
    np.testing.assert_array_equal(found.values, views.unroll(scene, found.indices))


def test_a_large_image_is_thinned_evenly_and_loses_no_class(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(views, "MOST_ROWS", 10)
    monkeypatch.setattr(views, "MOST_COLUMNS", 2)
    scene = runs([[1, 2, 3]] * 99 + [[4, 5, 6]], [0] * 99 + [1])
    found = views.make_image(scene, views.group_values(scene.class_name))
    assert found.rows.tolist() == [9, 1]
    assert found.indices.tolist() == [0, 12, 24, 37, 49, 61, 74, 86, 98, 99]
    # two columns of three windows: the mean of the first two, and the last
    assert found.width == 2
    np.testing.assert_allclose(found.values[-1], [0.99, 0.99], rtol=1e-6)


def test_days_without_runs_are_there_and_runs_without_a_day_are_not():
    scene = runs([[1]] * 4, [0, 0, 0, 1], day=["2026-02-27", "2026-03-01", "NaT", "2026-03-01"])
    found = views.make_calendar(scene, views.group_values(scene.class_name))
    assert found is not None
    assert [str(day) for day in found.starts] == ["2026-02-27", "2026-02-28", "2026-03-01"]
    assert (found.unit, found.counts.tolist(), found.undated) == ("day", [[1, 0, 1], [0, 0, 1]], 1)
    scene = runs([[1]] * 2, [0, 1], day=["NaT", "NaT"])
    assert views.make_calendar(scene, views.group_values(scene.class_name)) is None


@pytest.mark.parametrize(
    ("last", "unit", "starts", "counts"),
    [
        ("2026-06-01", "week", ["2026-02-23", "2026-03-02", "2026-06-01"], [2, 1, 1]),
        ("2028-01-31", "month", ["2026-03-01", "2026-04-01", "2028-01-01"], [3, 0, 1]),
    ],
)
def test_long_times_are_counted_by_week_then_by_month(last: str, unit: str, starts: list[str], counts: list[int]):
    # the 1st of March 2026 is a Sunday, the 2nd a Monday, the 1st of June too
    scene = runs([[1]] * 4, [0, 0, 0, 0], day=["2026-03-01", "2026-03-01", "2026-03-02", last])
    found = views.make_calendar(scene, views.group_values(scene.class_name))
    assert found is not None
    days = [str(day) for day in found.starts]
    assert (found.unit, [days[0], days[1], days[-1]]) == (unit, starts)
    assert [int(found.counts[0, days.index(start)]) for start in starts] == counts
    assert found.counts.sum() == 4


def test_what_is_read_is_what_the_data_set_holds(tmp_path):
    data = hostile_data(tmp_path)
    reports: list[tuple[object, ...]] = []
    whole = read_runs(
        data.dataset("bad"), fact_names=["build_name", "who"], progress=lambda *report: reports.append(report)
    )
    assert reports[-1][1] == reports[-1][2] == len(reports) - 1  # all files are reported as read
    assert (len(whole), whole.inputs.shape) == (24, (24, 5, 2))
    names = [whole.facts["build_name"], whole.facts["who"], whole.build_name, whole.class_name]
    assert {tuple(each.tolist()) for each in names} == {tuple(whole.class_name.tolist())}
    assert sorted(whole.n_windows.tolist()) == sorted([2, 3, 4, 5] * 6)
    train = whole.inputs[whole.split == "train"].astype(np.float64)
    np.testing.assert_allclose(whole.normalisation.mean, train.mean(axis=0))
    np.testing.assert_allclose(whole.normalisation.width, np.ptp(train, axis=0))
    number = int(whole.run_id[3].split("~")[1])
    assert str(whole.day[3]) == str(np.datetime64("1970-01-01") + number)
    assert whole.inputs[3, 0].tolist() == [10.0 * (number % 6), number]

    part = read_runs(data.dataset("bad"), max_values=10 * 7, seed=5)
    assert (len(part), len(part.sampled), part.inputs.shape) == (24, 7, (7, 5, 2))
    np.testing.assert_array_equal(part.inputs, whole.inputs[part.sampled])
    np.testing.assert_allclose(part.normalisation.mean, whole.normalisation.mean)
    assert read_runs(data.dataset("bad"), max_values=70, seed=5).sampled.tolist() == part.sampled.tolist()
    test = read_runs(data.dataset("bad"), splits=["test"])
    assert set(test.split) == {"test"}
    np.testing.assert_allclose(test.normalisation.mean, whole.normalisation.mean)


def test_only_the_runs_that_are_wanted_are_read(tmp_path):
    data = hostile_data(tmp_path)
    whole = read_runs(data.dataset("bad"))
    some = read_runs(data.dataset("bad"), class_name="_hidden", min_windows=4)
    rows = [row for row in range(24) if whole.class_name[row] == "_hidden" and whole.n_windows[row] >= 4]
    assert rows
    assert some.run_id.tolist() == whole.run_id[rows].tolist()
    np.testing.assert_array_equal(some.inputs, whole.inputs[rows])
    np.testing.assert_allclose(some.normalisation.mean, whole.normalisation.mean)


def test_files_that_differ_from_the_manifest_are_an_error(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_Selection, "count", lambda selection, state: 25)
    with pytest.raises(IntegrityError, match="its files hold 24 matching examples, its manifest 25"):
        read_runs(hostile_data(tmp_path).dataset("bad"))
