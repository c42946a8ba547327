"""Listed: lines of a listing become candidates, and these become settled batches, as messages and events do.

One thing differs from the way of a message: a listing names logs that are there or are not, so none is deferred. What
may be so for a moment only is tried again at once, and where no log of a batch can be read the storage is taken to be
away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from ciml.errors import EngineError, Refused
from ciml.listing import Line, Reading, decode_line, too_long
from ciml.records import Batch, Candidate, OffsetRange, Origin, Outcome
from ciml.storage import Store
from transforms.decode import dead_letter, why_ignored
from transforms.fetch import fetch
from transforms.fetch_policy import FetchPolicy
from transforms.store import parse, store
from transforms.trust import TrustPolicy, judge

#: Reasons of a log that say nothing of the log itself.
_PASSING = frozenset({"log_unavailable", "log_timeout", "log_cut"})
_PAUSES_S = (0.5, 2.0)
_ENOUGH = 10  # so many unreadable logs, and no other, are an outage


def decode_lines(
    covers: OffsetRange, lines: Sequence[Line], reading: Reading, known: Collection[int] = frozenset()
) -> Batch:
    """Decodes the lines of a range.

    Args:
      covers: the range; ``lines`` outside of it are left out.
      lines: blank ones are left out already: nothing becomes of them.
      reading: what the lines mean.
      known: numbers of lines whose runs have their raw rows: their logs are not to be read again.

    Returns:
      A batch of candidates; what is ignored, known or a dead letter is settled, as `transforms.decode.decode` does it.
    """
    candidates: list[Candidate] = []
    settled: list[Outcome] = []
    for line in lines:
        if not covers.start <= line.number < covers.end:
            continue
        origin = Origin(covers.topic, covers.partition, line.number)
        if line.sha256:
            settled.append(too_long(origin, line))
            continue
        message = line.message(reading)
        try:
            run = decode_line(line.data, reading)
        except Refused as refused:
            settled.append(dead_letter(origin, message, refused))
            continue
        mention = run.mention
        if run.fault is not None:
            settled.append(dead_letter(origin, message, run.fault, mention=mention))
        elif reason := why_ignored(mention):
            settled.append(Outcome("ignored", origin, mention=mention, reason=reason))
        elif line.number in known:  # the accounting makes a correction of it where the outcome differs
            settled.append(Outcome("repeat", origin, mention=mention, reason="run"))
        else:
            address = run.address if run.address != mention.log_url else ""
            candidates.append(Candidate(origin, "", mention, message, address=address))
    return Batch(covers, [], candidates, settled)


def settle_listed(
    batches: Sequence[Batch],
    trust: TrustPolicy,
    policy: FetchPolicy,
    raw: Store,
    sleep: Callable[[float], object] = time.sleep,
    now_us: int | None = None,
) -> list[Batch]:
    """Judges, fetches, parses and stores the candidates of batches, all together.

    Args:
      batches: of `decode_lines`, or retries of such (without ``covers``).
      trust: judges the runs.
      policy: from where logs may be fetched. Its ``delays_s`` do not matter.
      raw: the raw store.
      sleep: waits before the next try of logs that could not be read.
      now_us: the present, epoch microseconds.

    Returns:
      The same batches, settled; none of their outcomes is ``deferred``.

    Raises:
      EngineError: the raw store does not answer, or ten logs and more could not be read and no other could.
    """
    moment = int(time.time() * 1e6) if now_us is None else now_us
    policy = replace(policy, delays_s=())
    waiting = judge(Batch(None, candidates=[each for batch in batches for each in batch.candidates]), trust).candidates
    of = {(each.origin, each.mention.run_id): each for each in waiting}
    done: list[Outcome] = []
    pauses = iter(_PAUSES_S)
    answered = False
    while waiting:
        fetched = fetch(Batch(None, candidates=waiting), policy, moment)
        answered = answered or bool(fetched.candidates) or any(each.reason not in _PASSING for each in fetched.settled)
        passing = any(each.reason in _PASSING for each in fetched.settled)
        pause = next(pauses, None) if passing else None
        later: list[Outcome] = []
        settled: list[Outcome] = []
        for each in fetched.settled:
            once_more = each.reason == "batch_full" or (pause is not None and each.reason in _PASSING)
            (later if once_more else settled).append(each)
        done += store(parse(Batch(None, candidates=fetched.candidates)), raw).settled + settled
        if pause is not None:
            sleep(pause)
        waiting = [of[each.origin, each.run_id] for each in later]
    lost = [each for each in done if each.reason in _PASSING]
    if not answered and len(lost) >= _ENOUGH:
        raise EngineError(f"none of {len(lost)} logs can be read: {lost[0].reason}, {lost[0].detail:.200}")
    return _shared_out(batches, done)


def _shared_out(batches: Sequence[Batch], done: Sequence[Outcome]) -> list[Batch]:
    """The outcomes, each in the batch that its candidate was in."""
    found: dict[tuple[Origin, str], Outcome] = {(each.origin, each.run_id): each for each in done}
    return [
        Batch(
            batch.covers,
            settled=batch.settled + [found[each.origin, each.mention.run_id] for each in batch.candidates],
        )
        for batch in batches
    ]
