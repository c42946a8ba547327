"""The stored output of jobs: an object of text next to each run, one of its templates, and their retention.

    outputs/text/job=<job>/date=<day>/<run id>.<digest>.zst        lines without secrets
    outputs/templates/job=<job>/date=<day>/<run id>.<digest>.zst   their templates, with counts and first lines
    outputs/retention.json                                         the day before which texts were removed

The row of a run names its output (`OutputFile`), with the digest of the text. Both objects are created before the
commit, and named by that digest. The folder is that of the run's telemetry.
"""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Iterable, Iterator
from datetime import date
from itertools import islice
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.events.records import OutputFile, RawFile
from ciml.manifest.log import ManifestLog
from ciml.runs.pack_index import RUNS, run_of, split_path
from ciml.runs.run_log import RunDelta, StoredRunLog
from ciml.storage import Entry, Store
from ciml.storage.json_files import read_object, seal

OUTPUTS = "outputs"
TEXTS = f"{OUTPUTS}/text"
TEMPLATES = f"{OUTPUTS}/templates"
#: The day before which texts were removed.
RETENTION_PATH = f"{OUTPUTS}/retention.json"
#: Why an output cannot be read, apart from the reasons for which it was not stored.
NO_OUTPUT = "no_output"
EXPIRED = "expired"
_SUFFIX = ".zst"
#: Digits of the digest at the beginning of templates.
_DIGITS = 64
_NAME_DIGITS = 16


class KeptOutput(NamedTuple):
    """What is kept of an output: whole lines.

    Attributes:
      data: the lines, in their order.
      head_lines: the number of lines before the gap; of all lines without one.
      dropped_lines: the number of lines in the gap.
      dropped_bytes: their size.
    """

    data: bytes
    head_lines: int
    dropped_lines: int = 0
    dropped_bytes: int = 0

    def number(self, kept: int) -> int:
        """Return the number that a line has in the whole output, given its number in ``data``; both start at 1."""
        return kept if kept <= self.head_lines else kept + self.dropped_lines

    def line(self, number: int) -> bytes | None:
        """Return a line, given its number in the whole output; None if it was dropped, or there is none."""
        if number < 1 or self.head_lines < number <= self.head_lines + self.dropped_lines:
            return None
        index = number - 1 if number <= self.head_lines else number - 1 - self.dropped_lines
        line = next(islice(io.BytesIO(self.data), index, None), None)
        return None if line is None else line.rstrip(b"\n")


class OutputTemplates(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """The templates of an output, in the order of their first lines. The empty line has none.

    Attributes:
      templates: n of them.
      counts: int [n], the number of lines of each; of all lines, also of those that were dropped.
      first_lines: int [n], the number of the first line of each, counted from 1.
      lines: the number of all lines.
      others: the number of lines that are empty, or whose template is beyond the limit.
      masks: names the masks by which they were made (`ciml.transforms.logs.templates.MASKS`).
    """

    templates: tuple[str, ...]
    counts: tuple[int, ...]
    first_lines: tuple[int, ...]
    lines: int
    others: int
    masks: str
    format: int = 1

    def encode(self) -> bytes:
        """Return the compressed form, which `read_templates` decodes: a digest, and JSON."""
        data = msgspec.json.encode(self)
        return compress(hashlib.sha256(data).hexdigest().encode() + data)


class PreparedOutput(NamedTuple):
    """An output to be stored: its compressed text, its templates, and its record without a path."""

    text: bytes
    templates: bytes
    file: OutputFile


def store_output(raw: Store, run: RawFile, output: PreparedOutput) -> OutputFile:
    """Write the objects of an output, and return its record. Objects of the same text exist already after a retry.

    Raises:
      EngineError: the store does not answer.
    """
    path = output_path(run, output.file.digest)
    raw.create(templates_path(path), output.templates)
    raw.create(path, output.text)
    return output.file.replace(path=path)


def output_path(run: RawFile, digest: str) -> str:
    """Return the path of a run's output, given its raw object and the digest of the text."""
    parts = split_path(run.path)
    if parts is None:
        raise IntegrityError(f"{run.path} is not the path of a run")
    folder, name = parts
    return f"{TEXTS}/{folder}/{run_of(name)}.{digest[:_NAME_DIGITS]}{_SUFFIX}"


def templates_path(path: str) -> str:
    """Return the path of the templates of a text."""
    return TEMPLATES + path.removeprefix(TEXTS)


def split_output(path: str) -> tuple[str, str] | None:
    """Return (folder, run id) of the path of a text; None for another path."""
    parts = split_path(f"{RUNS}/{path.removeprefix(f'{TEXTS}/')}")
    if parts is None or not path.startswith(f"{TEXTS}/") or not path.endswith(_SUFFIX):
        return None
    folder, name = parts
    return folder, name.removesuffix(_SUFFIX).rpartition(".")[0]


def read_output(raw: Store, output: OutputFile | None) -> KeptOutput | str:
    """Return the stored output that the row of a run names, or the reason why there is none.

    Returns:
      The output; or `NO_OUTPUT` if none was looked for, the reason for which it could not be fetched, or `EXPIRED`.

    Raises:
      IntegrityError: it is damaged, or lost before its time.
      EngineError: the store does not answer.
    """
    if output is None or output.missing:
        return NO_OUTPUT if output is None else output.missing
    try:
        data = raw.read(output.path)
    except FileNotFoundError:
        if is_expired(raw, output.path):
            return EXPIRED
        raise IntegrityError(f"{raw.url(output.path)} is in the manifest but does not exist") from None
    text = b"".join(decompressed(data, raw.url(output.path)))
    if hashlib.sha256(text).hexdigest() != output.digest:
        raise IntegrityError(f"{raw.url(output.path)} differs from its digest; restore a backup")
    return KeptOutput(text, output.head_lines or output.lines, output.dropped_lines, output.dropped_bytes)


def read_templates(raw: Store, output: OutputFile | None) -> OutputTemplates | str:
    """Return the templates of a run's output, or the reason why there are none; see `read_output`.

    Templates do not expire with the text.
    """
    if output is None or output.missing:
        return NO_OUTPUT if output is None else output.missing
    path = templates_path(output.path)
    try:
        data = raw.read(path)
    except FileNotFoundError:
        raise IntegrityError(f"{raw.url(path)} does not exist; restore a backup") from None
    try:
        content = b"".join(decompressed(data, raw.url(path)))
        if hashlib.sha256(content[_DIGITS:]).hexdigest().encode() != content[:_DIGITS]:
            raise IntegrityError(f"{raw.url(path)} differs from its digest; restore a backup")
        return msgspec.json.decode(content[_DIGITS:], type=OutputTemplates)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise IntegrityError(f"{raw.url(path)} cannot be read ({error!s:.200}); restore a backup") from None


def verify_output(raw: Store, output: OutputFile | None) -> str:
    """Check a run's output and its templates: existence and digest. Return the fault in one line, "" without one."""
    try:
        read_templates(raw, output)
        read_output(raw, output)
    except IntegrityError as error:
        return str(error)
    return ""


class _Names:
    """The texts of outputs that rows name, 8 bytes each."""

    def __init__(self, deltas: Iterable[RunDelta]) -> None:
        paths = (row.output.path for delta in deltas for row in delta.rows if row.output is not None)
        self._hashes = np.unique(np.array(array("Q", map(path_hash, paths)), np.uint64))

    def __contains__(self, path: str) -> bool:
        target = path_hash(path)
        index = int(np.searchsorted(self._hashes, np.uint64(target)))
        return index < len(self._hashes) and int(self._hashes[index]) == target


def path_hash(text: str) -> int:
    """Return a hash of a path, of 64 bits."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def unnamed_outputs(raw: Store) -> list[Entry]:
    """Return the texts and templates of outputs that no row names: those of killed workers, and of late commits.

    Raises:
      EngineError: the store does not answer.
    """
    manifest = ManifestLog(raw)
    version = manifest.end()
    log = StoredRunLog(manifest)
    names = _Names(delta for _, delta in log.since(0))
    entries = [
        entry for prefix in (TEXTS, TEMPLATES) for entry in raw.entries(prefix) if _text_of(entry.path) not in names
    ]
    later_names = _Names(delta for _, delta in log.since(version))  # committed while the objects were listed
    return [entry for entry in entries if _text_of(entry.path) not in later_names]


def _text_of(path: str) -> str:
    """Return the path of a text, given its own or that of its templates."""
    return TEXTS + path.removeprefix(TEMPLATES) if path.startswith(TEMPLATES) else path


def compress(data: bytes) -> bytes:
    """Return a frame of zstd. Frames in succession are a file of zstd, too."""
    frame: bytes = pa.Codec("zstd").compress(data, asbytes=True)
    return frame


def decompressed(data: bytes, url: str) -> Iterator[bytes]:
    """Yield the content of frames of zstd in pieces. Raises `IntegrityError`, with the address, if they are damaged."""
    try:
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            while piece := stream.read(1 << 20):
                yield piece
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"{url} cannot be read as zstd ({error!s:.200}); restore a backup") from None


def is_expired(raw: Store, path: str) -> bool:
    """Return whether the retention has removed an output, or may be about to."""
    before = expired_before(raw)
    return bool(before) and day_of(path.rpartition("/")[0]) < before


def expired_before(raw: Store) -> str:
    """Return the day, as YYYY-MM-DD, before which texts were removed; "" if none was."""
    try:
        value = read_object(raw.read(RETENTION_PATH), raw.url(RETENTION_PATH))
    except FileNotFoundError:
        return ""
    return str(value.get("before", ""))


def expire_before(raw: Store, day: date) -> str:
    """Record that texts of earlier days are removed, before any is. Return the day as text.

    Raises:
      EngineError: the store does not answer.
    """
    text = day.isoformat()
    raw.replace(RETENTION_PATH, seal(canonical_json({"before": max(text, expired_before(raw))})))
    return text


def day_of(folder: str) -> str:
    """Return the day of a folder, as YYYY-MM-DD: such texts sort by time."""
    return folder.rpartition("/date=")[2]
