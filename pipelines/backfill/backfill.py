"""Backfill: the runs of a listing to the raw store and its manifest, as ingest does it for events.

blocks of lines ─► decode ─► judge ─► fetch ─► parse ─► store ─► commit

What is committed are the numbers of the lines, as a topic's offsets are. So the manifest alone says where to go on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from ciml.events.listing_files import Listing
from pipelines.backfill.ordered_committer import OrderedCommitter
from pipelines.backfill.plan import BackfillConfig, BackfillProgress, Report, Tally, Work, plan, probe_logs

__all__ = ["BackfillConfig", "BackfillProgress", "Tally", "backfill"]


def backfill(
    config: BackfillConfig,
    listing: Listing,
    *,
    runner: str | None = None,
    job_endpoint: str = "",
    extra: tuple[str, ...] = (),
    stop: threading.Event | None = None,
    report: Report | None = None,
) -> Tally:
    """Bring the runs of a listing into the raw store, from its first line that is not settled.

    Args:
      config: what to take, and how.
      listing: an open one.
      runner: None calls the functions in this process; ``fnapi`` and ``flink`` run them in Beam.
      job_endpoint: ``host:port`` of Beam's job server, for ``flink``.
      extra: further options of Beam.
      stop: ends it, when set, after what is under way is committed.
      report: told how far it is, a few times a second at most.

    Raises:
      CimlError: no log is where the listing says, or the listing was changed meanwhile; or another runner is named.
      EngineError: a store, Flink or the place of the logs does not answer. What was settled is committed.
      IntegrityError: see `ciml.raw.accounting.reconcile`.
    """
    following = BackfillProgress(config.raw, listing, report)
    probe_logs(config, listing, following.tally)
    stop = stop or threading.Event()
    works = plan(config, listing, following, stop)
    if runner is None:
        _direct(config, listing, works, following)
    else:
        from pipelines.backfill.beam import in_beam

        in_beam(config, listing, works, following, stop, runner=runner, job_endpoint=job_endpoint, extra=extra)
    following.look()
    following.tally.whole = not stop.is_set()
    return following.tally


def _direct(config: BackfillConfig, listing: Listing, works: Iterator[Work], following: BackfillProgress) -> None:
    committer = OrderedCommitter(config, listing, following.look)
    try:
        for work in works:
            following.tally.passed += committer.put(work)
            following.tell()
        following.tally.passed += committer.end()
    except BaseException:
        committer.abandon()
        raise
