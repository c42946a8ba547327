"""The runs that a raw manifest records, typed: what data sets read of it, and no more.

A delta is decoded straight into records. By way of dicts it takes four times as long, and five times the memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

from ciml.errors import IntegrityError
from ciml.manifests import ManifestLog
from ciml.records import Mention, RawFile, Record, Trust


class RunRecord(Record, frozen=True, omit_defaults=True, gc=False):
    """A raw row: one of a delta's ``runs``."""

    mention: Mention
    file: RawFile
    trust: Trust | None = None


class Correction(Record, frozen=True, gc=False):
    """One of a delta's ``corrections``: what an event said of a run that was stored before."""

    mention: Mention
    trust: Trust | None = None

    @property
    def fix(self) -> tuple[str, str]:
        """The outcome, and the producer's own word for it."""
        return self.mention.outcome or "", self.mention.result

    @property
    def trusted(self) -> bool:
        """Whether it may correct what is trusted."""
        return self.trust is None or self.trust.trusted


class RunDelta(Record, frozen=True, gc=False):
    """What a delta of a raw manifest says of runs."""

    runs: tuple[RunRecord, ...] = ()
    corrections: tuple[Correction, ...] = ()
    version: int = 0


class RunLog(Protocol):
    """What has the records of runs: a raw manifest (`StoredRunLog`), or what stands for one."""

    def since(self, version: int) -> Iterator[tuple[int, RunDelta]]:
        """The deltas after a version, with theirs."""

    def read(self, version: int) -> RunDelta:
        """One delta; `FileNotFoundError` where there is none."""

    def url(self) -> str:
        """Where it is, for messages."""


class StoredRunLog:
    """A raw manifest. Raises `IntegrityError` for a delta that is broken."""

    def __init__(self, log: ManifestLog) -> None:
        self._log = log
        self._decoder = msgspec.json.Decoder(RunDelta)

    def since(self, version: int) -> Iterator[tuple[int, RunDelta]]:
        for number, data in self._log.raw_since(version):
            yield number, self._parse(number, data)

    def read(self, version: int) -> RunDelta:
        return self._parse(version, self._log.read_raw(version))

    def url(self) -> str:
        return self._log.url()

    def _parse(self, version: int, data: bytes) -> RunDelta:
        where = self._log.store.url(self._log.path(version))
        try:
            delta = self._decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise IntegrityError(f"{where} is no delta of a raw manifest: restore it from a copy ({error})") from None
        if delta.version != version:
            raise IntegrityError(f"{where} does not hold version {version}")
        return delta
