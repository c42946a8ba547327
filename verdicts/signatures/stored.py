"""The failure signatures of a data root, derived from its raw manifest and the stored outputs of its runs.

Rows are taken in the order of the manifest, with the outcomes and the trust that they were stored with. A failed run is
compared with the latest trusted runs of its job that passed before. Templates outlive the text of an output, so the
signatures do not depend on its retention; the text alone is quoted, and is replaced by the template once it expired.

A bookmark holds the state, so the next process reads only what was stored since.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial

import msgspec

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.events.outcomes import FAILED
from ciml.events.records import OutputFile, RunFacts
from ciml.limits import MAX_SIGNATURE_JOBS
from ciml.manifest.bookmarks import Bookmarks
from ciml.manifest.log import ManifestLog
from ciml.runs.neighbours import NODE
from ciml.runs.outputs import read_output
from ciml.runs.run_log import RunRecord, StoredRunLog
from ciml.storage import Store
from ciml.transforms.examples.changes import digest_of
from ciml.transforms.logs.failure_keys import Key, keys_of, without_margin
from ciml.transforms.logs.lines import lines_of_block
from ciml.transforms.logs.profile import OutputProfile, Printed
from ciml.transforms.logs.signatures import SIGNATURES_KIND, Failure, Line, Signatures
from ciml.transforms.logs.stored import PASSING_RUNS, stored_printed
from ciml.transforms.logs.templates import templates_of

_log = logging.getLogger(__name__)

#: The bookmark, next to the manifest of notes.
BOOKMARK = "_signatures"
#: Characters of a quoted line.
LINE_CHARACTERS = 200
#: Names all that the state depends on, but the masks of templates: signatures by earlier masks remain.
_KIND = f"{SIGNATURES_KIND}; {PASSING_RUNS} passing runs of {MAX_SIGNATURE_JOBS} jobs"
#: Rows after which the bookmark is replaced, and failed runs: these take the time.
_BOOKMARK_ROWS = 10_000
_BOOKMARK_FAILED = 200
#: Profiles of jobs that are kept while a manifest is read.
_PROFILES = 20


def read_signatures(data: DataRoot) -> Signatures:
    """Return the signatures of the runs of a data root, and store them for the next reader.

    Raises:
      EngineError: the store does not answer.
      IntegrityError: the raw manifest is damaged. A damaged output is logged; its run has no signature.
    """
    log = StoredRunLog(ManifestLog(data.raw))
    bookmarks = Bookmarks(data.failures, BOOKMARK, _KIND, partial(digest_of, log))
    reader, first = _resume(bookmarks, data.raw)
    version = first
    rows = failed = 0
    for version, delta in log.since(first):
        for record in delta.rows:
            failed += reader.add(record)
        rows += len(delta.rows)
        if rows >= _BOOKMARK_ROWS or failed >= _BOOKMARK_FAILED:
            bookmarks.save(version, reader.encode())
            rows = failed = 0
    if rows:
        bookmarks.save(version, reader.encode())
    return reader.signatures


def _resume(bookmarks: Bookmarks, raw: Store) -> tuple[SignatureReader, int]:
    """Return a reader after the deltas of the bookmark, and the version of the last of them."""
    reader = SignatureReader(raw)
    bookmark = bookmarks.load()
    if bookmark is None:
        return reader, 0
    try:
        reader.restore(bookmark.state)
    except msgspec.DecodeError as error:
        _log.warning("the bookmark of signatures cannot be read (%s); reading the first delta", error)
        return SignatureReader(raw), 0
    return reader, bookmark.version


class SignatureReader:
    """Adds the rows of a raw manifest to signatures.

    Args:
      raw: the raw store.

    Attributes:
      signatures: of the rows that were added.
    """

    def __init__(self, raw: Store) -> None:
        self.signatures = Signatures()
        self._raw = raw
        self._passed: OrderedDict[str, list[OutputFile]] = OrderedDict()  # outputs of passing runs, by job
        self._profiles: OrderedDict[tuple[str, ...], OutputProfile] = OrderedDict()

    def add(self, record: RunRecord) -> bool:
        """Add the next row. Return whether it is of a failed run with an output, which takes a while."""
        output = record.output
        facts = record.facts
        if output is None or output.missing:
            return False
        if facts.outcome == "success" and record.trust.trusted:
            self._add_passed(facts.build_name, output)
        if facts.outcome not in FAILED:
            return False
        try:
            self._add_failed(record, facts)
        except IntegrityError as error:
            _log.warning("run %s has no signature: %s", facts.run_id, error)
        return True

    def _add_passed(self, job: str, output: OutputFile) -> None:
        outputs = self._passed.setdefault(job, [])
        self._passed.move_to_end(job)
        if output not in outputs:  # a row that completes another one is the same run
            outputs.append(output)
        del outputs[:-PASSING_RUNS]
        if len(self._passed) > MAX_SIGNATURE_JOBS:
            self._passed.popitem(last=False)

    def _add_failed(self, record: RunRecord, facts: RunFacts) -> None:
        printed = stored_printed(self._raw, record.output)
        if printed is None:
            return
        keys = keys_of(printed, facts.build_name, self._profile(facts.build_name))
        signature = self.signatures.add(
            Failure(
                facts.run_id,
                facts.build_name,
                f"{facts.project} {facts.change}".strip() if facts.change else facts.run_id,
                facts.end_us or facts.start_us or 0,
                keys,
                facts.labels.get(NODE, ""),
                facts.provider,
                record.trust.trusted,
            )
        )
        if signature is not None and signature.line is None and signature.founder == facts.run_id:
            signature.line = self._line(record, signature.key, printed)

    def _profile(self, job: str) -> OutputProfile:
        """Return the profile of the latest passing runs of a job. A run whose output is damaged does not count."""
        outputs = self._passed.get(job, [])
        paths = tuple(output.path for output in outputs)
        if paths in self._profiles:
            self._profiles.move_to_end(paths)
            return self._profiles[paths]
        profile = OutputProfile()
        for output in outputs:
            try:
                printed = stored_printed(self._raw, output)
            except IntegrityError as error:
                _log.warning("a passing run is not compared with: %s", error)
                continue
            if printed is not None:
                profile.add(printed)
        self._profiles[paths] = profile
        if len(self._profiles) > _PROFILES:
            self._profiles.popitem(last=False)
        return profile

    def _line(self, record: RunRecord, key: Key, printed: Mapping[str, Printed]) -> Line:
        """Return the line of a key in the output of a run, whose number is 0 if the text has it no more."""
        run_id = record.mention.run_id
        lines = record.output.lines if record.output else 0
        if key.is_end:
            return Line(run_id, lines, "")
        place = next(one.place for name, one in printed.items() if without_margin(name) == key.template)
        number = round(place * max(lines - 1, 1)) + 1
        kept = read_output(self._raw, record.output)
        line = None if isinstance(kept, str) else kept.line(number)
        if line is not None:
            clean = lines_of_block(line)
            if without_margin(templates_of(clean)[0].as_py()) == key.template:
                return Line(run_id, number, without_margin(clean[0].as_py())[:LINE_CHARACTERS])
        return Line(run_id, 0, key.template[:LINE_CHARACTERS])

    def encode(self) -> bytes:
        """Return the state, for `restore`."""
        return msgspec.msgpack.encode((self.signatures.encode(), list(self._passed.items())))

    def restore(self, state: bytes) -> None:
        """Continue after the rows that were added before `encode`. Raises `msgspec.DecodeError` for other bytes."""
        signatures, passed = msgspec.msgpack.decode(state, type=_State)
        self.signatures.restore(signatures)
        self._passed = OrderedDict(passed)


_State = tuple[bytes, list[tuple[str, list[OutputFile]]]]
