"""Writes docs/api.md, the reference of the Python API, from its docstrings. The introduction stays as it is.

python -m tests.project.api_reference
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ciml

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
#: In the order of the page: functions, then classes with their methods.
NAMES = """
    open parse_log Data Dataset Model Client Prediction CandidateNotice Verdict RunVerdict Evidence OutputEvidence
    TrainingResult CrossValidation RefreshResult Figure LoadReport FailedRuns
    DatasetDefinition DatasetKeys ExperimentKeys Progress CimlError
    NotFoundError NoDataError UnknownDatasetError UnknownModelError UnknownRunError UnknownExperimentError
    UnknownExclusionError UnknownEstimatorError NoTrainingDataError InvalidSettingError MissingExtraError
    UnusableRunError EngineError IntegrityError
""".split()
_SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Example):")


def documented() -> Iterator[tuple[str, Any]]:
    """Yield (full name, function, class, method or property) in the order of the page."""
    for name in NAMES:
        value = getattr(ciml, name)
        yield f"ciml.{name}", value
        if inspect.isclass(value):
            yield from ((f"ciml.{name}.{own}", member) for own, member in _members(value))
    yield "ciml.sklearn.Downsample", ciml.sklearn.Downsample
    yield from ((f"ciml.sklearn.Downsample.{own}", member) for own, member in _members(ciml.sklearn.Downsample))


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties with a docstring: of a class, and of its bases in the API's modules."""
    classes = [kind, *(base for base in kind.__mro__[1:] if base.__module__.startswith("ciml.api."))]
    for name, member in (item for base in classes for item in vars(base).items()):
        if name.startswith("_") or not inspect.getdoc(member):
            continue
        if isinstance(member, property) or inspect.isfunction(member):
            yield name, member


def render() -> str:
    """Return the page."""
    begin = PAGE.read_text().partition("\n## ")[0]
    return "\n".join([begin, *(_entry(name, value) for name, value in documented())])


def _entry(name: str, value: Any) -> str:
    level = "##" if inspect.isclass(value) or name.count(".") == 1 else "###"
    heading = f"{level} `{name}{_signature(value)}`"
    return f"{heading}\n\n{_body(inspect.getdoc(value) or '')}\n"


def _signature(value: Any) -> str:
    """Return a signature without types, which the text describes; "" for a property or a result."""
    if isinstance(value, property) or (inspect.isclass(value) and value is not ciml.sklearn.Downsample):
        return ""
    signature = inspect.signature(value)
    plain = [item.replace(annotation=inspect.Parameter.empty) for item in signature.parameters.values()]
    return str(
        signature.replace(
            parameters=[item for item in plain if item.name != "self"], return_annotation=inspect.Signature.empty
        )
    )


def _body(text: str) -> str:
    """Return a docstring as Markdown."""
    lines: list[str] = []
    section = ""
    for line in re.sub(r"``([^`]+)``", r"`\1`", text).splitlines():
        if match := _SECTION.fullmatch(line):
            section = match[1]
            lines.append("```pycon" if section == "Example" else f"**{section}**\n")
        elif section in ("Args", "Attributes", "Raises") and re.match(r"  \S", line):
            names, _, rest = line.strip().partition(": ")
            lines.append(f"- `{names}`: {rest}")
        else:
            lines.append(line[2:] if section else line)
    if section == "Example":
        lines.append("```")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(render())
