"""The names of erased runs and of their owner: how they are replaced in JSON, and found in the bytes of any object."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64decode
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from ciml.errors import IntegrityError
from ciml.events.payloads import PAYLOAD_FOLDER
from ciml.events.run_id import ERASED, erased_id
from ciml.runs.outputs import decompressed

#: A text that may be a run id: its matches are looked up, so that the time does not depend on the number of runs.
_RUN_ID = re.compile(r"(?<![a-z0-9-])[a-z0-9][a-z0-9-]*~[A-Za-z0-9_.%-]+~[1-9][0-9]*")
_RUN_ID_BYTES = re.compile(_RUN_ID.pattern.encode())
#: A native id is searched on its own only if it can hardly be a word of another meaning, such as a build number.
_NATIVE_ID = re.compile(r"[A-Za-z0-9_-]{16,}")
_SEPARATOR = re.compile("[-_]")
_NATIVE_ID_BYTES = re.compile(_NATIVE_ID.pattern.encode())
#: A character that JSON escapes by a letter, which is not a part of the word behind it.
_ESCAPE = re.compile(rb"\\[bfnrt]")
#: The keys of stored JSON whose values are accounts of people.
_ACCOUNTS = frozenset({"owner", "by", "author", "reverted_by", "up", "down", "not_helpful"})
#: What is before and after an account that is not a part of a longer one: a full stop may end a sentence.
_BEFORE = rb"(?<![A-Za-z0-9_@+])(?<![A-Za-z0-9][.-])"
_AFTER = rb"(?![A-Za-z0-9_@+]|[.-][A-Za-z0-9])"

#: The objects with messages, and a text of a message in one (`ciml.events.payloads`): value, key or header.
_WITH_MESSAGES = ("raw/_manifest/", f"raw/{PAYLOAD_FOLDER}/")
_ENCODED = re.compile(
    rb'"(?:value|key)":"([A-Za-z0-9+/]+=*)"|\["(?i:content-type|ce_|ciml_|listing-)[^"\\]*","([A-Za-z0-9+/]+=*)"\]'
)

RUN = "run id"
NATIVE = "id of the CI system"
OWNER = "owner"
#: What is left of an object whose content cannot be read.
NOT_SEARCHED = "not searched"


class Names:
    """The names that an erasure removes.

    Args:
      run_ids: ids of the runs.
      owner: account of a person; "" for none.
      shared: native ids that are no such names, because other runs have them too.
    """

    def __init__(self, run_ids: Iterable[str], owner: str = "", shared: Collection[str] = ()) -> None:
        self.run_ids = frozenset(run_ids)
        self.owner = owner
        self.shared = frozenset(shared)
        natives = (unquote(run_id.split("~")[1]) for run_id in self.run_ids)
        self.natives = frozenset(native for native in natives if _NATIVE_ID.fullmatch(native)) - self.shared
        self._native_lengths = sorted(set(map(len, self.natives)), reverse=True)

    def ids(self) -> Names:
        """Return these names without the owner."""
        return Names(self.run_ids, shared=self.shared)

    def without(self, value: Any) -> Any:
        """Return JSON in which erased names replace these: ids in any text, the owner where a key says an account."""
        return self._without(value, is_account=False)

    def _without(self, value: Any, *, is_account: bool) -> Any:
        if isinstance(value, str):
            return self._text(value, is_account=is_account)
        if isinstance(value, dict):
            return {
                self._text(name, is_account=False): self._without(item, is_account=name in _ACCOUNTS)
                for name, item in value.items()
            }
        if isinstance(value, list):
            return [self._without(item, is_account=is_account) for item in value]
        return value

    def _text(self, text: str, *, is_account: bool) -> str:
        if is_account and self.owner:
            system, colon, account = text.rpartition(":")  # of a reviewer: SYSTEM:ACCOUNT
            if account == self.owner:
                return f"{system}{colon}{ERASED}"
        if "~" in text:
            text = _RUN_ID.sub(lambda match: erased_id(match[0]) if match[0] in self.run_ids else match[0], text)
        if self.natives and len(text) >= 16:
            text = _NATIVE_ID.sub(lambda match: self._without_natives(match[0]), text)
        return text

    def _without_natives(self, word: str) -> str:
        parts: list[str] = []
        done = 0
        for start, end in self._natives_in(word):
            parts += [word[done:start], erased_native(word[start:end])]
            done = end
        return "".join((*parts, word[done:]))

    def _natives_in(self, word: str) -> Iterator[tuple[int, int]]:
        """Yield the positions of native ids in a word of `_NATIVE_ID`; dashes and underscores separate them."""
        if word in self.natives:
            yield 0, len(word)
            return
        if len(word) <= self._native_lengths[-1]:
            return
        done = 0
        starts = [0, *(match.end() for match in _SEPARATOR.finditer(word))]
        for start in starts if len(starts) > 1 else ():
            if start < done:
                continue  # within an id
            ends = (start + length for length in self._native_lengths)
            done = next(
                (end for end in ends if word[end : end + 1] in ("", "-", "_") and word[start:end] in self.natives), 0
            )
            if done:
                yield start, done

    def natives_in(self, text: str) -> set[str]:
        """Return the native ids that a text has."""
        words = _NATIVE_ID.findall(text) if self.natives else ()
        return {word[start:end] for word in words for start, end in self._natives_in(word)}

    def not_of(self, run_ids: Iterable[str]) -> Names:
        """Return these names without native ids that other runs have, too, such as a second attempt."""
        others = (run_id for run_id in run_ids if run_id not in self.run_ids) if self.natives else ()
        return Names(self.run_ids, self.owner, {native for run_id in others for native in self.natives_in(run_id)})

    def found_in(self, data: bytes) -> set[str]:
        """Return which of the names some bytes have, which may be JSON: `RUN`, `NATIVE`, `OWNER`."""
        kinds = self._found_in(data)
        return kinds | self._found_in(_ESCAPE.sub(b" ", data)) if b"\\" in data else kinds

    def _found_in(self, data: bytes) -> set[str]:
        kinds: set[str] = set()
        if any(match.decode() in self.run_ids for match in _RUN_ID_BYTES.findall(data)):
            kinds.add(RUN)
        if self.natives and any(any(self._natives_in(match.decode())) for match in _NATIVE_ID_BYTES.findall(data)):
            kinds.add(NATIVE)
        if any(form in data for form in self._owner_forms) and self._owner.search(data):
            kinds.add(OWNER)
        return kinds

    @cached_property
    def _owner_forms(self) -> tuple[bytes, ...]:
        """The owner's name as text, and as JSON has it; empty without an owner."""
        texts = (self.owner, *(json.dumps(self.owner, ensure_ascii=is_ascii)[1:-1] for is_ascii in (True, False)))
        return tuple({text.encode() for text in texts if text})

    @cached_property
    def _owner(self) -> re.Pattern[bytes]:
        return re.compile(_BEFORE + rb"(?:" + b"|".join(map(re.escape, self._owner_forms)) + rb")" + _AFTER)


def erased_native(native: str) -> str:
    """Return the text that replaces a native id. Different ids are different afterwards, too."""
    return f"{ERASED}-{hashlib.sha256(native.encode()).hexdigest()[:16]}"


def contents(path: str, data: bytes) -> Iterator[bytes]:
    """Yield the bytes of an object, and what is compressed or encoded in it.

    Args:
      path: of the object below the data root: its ending says how it is compressed.
      data: its bytes.

    Raises:
      IntegrityError: it cannot be read.
    """
    yield path.encode()
    yield data
    has_messages = path.startswith(_WITH_MESSAGES)
    if has_messages:
        yield from message_texts(data)
    try:
        if path.endswith(".zst"):
            for lines in _whole_lines(decompressed(data, path)):
                yield lines
                if has_messages:
                    yield from message_texts(lines)
        elif path.endswith(".parquet"):
            yield from _texts(pq.read_table(pa.BufferReader(data)))
        elif path.endswith(".arrow"):
            yield from _texts(pa.ipc.open_file(pa.BufferReader(data)).read_all())
    except (pa.ArrowException, OSError, ValueError) as error:
        raise IntegrityError(f"{path} cannot be searched: {error!s:.200}") from None


def message_texts(data: bytes) -> Iterator[bytes]:
    """Yield the values, keys and headers of the messages in stored JSON, which has them in base64."""
    for match in _ENCODED.finditer(data):
        with suppress(ValueError):  # of another form
            yield b64decode(match[1] or match[2], validate=True)


def _whole_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield pieces that end where a line ends, so that no name is cut."""
    line: list[bytes] = []
    for piece in pieces:
        head, newline, tail = piece.rpartition(b"\n")
        if newline:
            yield b"".join((*line, head))
            line = []
        line.append(tail)
    yield b"".join(line)


def _texts(table: pa.Table) -> Iterator[bytes]:
    """Yield the texts of a table, column by column. Its metadata are not compressed in a file."""
    for column in table.columns:
        kind = column.type
        if pa.types.is_dictionary(kind):
            column = pa.chunked_array([column.unify_dictionaries().chunk(0).dictionary]) if len(column) else column
            kind = column.type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind):
            yield b"\n".join(as_bytes(value) for value in column.to_pylist() if value is not None)
        elif pa.types.is_nested(kind):
            yield repr(column.to_pylist()).encode() if not _is_numeric(kind) else b""


def as_bytes(value: str | bytes) -> bytes:
    """Return a text as UTF-8, and bytes unchanged."""
    return value.encode() if isinstance(value, str) else value


def _is_numeric(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and pa.types.is_primitive(kind.value_type))
