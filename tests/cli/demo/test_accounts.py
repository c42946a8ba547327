"""The accounting checks of the demo: green on what is right, and red on every planted defect."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ciml.cli.demo import checks
from ciml.cli.demo.accounts import Accounts
from ciml.cli.demo.demo import accounting_lines
from ciml.cli.demo.plan import Expected
from ciml.cli.demo.result import AccountingLine
from ciml.events.records import UNJUDGED, Origin, Outcome, RawFile, RunFacts, Trust
from ciml.manifest.log import Delta, ManifestLog
from ciml.storage import LocalStore

TOPIC = "ci-events"


def produced(offset: int, run: str, kind: str, reason: str = "", **more: object) -> Expected:
    values: dict[str, object] = {
        "topic": TOPIC, "partition": 0, "offset": offset, "event_key": f"zuul e{offset}" if run else "",
        "run_id": run, "kind": kind, "reason": reason, "trusted": True if kind == "run" else None, "deferred": False,
        "rows": None, "trick": "",
    }  # fmt: skip
    return msgspec.convert({**values, **more}, Expected)


def outcome(line: Expected, kind: str = "", reason: str | None = None) -> dict[str, object]:
    kind = kind or line.kind
    one = Outcome(
        kind,  # type: ignore[arg-type]
        Origin(line.topic, line.partition, line.offset),
        line.event_key,
        RunFacts(line.run_id, line.run_id, "job") if line.run_id else None,
        line.reason if reason is None else reason,
        trust=Trust(line.trusted is True, "gated", "p") if kind == "run" else UNJUDGED,
        file=RawFile(f"runs/{line.run_id}", "d", 3, 4) if kind == "run" else None,
    )
    return one.to_json()


LIST = [
    produced(0, "r0", "run"),
    produced(1, "r1", "run", trusted=False, trick="untrusted pipeline"),
    produced(2, "", "dead_letter", "broken_json", trick="broken JSON"),
    produced(3, "r0", "repeat", "run", trick="same run by another event"),
    produced(4, "r2", "run", deferred=True, trick="log appears later"),
]
CHECKS = (checks.check_accounting, checks.check_offsets, checks.check_trust, checks.check_waited)
_EMPTY: Delta = {
    "offsets": {}, "time_us": 1, "runs": [], "repeats": [], "corrections": [], "ignored": [], "dead_letters": [],
    "deferred": [], "closes": [],
}  # fmt: skip
FIRST: Delta = {
    **_EMPTY,
    "offsets": {TOPIC: {"id": "t", "partitions": {"0": [[0, 5]]}}},
    "runs": [outcome(LIST[0]), outcome(LIST[1])],
    "dead_letters": [outcome(LIST[2])],
    "repeats": [outcome(LIST[3])],
    "deferred": [outcome(LIST[4], "deferred", "log_not_found")],
}
SECOND: Delta = {**_EMPTY, "runs": [outcome(LIST[4])], "closes": [[[TOPIC, 0, 4], "r2"]]}


def account(*deltas: Delta) -> Accounts:
    accounts = Accounts()
    for delta in deltas:
        accounts.apply(delta)
    return accounts


def failed(lines: list[Expected], accounts: Accounts) -> list[str]:
    return [check.__name__ for check in CHECKS if not check(lines, accounts).passed]


def test_what_is_right_passes_every_check() -> None:
    accounts = account(FIRST, SECOND)
    assert failed(LIST, accounts) == []
    details = [check(LIST, accounts).detail for check in CHECKS]
    assert details == ["5 outcomes", "5 in 1 partitions", "1 untrusted", "1 waited"]


def _a_repeat_as_a_run(first: Any, second: Any) -> None:
    first["repeats"].clear()
    first["runs"].append(outcome(LIST[3], "run", ""))


def _did_not_wait(first: Any, second: Any) -> None:
    first["deferred"].clear()
    second["closes"].clear()


def _waited_for_nothing(first: Any, second: Any) -> None:
    first["deferred"].append(outcome(LIST[0], "deferred", "log_not_found"))
    second["closes"].append([[TOPIC, 0, 0], "r0"])
    second["runs"].append(first["runs"].pop(0))


@pytest.mark.parametrize(
    ("defect", "red"),
    [
        pytest.param(lambda a, b: a["runs"].pop(0), "accounting", id="a run is lost"),
        pytest.param(lambda a, b: b["runs"].append(a["runs"][0]), "accounting", id="a run is counted twice"),
        pytest.param(lambda a, b: a["dead_letters"][0].update(reason="tombstone"), "accounting", id="another reason"),
        pytest.param(lambda a, b: a["runs"][0].update(event_key="zuul e9"), "accounting", id="another event"),
        pytest.param(
            lambda a, b: a["runs"].append(outcome(produced(77, "r9", "run"))), "accounting", id="something never sent"
        ),
        pytest.param(
            lambda a, b: a["offsets"][TOPIC]["partitions"].update({"0": [[0, 2], [3, 5]]}), "offsets", id="a hole"
        ),
        pytest.param(
            lambda a, b: a["offsets"][TOPIC]["partitions"].update({"1": [[0, 1]]}), "offsets", id="too much covered"
        ),
        pytest.param(
            lambda a, b: a["runs"][1]["trust"].update(trusted=True), "trust", id="an untrusted run is trusted"
        ),
        pytest.param(lambda a, b: (b["runs"].clear(), b["closes"].clear()), "accounting waited", id="still waiting"),
        (_a_repeat_as_a_run, "accounting trust"),
        (_did_not_wait, "waited"),
        (_waited_for_nothing, "waited"),
    ],
)
def test_a_planted_defect_turns_its_check_red(defect: Callable[[Any, Any], object], red: str) -> None:
    first, second = copy.deepcopy((FIRST, SECOND))
    defect(first, second)
    assert failed(LIST, account(first, second)) == [f"check_{name}" for name in red.split()]


def test_a_list_that_names_something_twice_or_lacks_something_is_red() -> None:
    accounts = account(FIRST, SECOND)
    assert failed([*LIST, LIST[0]], accounts) == ["check_accounting"]
    assert failed(LIST[:-1], accounts) == ["check_accounting", "check_offsets", "check_waited"]


def test_accounts_read_a_manifest_as_it_grows(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    log = ManifestLog(store)
    accounts = Accounts()
    assert accounts.unsettled(LIST) == 5
    for version, delta, runs, deferred in ((1, FIRST, 2, 1), (2, SECOND, 3, 0)):
        assert log.try_append(version, delta)
        accounts.catch_up(store)
        assert (accounts.version, accounts.unsettled(LIST)) == (version, 0)
        assert (len(accounts.outcomes("run")), len(accounts.outcomes("deferred"))) == (runs, deferred)


def test_lines_count_both_sides() -> None:
    first = copy.deepcopy(FIRST)
    first["dead_letters"][0]["reason"] = "tombstone"
    assert accounting_lines(LIST, account(first, SECOND)) == [
        AccountingLine(kind="run", expected=1, counted=1),
        AccountingLine(kind="run", trick="log appears later", expected=1, counted=1),
        AccountingLine(kind="run", trick="untrusted pipeline", expected=1, counted=1),
        AccountingLine(kind="repeat", reason="run", trick="same run by another event", expected=1, counted=1),
        AccountingLine(kind="dead_letter", reason="broken_json", trick="broken JSON", expected=1, counted=0),
        AccountingLine(kind="dead_letter", reason="tombstone", trick="broken JSON", expected=0, counted=1),
    ]
