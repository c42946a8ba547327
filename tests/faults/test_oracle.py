"""The judge itself: an honest store passes, and each violation is reported by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from ciml.errors import RejectedInput
from ciml.events.records import Batch, Message, OffsetRange
from ciml.pipelines.ingest.committer import Committer
from ciml.runs.writer import store
from ciml.storage import open_store
from ciml.transforms.fetch.fetch import shared_fetcher
from ciml.transforms.fetch.policy import FetchPolicy
from ciml.transforms.ingest.decode import decode
from ciml.transforms.parse.logs import parse
from tests.corpus import CORPUS
from tests.faults.oracle import Delivery, Ledger, accepted, judge, open_objects, table_of
from tests.faults.plan import Mix, Planner
from tests.faults.poller import Poller

TOPIC = "events"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Delivery]]:
    """A raw store that ciml's own functions made of a mixed plan, in two commits, and what was sent."""
    folder = tmp_path_factory.mktemp("oracle")
    logs = folder / "logs"
    plan = Planner(1, "", logs, logs.as_uri(), partitions=1).mixed(40, Mix(bad=0.3))
    for name, content in plan.late_logs.items():
        (logs / name).write_bytes(content)
    files = f'"{CORPUS.as_uri()}/logs/'.encode()  # no log server runs here
    sends = [replace(send, value=send.value and send.value.replace(b'"/corpus/', files)) for send in plan.sends]
    raw = open_store(folder / "raw")
    policy = FetchPolicy(file_roots=(str(folder), str(CORPUS)), delays_s=())
    committer = Committer(raw)
    half = len(sends) // 2
    for start, end in ((0, half), (half, len(sends))):
        messages = [Message(at, sends[at].value, sends[at].headers, timestamp_ms=1) for at in range(start, end)]
        batch = decode(Batch(OffsetRange(TOPIC, "T", 0, start, end), messages))
        committer.commit([store(parse(shared_fetcher(policy).fetch(batch, 0)), raw)])
    return folder / "raw", [Delivery(0, offset, send) for offset, send in enumerate(sends)]


@pytest.fixture
def honest(made: tuple[Path, list[Delivery]], tmp_path: Path) -> tuple[Path, list[Delivery]]:
    return Path(shutil.copytree(made[0], tmp_path / "raw")), made[1]


def verdict(raw: Path, sent: list[Delivery]) -> list[str]:
    ledger = Ledger(open_objects(str(raw)))
    ledger.poll()
    return judge(TOPIC, sent, ledger)


def change(raw: Path, version: int, edit: Callable[[dict[str, Any]], None]) -> None:
    path = raw / "_manifest" / f"{version:012d}.json"
    delta = json.loads(path.read_text())
    edit(delta)
    path.write_text(json.dumps(delta))


def test_an_honest_store_passes(honest: tuple[Path, list[Delivery]]) -> None:
    raw, sent = honest
    assert len(accepted(sent)) > 20
    assert verdict(raw, sent) == []
    poller = Poller(open_objects(str(raw)))
    poller.last()
    assert (poller.version, poller.faults) == (2, [])


@pytest.mark.parametrize(
    ("edit", "reports"),
    [
        (lambda delta: delta["runs"].pop(), {"I1", "I2", "gap"}),
        (lambda delta: delta["runs"].append(delta["runs"][0]), {"I1", "I2"}),
        (lambda delta: delta["dead_letters"].pop(), {"gap", "I2"}),
        (lambda delta: delta["dead_letters"][0].update(reason="other"), {"I2"}),
        (lambda delta: delta["offsets"][TOPIC]["partitions"].update({"0": [[0, 1]]}), {"I2"}),
        (lambda delta: delta["runs"][0]["file"].update(digest="0" * 64), {"row"}),
        (lambda delta: delta["runs"][0]["file"].update(rows=1), {"I3"}),
        (lambda delta: delta["runs"][0]["file"].update(path="runs/none.parquet"), {"I3"}),
        (lambda delta: delta.update(version=9), {"I4"}),
    ],
)
def test_a_wrong_delta_is_reported(
    honest: tuple[Path, list[Delivery]], edit: Callable[[dict[str, Any]], None], reports: set[str]
) -> None:
    raw, sent = honest
    change(raw, 1, edit)
    assert {line.split(":")[0] for line in verdict(raw, sent)} == reports


def test_other_values_under_the_right_digest_are_reported(honest: tuple[Path, list[Delivery]]) -> None:
    raw, sent = honest
    path = raw / json.loads((raw / "_manifest" / "000000000001.json").read_text())["runs"][0]["file"]["path"]
    table = pq.ParquetFile(path).read()
    pq.write_table(table.set_column(2, table.column_names[2], pc.add(table.column(2), 1e-12)), path)
    assert [line.split(":")[0] for line in verdict(raw, sent)] == ["row"]
    poller = Poller(open_objects(str(raw)))
    poller.last()
    assert {line.split(":")[0] for line in poller.faults} == {"I3"}


def test_the_poller_reports_deltas_that_change_or_vanish(honest: tuple[Path, list[Delivery]]) -> None:
    raw, _ = honest
    poller = Poller(open_objects(str(raw)))
    poller.poll()
    change(raw, 1, lambda delta: delta.update(time_us=1))
    (raw / "_manifest" / "000000000002.json").unlink()
    poller.last()
    assert sorted(set(poller.faults)) == ["I4: delta 1 has changed", "I4: delta 2 was there, and is gone"]


def test_a_log_that_is_rejected_has_no_row(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"nothing")
    with pytest.raises(RejectedInput):
        table_of(str(tmp_path / "x"), None, None)
