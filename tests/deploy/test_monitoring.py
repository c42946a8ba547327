"""The alert rules and the dashboard are of metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import promql_parser
import pytest
import yaml

from tests.project.test_metrics_document import declared

FILES = Path(__file__).parents[2] / "deploy/helm/ciml/files"


def used_metrics(expression: str) -> set[str]:
    """The metrics of ciml in an expression, each of them declared."""
    promql_parser.parse(expression)
    used = set()
    for name in re.findall(r"\b(ciml_\w+|up)\b(?!\")", expression):
        base = re.sub(r"_(bucket|count|sum)$", "", name)
        assert base in {**declared(), "up": None}, name
        used.add(base)
    return used


def test_alerts_are_of_metrics_that_there_are() -> None:
    (group,) = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"]
    used = set()
    for rule in group["rules"]:
        used |= used_metrics(rule["expr"])
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
    assert len({rule["alert"] for rule in group["rules"]}) == len(group["rules"])
    assert len(used) > 10
    tried = yaml.safe_load((FILES / "alerts_test.yaml").read_text())["tests"]
    names = {one["alertname"] for test in tried for one in test["alert_rule_test"]}
    assert names <= {rule["alert"] for rule in group["rules"]}
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        promql_parser.parse("sum by (a (b)")


def test_panels_are_of_metrics_that_there_are() -> None:
    dashboard = json.loads((FILES / "dashboard.json").read_text())
    used = set()
    places = set()
    for panel in dashboard["panels"]:
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            used |= used_metrics(target["expr"])
        places.add((panel["gridPos"]["x"], panel["gridPos"]["y"]))
    assert len(places) == len(dashboard["panels"]) == len({panel["id"] for panel in dashboard["panels"]})
    assert len(used) > 12
