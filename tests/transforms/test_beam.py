from __future__ import annotations

import copy
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DebugOptions, StandardOptions
from apache_beam.transforms import core

from ciml.errors import IntegrityError
from ciml.transforms import beam as beam_module
from ciml.transforms.beam import run_here
from ciml.transforms.guard import keep_error

RESULTS: list[str] = []


def keep(text: str, end: str = "!") -> None:
    RESULTS.append(text + end)


class Labelled(beam.DoFn):
    def process(self, element: int, label: str, window: Any = beam.DoFn.WindowParam) -> Any:
        yield f"{label}{element} {type(window).__name__}"


class Multiplied(Labelled):
    def process(self, element: int, label: str, factor: int, window: Any = beam.DoFn.WindowParam) -> Any:
        yield from super().process(element * factor, label, window)


def test_a_pipeline_runs_here_with_the_parameters_of_each_stage():
    RESULTS.clear()

    def build(pipeline: beam.Pipeline) -> str:
        numbers = pipeline | beam.Create([1, 2], reshuffle=False)
        once = numbers | "once" >> beam.ParDo(Labelled(), "a")
        twice = numbers | "twice" >> beam.ParDo(Multiplied(), "b", 2)
        _ = (once, twice) | beam.Flatten() | beam.Map(keep)
        return "built"

    assert run_here(build) == "built"
    assert run_here(build) == "built"
    assert sorted(RESULTS) == [f"{text} GlobalWindow!" for text in ("a1", "a1", "a2", "a2", "b2", "b2", "b4", "b4")]


def test_parameters_are_those_that_beam_finds():
    for function in (Labelled().process, Labelled().process, Multiplied().process, Labelled.process, len):
        names, defaults = beam_module._inspect_once(function)
        assert (names, defaults) == core.get_function_args_defaults(function)
        names.append("changed")  # by a caller
        assert beam_module._inspect_once(function) == core.get_function_args_defaults(function)


def test_beam_is_as_before_when_a_pipeline_has_run():
    before = core.get_function_args_defaults
    during = run_here(lambda pipeline: core.get_function_args_defaults)
    assert (during, core.get_function_args_defaults) == (beam_module._inspect_once, before)


def test_a_set_option_holds_in_all_views_and_not_in_a_copy():
    options = beam_module._Options([])
    options.view_as(DebugOptions).experiments = ["a"]
    copied = copy.deepcopy(options)
    copied.view_as(DebugOptions).experiments.append("b")
    copied.view_as(StandardOptions).streaming = True
    assert options.view_as(DebugOptions).experiments == ["a"]
    assert not options.view_as(StandardOptions).streaming
    assert copied.view_as(StandardOptions).view_as(DebugOptions).experiments == ["a", "b"]
    assert copied.get_all_options(drop_default=True)["streaming"]
    assert options.view_as(DebugOptions) is options.view_as(DebugOptions)


def test_the_error_of_a_stage_is_raised_unchanged():
    def fail(element: int) -> None:
        with keep_error():
            raise IntegrityError(f"{element} is damaged")

    with pytest.raises(IntegrityError, match=r"^7 is damaged$"):
        run_here(lambda pipeline: pipeline | beam.Create([7]) | beam.Map(fail))
