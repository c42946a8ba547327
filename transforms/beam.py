"""Runs a bounded pipeline in this process, with errors as its stages raised them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms import core

from ciml.transforms.guard import kept_error

#: Loggers of Beam that report the failure of a worker.
_NOISY = (
    "apache_beam.runners.common",
    "apache_beam.runners.portability.fn_api_runner.worker_handlers",
    "apache_beam.runners.worker.data_plane",
    "apache_beam.runners.worker.sdk_worker",
)
#: The parameters of methods. Beam inspects all methods of a DoFn a dozen times, which takes a third of the time of a
#: small pipeline.
_parameters: WeakKeyDictionary[FunctionType, tuple[list[str], list[Any]]] = WeakKeyDictionary()
_inspect: Callable[[Any], tuple[list[str], list[Any]]] = core.get_function_args_defaults

T = TypeVar("T")


def run_here(build: Callable[[beam.Pipeline], T]) -> T:
    """Run a bounded pipeline in this process to its end.

    Args:
      build: wires the pipeline.

    Returns:
      The result of ``build``.

    Raises:
      CimlError: the error of a stage.
    """
    kept_error(clear=True)
    keep_workers_quiet()
    with _replaced():
        pipeline = beam.Pipeline(runner=FnApiRunner(), options=_Options([]))  # the default may be another runner
        result = build(pipeline)
        try:
            pipeline.run().wait_until_finish()
        except Exception as error:  # noqa: BLE001  # Beam turns a stage's error into a RuntimeError
            raise kept_error() or error from None
    return result


class _Options(PipelineOptions):
    """Options that keep their views. Beam asks for several at each step of a pipeline, and parses flags for each."""

    def view_as(self, cls: type[PipelineOptions]) -> PipelineOptions:
        views = self.__dict__.setdefault("views", {})  # an attribute would have to be an option
        if cls not in views:
            views[cls] = super().view_as(cls)
        view: PipelineOptions = views[cls]
        return view


def _inspect_once(function: Any) -> tuple[list[str], list[Any]]:
    """Return the names of a function's parameters, and their defaults."""
    code = getattr(function, "__func__", None)
    if code is None:
        return _inspect(function)
    if code not in _parameters:
        _parameters[code] = _inspect(function)
    names, defaults = _parameters[code]
    return list(names), list(defaults)


@contextmanager
def _replaced() -> Iterator[None]:
    """Let Beam inspect each method once, and hide a notebook from it.

    There, Beam imports its interactive environment, only to write numbers of cells into labels; with pandas 3 the
    import fails.
    """
    replacements: dict[tuple[Any, str], Callable[..., Any]] = {
        (core, "get_function_args_defaults"): _inspect_once,
        (beam.pipeline, "alter_label_if_ipython"): lambda transform, value: None,
        (beam.pipeline, "is_in_ipython"): lambda: False,
    }
    originals = {place: getattr(*place) for place in replacements}
    try:
        for (module, name), replacement in replacements.items():
            setattr(module, name, replacement)
        yield
    finally:
        for (module, name), original in originals.items():
            setattr(module, name, original)


def keep_workers_quiet() -> None:
    """Suppress Beam's logs and prints of a worker's failure that is raised here as well."""
    from apache_beam.runners.worker import sdk_worker

    def print_other(*words: object, **options: Any) -> None:
        if kept_error() is None and "Channel closed prematurely" not in str(words[:1]):
            print(*words, **options)

    sdk_worker.print = print_other
    for name in _NOISY:
        logger = logging.getLogger(name)
        if _no_kept_error not in logger.filters:
            logger.addFilter(_no_kept_error)


def _no_kept_error(record: logging.LogRecord) -> bool:
    return kept_error() is None
