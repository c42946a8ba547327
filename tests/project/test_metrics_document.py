"""docs/metrics.md and the alert rules name the metrics that there are, with their types and labels."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import tomllib

from ciml.metrics import Metric, metric
from tests.project.test_rooms import FOLDERS, ROOT


@functools.cache
def declared() -> dict[str, Metric]:
    """All metrics that any module declares, by name: the literal argument of each call of `metric`."""
    calls = [
        call
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if "metric(" in (source := path.read_text())
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "metric"
    ]
    names = [ast.literal_eval(call.args[0]) for call in calls]
    assert len(set(names)) == len(names)  # one module declares a metric; others import it
    return {name: metric(name) for name in names}


def documented(text: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """(type, labels) by name, of the table of all metrics."""
    rows = re.findall(r"^\| `(ciml_\w+)` \| (\w+) \|[^|]*\|([^|]*)\|", text, re.M)
    assert len(rows) == len({name for name, _, _ in rows})
    return {name: (kind, tuple(filter(None, labels.strip().split(", ")))) for name, kind, labels in rows}


def test_the_table_is_what_the_code_declares() -> None:
    metrics = declared()
    assert len(metrics) > 30
    assert metrics.keys() == tomllib.loads((ROOT / "ciml" / "metrics.toml").read_text()).keys()
    table = documented((ROOT / "docs" / "metrics.md").read_text())
    assert table == {name: (one.type, one.labels) for name, one in metrics.items()}


def test_names_are_prometheus_own() -> None:
    for name, one in declared().items():
        assert re.fullmatch(r"ciml(_[a-z]+)+", name)
        assert name.endswith("_total") == (one.type == "counter"), name
        assert (one.type in ("histogram", "summary")) <= name.endswith("_seconds"), name
        assert not {"run", "run_id", "build_uuid", "job"} & set(one.labels), name
        assert one.help.endswith("."), name


def test_families_come_of_declarations_alone() -> None:
    """A metric that is made another way would be in no table."""
    makers = re.compile(r"\b(Counter|Gauge|Histogram|Summary|Info|Enum)(MetricFamily)?\(\s*[\"']")
    wrong = []
    for folder in FOLDERS:
        wrong += [str(path) for path in (ROOT / folder).rglob("*.py") if makers.search(path.read_text())]
    assert wrong == []
    assert makers.search(inspect.cleandoc('Counter("x", "y")'))
