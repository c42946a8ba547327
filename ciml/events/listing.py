"""Listings of historical runs: JSON lines, plain or gzip, in a folder or on S3, read in blocks of whole lines.

A line is an input like any message: it may be hostile, and it has an origin (topic ``listing:<digest>``, partition 0,
its number from 0). Memory is bounded for any content: a block has few lines, and an oversized line is never held. The
file is read once to find its digest and its lines. The lines are read again, block by block, for processing.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from itertools import count
from typing import IO, Any, NamedTuple

from ciml.errors import CimlError, EngineError, RejectedInput
from ciml.events.fields import kind_of, parse_json
from ciml.events.records import Message, Origin, Outcome, RunFacts
from ciml.events.run_facts import listed_output, listed_run, run_identity
from ciml.events.run_id import check_source_name
from ciml.limits import MAX_LISTING_BYTES, MAX_LISTING_LINE_BYTES
from ciml.storage import open_store

#: Begins the topic of a listing's origins.
TOPIC = "listing:"
#: Headers of a listing's messages, by the attribute of `Reading`.
_HEADERS = {"source": "listing-source", "runs_of": "listing-runs-of", "logs": "listing-logs"}
#: Limits of a block: the number of its lines, and the bytes at which its last line ends it.
BLOCK_LINES = 500
_BLOCK_BYTES = 4 << 20
#: Number of bytes in one read.
_PIECE = 1 << 20
_BOM = b"\xef\xbb\xbf"

#: The open listings of this process, by process id, address and digest: a forked process opens its own.
_shared: dict[tuple[int, str, str], Listing] = {}
_shared_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Reading:
    """The reading options of a listing. Each dead letter stores them, so that its line can be tried again.

    Attributes:
      source: the name of the listing in the trust policy.
      runs_of: the source in the run ids: the one of the runs' own events, or another.
      logs: the folder (a full path) or ``s3://`` prefix below which every ``log_path`` lies.
    """

    source: str = "backfill"
    runs_of: str = "backfill"
    logs: str = ""

    def __post_init__(self) -> None:
        for name in (self.source, self.runs_of):
            check_source_name(name)

    def headers(self) -> tuple[tuple[str, bytes], ...]:
        """Return the headers of a listing's message."""
        return tuple((header, str(getattr(self, name)).encode()) for name, header in _HEADERS.items())

    @classmethod
    def of(cls, headers: Iterable[tuple[str, bytes | None]]) -> Reading:
        """Return the inverse of `headers`."""
        texts = {name: (value or b"").decode() for name, value in headers}
        return cls(**{name: texts[header] for name, header in _HEADERS.items() if header in texts})


def logs_root(text: str, name: str = "--logs") -> str:
    """Return the root of a listing's logs, for `Reading.logs`: an ``s3://`` prefix, or the full path of a folder.

    Args:
      text: the root as the user wrote it.
      name: of the option or argument, for the message.

    Raises:
      CimlError: if it is neither a folder nor a prefix.
    """
    if text.startswith("s3://"):
        return text
    if "://" in text or not os.path.isdir(text):
        raise CimlError(f"{name} {text}: no such folder; name a folder or an s3:// prefix")
    return os.path.realpath(text)


class Line(NamedTuple):
    """A line: its number from 0, and its bytes. A line above the size limit has its size and hex sha256 instead."""

    number: int
    data: bytes
    size: int = 0
    sha256: str = ""

    def message(self, reading: Reading) -> Message:
        """Return the line as a message, whose payload suffices to try it again."""
        return Message(self.number, self.data, reading.headers())


class ListedRun(NamedTuple):
    """A decoded line. With a fault, only the id is known.

    Attributes:
      facts: of the run.
      address: of its log.
      fault: None for a valid line.
      output: the address of the job's output; "" without one. It may be invalid: that is not a fault of the run.
    """

    facts: RunFacts
    address: str
    fault: RejectedInput | None
    output: str = ""


def decode_line(data: bytes, reading: Reading) -> ListedRun:
    """Decode the run in a line.

    Raises:
      RejectedInput: with one of `ciml.events.cloudevents.REASONS`, where the run cannot be identified.
    """
    line = parse_json(data)
    if type(line) is not dict:
        raise RejectedInput("bad_field", f"line: want an object, not {kind_of(line)}")
    identity = run_identity(line, reading.runs_of, name="build_uuid")
    try:
        facts, address = listed_run(line, identity, reading.source, reading.logs)
        if not address:
            raise RejectedInput("missing_field", "log_path")
        output = listed_output(line, reading.logs)
    except RejectedInput as rejected:
        return ListedRun(RunFacts(identity.encode(), identity.native_id, source=reading.source), "", rejected)
    return ListedRun(facts, address, None, output)


def dead_letter_of(origin: Origin, line: Line) -> Outcome:
    """Return the dead letter of a line above `MAX_LISTING_LINE_BYTES`: it holds only the size and digest."""
    payload = {"size": line.size, "sha256": line.sha256, "timestamp_ms": 0}
    detail = f"{line.size} bytes, at most {MAX_LISTING_LINE_BYTES}"
    return Outcome("dead_letter", origin, reason="too_large", detail=detail, payload=payload)


def is_listing(topic: str) -> bool:
    """Return whether an origin's topic is a listing. No Kafka topic can have such a name."""
    return topic.startswith(TOPIC)


class Block(NamedTuple):
    """Whole lines in a listing. An oversized line has its own block.

    Attributes:
      start, end: the numbers of the lines, [start, end).
      offset, size: their place in the unpacked file, bytes.
      digest: of their bytes; of no bytes for an oversized line.
      oversized: hex sha256 of an oversized line; "" for other lines.
    """

    start: int
    end: int
    offset: int
    size: int
    digest: bytes
    oversized: str = ""


class Listing:
    """An open listing. Make it with `open_listing`; reading blocks is safe from threads.

    Attributes:
      url: the address that was opened.
      digest: hex sha256 of all its bytes, unpacked.
      lines: number of lines, empty ones included.
      blocks: in order; together they hold all lines.
    """

    def __init__(self, url: str, file: IO[bytes]) -> None:
        self.url = url
        self._file = file
        digest = hashlib.sha256()
        self.blocks: Sequence[Block] = list(_blocks(_scan(file, digest)))
        self.digest = digest.hexdigest()
        self.lines = self.blocks[-1].end if self.blocks else 0

    @property
    def topic(self) -> str:
        """The topic of its lines' origins: it depends on the content, not on the name."""
        return TOPIC + self.digest[:32]

    def read(self, block: Block) -> list[Line]:
        """Return the lines of a block, without their ends and without empty lines.

        Raises:
          CimlError: the file was changed since it was opened.
        """
        if block.oversized:
            return [Line(block.start, b"", block.size, block.oversized)]
        data = os.pread(self._file.fileno(), block.size, block.offset)
        if _block_digest(data) != block.digest:
            raise CimlError(f"{self.url} changed while it was read; run the command again")
        if not block.offset:
            data = data.removeprefix(_BOM)
        lines = enumerate(data.split(b"\n"), block.start)
        return [Line(number, line) for number, line in lines if line and not line.isspace()]

    def close(self) -> None:
        self._file.close()


def open_listing(url: str) -> Listing:
    """Open a listing: a local file or an ``s3://`` object, gzip or not by its first bytes.

    A plain local file is read in place; any other is unpacked into an unnamed temporary file first.

    Raises:
      CimlError: it does not exist, is not a file, is empty, is broken gzip, or exceeds `MAX_LISTING_BYTES`.
      EngineError: the storage does not answer.
    """
    listing = Listing(url, open_unpacked(url, "listing", "a file of JSON lines", MAX_LISTING_BYTES))
    if not listing.lines:
        raise CimlError(f"{url} is empty; give a file of JSON lines")
    return listing


def shared_listing(url: str, digest: str) -> Listing:
    """Return this process's open copy of a listing; for workers.

    Raises:
      CimlError: the listing no longer has that digest. Further errors as `open_listing`.
    """
    key = (os.getpid(), url, digest)
    with _shared_lock:
        if key not in _shared:
            listing = open_listing(url)
            if listing.digest != digest:
                listing.close()
                raise CimlError(f"{url} changed while it was read; run the command again")
            _shared[key] = listing
        return _shared[key]


def _scan(file: IO[bytes], digest: Any) -> Iterator[Line]:
    """Yield the lines of a file with their ends, without the data of oversized ones; update the digest of all bytes."""
    lines = BufferedReader(file, _PIECE)  # type: ignore[type-var]  # the file is unbuffered
    for number in count():
        data = lines.readline(MAX_LISTING_LINE_BYTES + 1)
        digest.update(data)
        if not data:
            lines.detach()  # so that the file is not closed with it
            return
        if len(data) <= MAX_LISTING_LINE_BYTES or data.endswith(b"\n"):
            yield Line(number, data, len(data))
            continue
        size = len(data)
        line_digest = hashlib.sha256(data)
        while not data.endswith(b"\n") and (data := lines.readline(_PIECE)):
            digest.update(data)
            line_digest.update(data.removesuffix(b"\n"))
            size += len(data)
        yield Line(number, b"", size, line_digest.hexdigest())


def _blocks(lines: Iterable[Line]) -> Iterator[Block]:
    offset = 0
    block: list[Line] = []
    size = 0
    for line in lines:
        if block and (line.sha256 or block[-1].sha256 or len(block) >= BLOCK_LINES or size >= _BLOCK_BYTES):
            yield _block(block, offset, size)
            offset += size
            block = []
            size = 0
        block.append(line)
        size += line.size
    if block:
        yield _block(block, offset, size)


def _block(lines: Sequence[Line], offset: int, size: int) -> Block:
    digest = _block_digest(b"".join(line.data for line in lines))
    return Block(lines[0].number, lines[-1].number + 1, offset, size, digest, lines[0].sha256)


def _block_digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def open_unpacked(url: str, kind: str, expected: str, most_bytes: int) -> IO[bytes]:
    """Open a local file or an ``s3://`` object, gzip or not by its first bytes, as an unbuffered seekable file.

    Args:
      url: the address.
      kind, expected: for messages: what it is, and what to give instead.
      most_bytes: its limit unpacked, if it has to be unpacked or downloaded.

    Raises:
      CimlError: it does not exist, is not a file, is broken gzip, or exceeds the limit.
      EngineError: the storage does not answer.
    """
    folder, _, name = url.rstrip("/").rpartition("/")
    if not name or url.endswith("/"):
        raise CimlError(f"{url}: not a file; give {expected}")
    local = "://" not in url
    if local and os.path.exists(url) and not os.path.isfile(url):
        raise CimlError(f"{url} is not a regular file; give {expected}")
    store = open_store(folder or ("/" if url.startswith("/") else "."))
    try:
        packed = next(store.pieces(name), b"").startswith(b"\x1f\x8b")
        if local and not packed:
            return open(url, "rb", buffering=0)
        return _spool(url, store.pieces(name), packed, most_bytes)
    except FileNotFoundError:
        raise CimlError(f"{url}: no such {kind}") from None


def _spool(url: str, pieces: Iterator[bytes], packed: bool, most_bytes: int) -> IO[bytes]:
    """Return an unnamed temporary file with the unpacked content."""
    source = gzip.GzipFile(fileobj=_Pieces(pieces)) if packed else _Pieces(pieces)
    unpacked = tempfile.TemporaryFile(prefix="ciml-", buffering=0)  # noqa: SIM115 (it is returned open)
    try:
        _unpack(url, source, unpacked, most_bytes)
    except BaseException:
        unpacked.close()
        raise
    return unpacked


def _unpack(url: str, source: gzip.GzipFile | _Pieces, unpacked: IO[bytes], most_bytes: int) -> None:
    size = 0
    try:
        while piece := source.read(_PIECE):
            size += len(piece)
            if size > most_bytes:
                raise CimlError(f"{url} has more than {most_bytes >> 20:,} MiB; split it")
            unpacked.write(piece)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CimlError(f"{url}: broken gzip: {error}") from None
    except OSError as error:
        raise EngineError(f"cannot unpack {url} into {tempfile.gettempdir()}: {error.strerror}") from error
    unpacked.seek(0)


class _Pieces(RawIOBase):
    """Chunks of bytes as a file that can only be read forwards."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._unread = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._unread = self._unread or next(filter(None, self._pieces), b"")
        size = min(len(buffer), len(self._unread))
        buffer[:size] = self._unread[:size]
        self._unread = self._unread[size:]
        return size
