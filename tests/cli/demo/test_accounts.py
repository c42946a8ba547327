"""The accounting checks of the demo: green on what is right, and red on every planted defect."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from ciml.cli.demo import checks
from ciml.cli.demo.plan import Expected
from ciml.cli.demo.result import AccountingLine
from ciml.cli.demo.run import Accounts
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


def outcome(
    line: Expected, kind: str = "", reason: str | None = None, trusted: bool | None = None
) -> dict[str, object]:
    kind = kind or line.kind
    one = Outcome(
        kind,  # type: ignore[arg-type]
        Origin(line.topic, line.partition, line.offset),
        line.event_key,
        RunFacts(line.run_id, line.run_id, "job") if line.run_id else None,
        line.reason if reason is None else reason,
        trust=Trust(line.trusted is True if trusted is None else trusted, "gated", "p") if kind == "run" else UNJUDGED,
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


def delta(**lists: list[object]) -> Delta:
    empty = ("runs", "repeats", "corrections", "ignored", "dead_letters", "deferred", "closes")
    return {"offsets": {}, "time_us": 1, **{name: [] for name in empty}, **lists}


def deltas() -> list[Delta]:
    first = delta(
        runs=[outcome(LIST[0]), outcome(LIST[1])],
        dead_letters=[outcome(LIST[2])],
        repeats=[outcome(LIST[3])],
        deferred=[outcome(LIST[4], "deferred", "log_not_found")],
    )
    first["offsets"] = {TOPIC: {"id": "t", "partitions": {"0": [[0, 5]]}}}
    second = delta(runs=[outcome(LIST[4])], closes=[[[TOPIC, 0, 4], "r2"]])
    return [first, second]


def account(parts: list[Delta]) -> Accounts:
    accounts = Accounts()
    for part in parts:
        accounts.apply(part)
    return accounts


def failed(lines: list[Expected], accounts: Accounts) -> list[str]:
    return [check.__name__ for check in CHECKS if not check(lines, accounts).passed]


def test_what_is_right_passes_every_check() -> None:
    accounts = account(deltas())
    assert failed(LIST, accounts) == []
    assert [check(LIST, accounts).detail for check in CHECKS] == [
        "5 of 5",
        "5 in 1 partitions",
        "1 untrusted",
        "1 waited",
    ]


def _lose_a_run(parts: list[Delta]) -> None:
    del parts[0]["runs"][0]


def _count_a_run_twice(parts: list[Delta]) -> None:
    parts[1]["runs"].append(parts[0]["runs"][0])


def _another_reason(parts: list[Delta]) -> None:
    parts[0]["dead_letters"][0]["reason"] = "tombstone"


def _another_event(parts: list[Delta]) -> None:
    parts[0]["runs"][0]["event_key"] = "zuul e9"


def _a_repeat_as_a_run(parts: list[Delta]) -> None:
    parts[0]["repeats"].clear()
    parts[0]["runs"].append(outcome(LIST[3], "run", ""))


def _something_never_sent(parts: list[Delta]) -> None:
    parts[0]["runs"].append(outcome(produced(77, "r9", "run")))


def _a_hole(parts: list[Delta]) -> None:
    parts[0]["offsets"][TOPIC]["partitions"]["0"] = [[0, 2], [3, 5]]


def _too_much_covered(parts: list[Delta]) -> None:
    parts[0]["offsets"][TOPIC]["partitions"]["1"] = [[0, 1]]


def _trusting(parts: list[Delta]) -> None:
    parts[0]["runs"][1] = outcome(LIST[1], trusted=True)


def _still_waiting(parts: list[Delta]) -> None:
    del parts[1]


def _did_not_wait(parts: list[Delta]) -> None:
    parts[0]["deferred"].clear()
    parts[1]["closes"].clear()


def _waited_for_nothing(parts: list[Delta]) -> None:
    parts[0]["deferred"].append(outcome(LIST[0], "deferred", "log_not_found"))
    parts[0]["runs"].pop(0)
    parts[1]["closes"].append([[TOPIC, 0, 0], "r0"])
    parts[1]["runs"].append(outcome(LIST[0]))


@pytest.mark.parametrize(
    ("defect", "red"),
    [
        (_lose_a_run, ["check_accounting"]),
        (_count_a_run_twice, ["check_accounting"]),
        (_another_reason, ["check_accounting"]),
        (_another_event, ["check_accounting"]),
        (_a_repeat_as_a_run, ["check_accounting", "check_trust"]),
        (_something_never_sent, ["check_accounting"]),
        (_a_hole, ["check_offsets"]),
        (_too_much_covered, ["check_offsets"]),
        (_trusting, ["check_trust"]),
        (_still_waiting, ["check_accounting", "check_waited"]),
        (_did_not_wait, ["check_waited"]),
        (_waited_for_nothing, ["check_waited"]),
    ],
)
def test_a_planted_defect_turns_its_check_red(defect: Callable[[list[Delta]], None], red: list[str]) -> None:
    parts = deltas()
    defect(parts)
    assert failed(LIST, account(parts)) == red


def test_a_list_that_names_something_twice_is_red() -> None:
    assert failed([*LIST, LIST[0]], account(deltas())) == ["check_accounting"]


def test_a_list_that_lacks_something_is_red() -> None:
    assert failed(LIST[:-1], account(deltas())) == ["check_accounting", "check_offsets", "check_waited"]


def test_accounts_read_a_manifest_as_it_grows(tmp_path: object) -> None:
    store = LocalStore(str(tmp_path))
    log, accounts = ManifestLog(store), Accounts()
    first, second = deltas()
    assert accounts.unsettled(LIST) == 5
    assert log.try_append(1, first)
    accounts.catch_up(store)
    assert (
        accounts.version,
        accounts.unsettled(LIST),
        len(accounts.outcomes("run")),
        len(accounts.outcomes("deferred")),
    ) == (1, 0, 2, 1)
    assert log.try_append(2, second)
    accounts.catch_up(store)
    assert (accounts.version, len(accounts.outcomes("run")), len(accounts.outcomes("deferred"))) == (2, 3, 0)


def test_lines_count_both_sides() -> None:
    parts = deltas()
    _another_reason(parts)
    assert checks.accounting_lines(LIST, account(parts)) == [
        AccountingLine(kind="run", expected=1, counted=1),
        AccountingLine(kind="run", trick="log appears later", expected=1, counted=1),
        AccountingLine(kind="run", trick="untrusted pipeline", expected=1, counted=1),
        AccountingLine(kind="repeat", reason="run", trick="same run by another event", expected=1, counted=1),
        AccountingLine(kind="dead_letter", reason="broken_json", trick="broken JSON", expected=1, counted=0),
        AccountingLine(kind="dead_letter", reason="tombstone", trick="broken JSON", expected=0, counted=1),
    ]
