"""Fill a compacted raw store with any number of runs: copies of real runs under new ids, each a day later.

    python -m studies.many_runs LISTING LOGS DATA RUNS

`studies.datasets` and `studies.tables` use it; it writes no table of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

import pyarrow as pa

from ciml.data_root import DataRoot
from ciml.digest import telemetry_digest
from ciml.events.records import Origin, Outcome, RawFile, RunFacts, Trust
from ciml.events.run_facts import facts_from_listing
from ciml.manifest.log import ManifestLog
from ciml.runs.pack_index import pack_log, split_path
from ciml.runs.packing import PackWriter
from ciml.runs.writer import run_path
from ciml.storage import Store, open_store
from ciml.transforms.parse.logs import Log, parse_logs

DAY_US = 86_400_000_000
_COMMIT = 2000
_TRUST = Trust(True, "listing", "0")


def repeat_runs(runs: Sequence[tuple[RunFacts, pa.Table]], number: int) -> Iterator[tuple[RunFacts, pa.Table]]:
    """Yield runs up to a number: the given ones, then copies with new ids and times a day later, and so on."""
    for copy in count():
        for mention, table in runs:
            if number == 0:
                return
            number -= 1
            uuid = f"{mention.build_uuid}-{copy}" if copy else mention.build_uuid
            later = {
                "start_us": (mention.start_us or 0) + copy * DAY_US,
                "end_us": (mention.end_us or 0) + copy * DAY_US,
            }
            yield mention.replace(run_id=f"backfill~{uuid}~1", build_uuid=uuid, **later), table


def fill_store(data: Store, runs: Iterable[tuple[RunFacts, pa.Table]], *, per_folder: int) -> None:
    """Write packs and manifests as a backfill and a compaction would, but without an object for each run.

    Args:
      data: the data path.
      runs: ordered so that runs of one folder (job and day) are close to each other.
      per_folder: number of pending runs of a folder that are packed together; a folder may have several packs.
    """
    raw = DataRoot(data).raw
    waiting: dict[str, PackWriter] = {}
    records: list[dict[str, object]] = []
    log = ManifestLog(raw)
    versions = count(1)
    packs = dict[str, int]()

    def pack(folder: str) -> None:
        file, content = waiting.pop(folder).finish()
        raw.create(file.path, content)
        packs[folder] = packs.get(folder, 0) + 1
        delta = {"time_us": 0, "packs": [file.to_json()], "replaces": [], "alone": {}}
        assert pack_log(raw, folder).try_append(packs[folder], delta)

    def commit() -> None:
        lists = ("repeats", "corrections", "ignored", "dead_letters", "deferred", "closes")
        delta = {"time_us": 0, "runs": records[:], **{name: [] for name in lists}, "offsets": {}}
        assert log.try_append(next(versions), delta)
        records.clear()

    for number, (mention, table) in enumerate(runs):
        digest = telemetry_digest(mention.run_id, table)
        path = run_path(mention, table, digest)
        place = split_path(path)
        assert place is not None
        folder, name = place
        if folder not in waiting:
            waiting[folder] = PackWriter(folder, table.schema)
        writer = waiting[folder]
        writer.add(name, digest, table)
        if len(writer.runs) >= per_folder:
            pack(folder)
        file = RawFile(path, digest, table.num_rows, 0)
        records.append(Outcome("run", Origin("many", 0, number), "", mention, trust=_TRUST, file=file).to_json())
        if len(records) == _COMMIT:
            commit()
    for folder in list(waiting):
        pack(folder)
    if records:
        commit()


def main() -> None:
    listing, logs, data, number = sys.argv[1:]
    builds = [json.loads(line) for line in Path(listing).read_text().splitlines()]
    mentions = [facts_from_listing(build, source="backfill") for build in builds]
    texts = [
        Log(Path(logs, build["log_path"]).read_bytes(), mention.start_us, mention.end_us)
        for build, mention in zip(builds, mentions, strict=True)
    ]
    parsed = zip(mentions, parse_logs(texts), strict=True)
    runs = [(mention, table) for mention, table in parsed if isinstance(table, pa.Table)]
    fill_store(open_store(data), repeat_runs(runs, int(number)), per_folder=2000)


if __name__ == "__main__":
    main()
