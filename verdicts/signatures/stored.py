"""The failure signatures of a data root, and its recently failed tests, from its raw manifest and stored outputs.

Rows are taken in the order of the manifest, with the outcomes and the trust that they were stored with. A failed run is
compared with the latest trusted runs of its job that passed before. Templates outlive the text of an output, so the
signatures do not depend on its retention; the text alone is quoted, and is replaced by the template once it expired.

A bookmark holds the state, so the next process reads only what was stored since. In a process, `SignatureLog` holds it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial

import msgspec

from ciml.data_root import DataRoot
from ciml.errors import IntegrityError
from ciml.events.outcomes import FAILED
from ciml.events.records import OutputFile, RunFacts, change_of
from ciml.limits import MAX_RECENT_TESTS, MAX_RUN_RECENT_TESTS, MAX_SIGNATURE_JOBS, MAX_TEST_CHANGES
from ciml.manifest.bookmarks import Bookmarks
from ciml.manifest.log import ManifestLog
from ciml.runs.neighbours import NODE
from ciml.runs.outputs import read_output
from ciml.runs.run_log import RunRecord, StoredRunLog
from ciml.storage import Store
from ciml.transforms.examples.changes import digest_of
from ciml.transforms.logs.failed_tests import RecentTests, failed_tests
from ciml.transforms.logs.failure_keys import Key, keys_of, without_margin
from ciml.transforms.logs.lines import lines_of_block
from ciml.transforms.logs.profile import OutputProfile, Printed, profile_of
from ciml.transforms.logs.run_outputs import PASSING_RUNS, printed_by_passing, read_scanned, stored_printed
from ciml.transforms.logs.signals import have_kind
from ciml.transforms.logs.signatures import SIGNATURES_KIND, Failure, Line, Signatures
from ciml.transforms.logs.templates import templates_of
from ciml.transforms.logs.text_arrays import strings

_log = logging.getLogger(__name__)

#: The bookmark, next to the manifest of notes.
BOOKMARK = "_signatures"
#: Characters of a quoted line.
LINE_CHARACTERS = 200
#: Names all that the state depends on, but the masks of templates: signatures by earlier masks remain.
_KIND = (
    f"{SIGNATURES_KIND}; {PASSING_RUNS} passing runs of {MAX_SIGNATURE_JOBS} jobs; {MAX_RECENT_TESTS} tests of "
    f"{MAX_TEST_CHANGES} changes or commits, {MAX_RUN_RECENT_TESTS} of a run"
)
#: Rows after which the bookmark is replaced, and failed runs: these take the time.
_BOOKMARK_ROWS = 10_000
_BOOKMARK_FAILED = 200
#: Time after which a process that has more runs than the bookmark replaces it.
_BOOKMARK_S = 60.0
#: Profiles of jobs that are kept while a manifest is read.
_PROFILES = 20


def read_signatures(data: DataRoot) -> Signatures:
    """Return the signatures of the runs of a data root, and store them for the next reader.

    Raises:
      EngineError: the store does not answer.
      IntegrityError: the raw manifest is damaged. A damaged output is logged; its run has no signature.
    """
    with SignatureLog(data).read() as reader:
        return reader.signatures


@lru_cache(maxsize=8)
def shared_signatures(data: DataRoot) -> SignatureLog:
    """Return the process's reader of the signatures of a data root."""
    return SignatureLog(data)


class SignatureLog:
    """Keeps the signatures of a data root up to date in a process. Thread-safe.

    Args:
      data: the data root. Its folder of failures has the bookmark.
    """

    def __init__(self, data: DataRoot) -> None:
        self._raw = data.raw
        self._log = StoredRunLog(ManifestLog(data.raw))
        self._bookmarks = Bookmarks(data.failures, BOOKMARK, _KIND, partial(digest_of, self._log))
        self._reader: SignatureReader | None = None
        self._version = 0
        self._rows = 0  # that the bookmark does not have
        self._failed = 0
        self._saved_s = float("-inf")
        self._lock = threading.Lock()

    @contextmanager
    def read(self, budget_s: float | None = None) -> Iterator[SignatureReader]:
        """Yield the reader after the last delta; it is valid only within the ``with``.

        Args:
          budget_s: time after which no further delta is read; the next call continues. None reads all.

        Raises:
          EngineError: the store does not answer.
          IntegrityError: the raw manifest is damaged.
        """
        end_s = float("inf") if budget_s is None else time.monotonic() + budget_s
        with self._lock:
            if self._reader is None:
                self._reader, self._version = self._bookmarks.resume(lambda: SignatureReader(self._raw))
            self._reader.is_current = True
            for version, delta in self._log.since(self._version):
                self._failed += sum([self._reader.add(record) for record in delta.rows])
                self._rows += len(delta.rows)
                self._version = version
                if self._rows >= _BOOKMARK_ROWS or self._failed >= _BOOKMARK_FAILED:
                    self._save(self._reader)
                if time.monotonic() > end_s:
                    self._reader.is_current = False
                    break
            if self._rows and time.monotonic() - self._saved_s > _BOOKMARK_S:
                self._save(self._reader)
            yield self._reader

    def _save(self, reader: SignatureReader) -> None:
        self._bookmarks.save(self._version, reader.encode())
        self._rows = self._failed = 0
        self._saved_s = time.monotonic()


class SignatureReader:
    """Adds the rows of a raw manifest to signatures.

    Args:
      raw: the raw store.

    Attributes:
      signatures: of the rows that were added.
      tests: that failed in these rows.
      is_current: whether these are all rows; otherwise the time for reading was over.
    """

    def __init__(self, raw: Store) -> None:
        self.signatures = Signatures()
        self.tests = RecentTests()
        self.is_current = True
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
        self.tests.add(facts.project, self._failed_tests(record, printed), change_of(facts), time_of(facts))
        keys = keys_of(printed, facts.build_name, self.profile(facts.build_name))
        signature = self.signatures.add(
            Failure(
                facts.run_id,
                facts.build_name,
                change_of(facts),
                time_of(facts),
                keys,
                facts.labels.get(NODE, ""),
                facts.provider,
                record.trust.trusted,
            )
        )
        if signature is not None and signature.line is None and signature.founder == facts.run_id:
            signature.line = self._line(record, signature.key, printed)

    def _failed_tests(self, record: RunRecord, printed: Mapping[str, Printed]) -> list[str]:
        """Return the names of the tests that failed in a run; none if its text has expired."""
        if not have_kind(strings(printed), "test"):
            return []
        read = read_scanned(self._raw, record.output)
        return [] if isinstance(read, str) else [test.name for test in failed_tests(read.scanned)]

    def profile(self, job: str) -> OutputProfile:
        """Return the profile of the latest passing runs of a job. A run whose output is damaged does not count."""
        outputs = self._passed.get(job, [])
        paths = tuple(output.path for output in outputs)
        if paths in self._profiles:
            self._profiles.move_to_end(paths)
            return self._profiles[paths]
        profile = profile_of(printed_by_passing(self._raw, outputs))
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
        place = next(
            (template.place for name, template in printed.items() if without_margin(name) == key.template), None
        )
        if place is None:  # the run was stored again, with another output
            return Line(run_id, 0, key.template[:LINE_CHARACTERS])
        number = round(place * max(lines - 1, 1)) + 1
        kept_output = read_output(self._raw, record.output)
        line = None if isinstance(kept_output, str) else kept_output.line(number)
        if line is not None:
            clean = lines_of_block(line)
            if without_margin(templates_of(clean)[0].as_py()) == key.template:
                return Line(run_id, number, without_margin(clean[0].as_py())[:LINE_CHARACTERS])
        return Line(run_id, 0, key.template[:LINE_CHARACTERS])

    def encode(self) -> bytes:
        """Return the state, for `restore`."""
        return msgspec.msgpack.encode((self.signatures.encode(), list(self._passed.items()), self.tests.encode()))

    def restore(self, state: bytes) -> None:
        """Continue after the rows that were added before `encode`. Raises `msgspec.DecodeError` for other bytes."""
        signatures, passed, tests = msgspec.msgpack.decode(state, type=_State)
        self.signatures.restore(signatures)
        self._passed = OrderedDict(passed)
        self.tests.restore(tests)


_State = tuple[bytes, list[tuple[str, list[OutputFile]]], bytes]


def time_of(facts: RunFacts) -> int:
    """Return the end of a run, or else its start, epoch microseconds; 0 if neither is known."""
    return facts.end_us or facts.start_us or 0
