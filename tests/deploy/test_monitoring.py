"""The alert rules and the dashboard are of metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.interop.prometheus.durations import shortened
from tests.project.test_metrics_document import declared

FILES = Path(__file__).parents[2] / "deploy/helm/ciml/files"


def alert_rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load((FILES / "alerts.yaml").read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def test_alerts_and_panels_are_of_metrics_that_there_are() -> None:
    rules = alert_rules()
    panels = json.loads((FILES / "dashboard.json").read_text())["panels"]
    assert {rule["labels"]["severity"] for rule in rules} == {"page", "ticket"}
    assert all(rule["annotations"]["summary"] for rule in rules)
    assert len({rule["alert"] for rule in rules}) == len(rules)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels) == len({panel["id"] for panel in panels})
    assert all(panel["targets"] for panel in panels)
    known = {*declared(), "up"}
    for expressions in (
        [rule["expr"] for rule in rules],
        [target["expr"] for panel in panels for target in panel["targets"]],
    ):
        used = set()
        for expression in expressions:
            promql_parser.parse(expression)
            names = re.findall(r"\b(ciml_\w+|up)\b(?!\")", expression)
            used |= {re.sub(r"_(bucket|count|sum)$", "", name) for name in names}
        assert used - known == set()
        assert len(used) > 10
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        promql_parser.parse("sum by (a (b)")


def promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Prometheus' own checker of rules."""
    program = shutil.which("promtool")
    if program is None:
        pytest.fail("the alert rules are tested by Prometheus' promtool: apt-get install prometheus", pytrace=False)
    return subprocess.run([program, *words], capture_output=True, text=True, check=False)


#: The tests of the rules' behaviour over time; the second file is of an alert that takes a day.
ALERT_TESTS = tuple(FILES / name for name in ("alerts_test.yaml", "alerts_day_test.yaml"))


def test_each_alert_is_tested_quiet_and_firing() -> None:
    cases = [case for path in ALERT_TESTS for case in yaml.safe_load(path.read_text())["tests"]]
    tried = [evaluation for case in cases for evaluation in case["alert_rule_test"]]
    rules = {rule["alert"] for rule in alert_rules()}
    assert {one["alertname"] for one in tried if not one.get("exp_alerts")} == rules
    assert {one["alertname"] for one in tried if one.get("exp_alerts")} == rules


@pytest.mark.engines
def test_prometheus_fires_each_alert_when_it_should(tmp_path: Path) -> None:
    done = promtool("check", "rules", FILES / "alerts.yaml")
    assert done.returncode == 0, done.stderr
    done = promtool("test", "rules", *ALERT_TESTS)
    assert done.returncode == 0, done.stderr + done.stdout
    # the cases depend on how long an alert waits: where each waits ten times as long, none fires when it should
    waiting = [rule for rule in alert_rules() if "for" in rule]
    longer = [{**rule, "for": rule["for"].replace("m", "0m")} for rule in waiting]
    rest = [rule for rule in alert_rules() if "for" not in rule]
    rules = {"groups": [{"name": "ciml", "rules": [*rest, *longer]}]}
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(rules, width=1000))
    shutil.copy(ALERT_TESTS[0], tmp_path)
    done = promtool("test", "rules", tmp_path / ALERT_TESTS[0].name)
    assert done.returncode != 0
    assert set(re.findall(r"alertname: (\w+), time:", done.stdout + done.stderr)) == {rule["alert"] for rule in waiting}


def test_a_shorter_rule_differs_in_durations_alone() -> None:
    number = re.compile(r"\d+[smhd]?\b")
    before = {"groups": [{"name": "ciml", "rules": alert_rules()}]}
    after = shortened(before)
    assert len(after["groups"][0]["rules"]) == len(alert_rules())
    changed = 0
    for old, new in zip(alert_rules(), after["groups"][0]["rules"], strict=True):
        assert number.sub("N", old["expr"]) == number.sub("N", new["expr"])
        assert {**old, "expr": "", "for": ""} == {**new, "expr": "", "for": new.get("for", "") and ""}
        assert ("for" in old) == ("for" in new)
        changed += old["expr"] != new["expr"]
    assert changed > 10
    (small,) = [rule for rule in after["groups"][0]["rules"] if rule["alert"] == "CimlLagGrows"]
    assert "> 1000" in small["expr"]  # messages, not seconds
