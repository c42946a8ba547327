"""The names of an erasure: replaced wherever JSON has them, and found in any object, however it is stored."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.events.payloads import payload_of
from ciml.events.records import Message
from ciml.events.run_id import erased_id
from ciml.services.stored.names import NATIVE, OWNER, RUN, Names, contents, erased_native

ID, SHORT, KEPT = f"zuul~{'a' * 16}~1", "zuul~b~2", "zuul~b~3"
NAMES = Names([ID, SHORT], "alice.s")
REPLACED = erased_native("a" * 16)


@pytest.mark.parametrize(
    ("value", "without"),
    [
        (f"as {SHORT}, {ID} and {KEPT}", f"as {erased_id(SHORT)}, {erased_id(ID)} and {KEPT}"),
        ("a" * 16, REPLACED),
        ("a" * 15, "a" * 15),  # may be a word
        (f"{'a' * 16}/log {'a' * 16}", f"{REPLACED}/log {REPLACED}"),
        (f"log-{'a' * 16}_{'a' * 16}-1 {'a' * 17}", f"log-{REPLACED}_{REPLACED}-1 {'a' * 17}"),
        ({SHORT: 1, "b": [SHORT]}, {erased_id(SHORT): 1, "b": [erased_id(SHORT)]}),
        ({"owner": "alice.s", "text": "alice.s"}, {"owner": "erased", "text": "alice.s"}),
        ({"up": ["gerrit:alice.s", "gerrit:bob"]}, {"up": ["gerrit:erased", "gerrit:bob"]}),
    ],
)
def test_names_are_replaced_in_json(value: Any, without: Any) -> None:
    assert NAMES.without(value) == without
    assert NAMES.without(without) == without


def test_a_word_may_have_any_number_of_names() -> None:
    native = "a" * 16
    assert NAMES.without("-".join([native] * 5000)) == "-".join([REPLACED] * 5000)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (f"{KEPT} {SHORT}", {RUN}),
        ("b/" + "a" * 16, {NATIVE}),
        ("log-" + "a" * 16 + "_1", {NATIVE}),
        ("log-" + "a" * 17, set()),
        ("by alice.s, with alice.smith", {OWNER}),
        ("by alice.s. (-alice.s-)", {OWNER}),
        ("alice.smith malice.s alice-s a x.alice.s alice.s-x alice.s@x", set()),
        (json.dumps(f"by:\nalice.s\n{SHORT}"), {OWNER, RUN}),
        (f"{ID} alice.s", {RUN, NATIVE, OWNER}),
    ],
)
def test_names_are_found_in_bytes(data: str, found: set[str]) -> None:
    assert NAMES.found_in(data.encode()) == found


def test_an_id_that_another_run_has_is_no_name() -> None:
    shared = Names([ID], shared={"a" * 16})
    assert shared.found_in(f"{ID[:-1]}2 {'a' * 16}".encode()) == set()
    assert shared.without(f"{ID} {ID[:-1]}2") == f"{erased_id(ID)} {ID[:-1]}2"


def test_a_backslash_may_also_be_that_of_a_path() -> None:
    assert Names(["backfill~b~1"]).found_in(rb"C:\logs\backfill~b~1") == {RUN}


@pytest.mark.parametrize("owner", ["jürgen", "corp\\bob"])
def test_an_owner_is_found_as_json_escapes_it(owner: str) -> None:
    for text in (owner, json.dumps(owner), json.dumps(owner, ensure_ascii=False)):
        assert Names((), owner).found_in(text.encode()) == {OWNER}


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


@pytest.mark.parametrize(
    ("path", "table"),
    [
        ("tables/alice.s/x.parquet", pa.table({"x": [1]})),
        ("x.parquet", pa.table({"x": ["bob", None, "alice.s"]})),
        ("x.parquet", pa.table({"x": pa.array(["bob", "alice.s"]).dictionary_encode()})),
        ("x.parquet", pa.table({"x": [["bob", "alice.s"]], "y": [[1.0]]})),
        ("x.parquet", pa.table({"x": [1]}).replace_schema_metadata({"by": "alice.s"})),
    ],
)
def test_each_part_of_an_object_is_searched(path: str, table: pa.Table) -> None:
    assert set().union(*map(NAMES.found_in, contents(path, parquet(table)))) == {OWNER}


def test_a_name_across_two_pieces_of_a_compressed_object_is_found() -> None:
    text = b"-\n" * (1 << 19) + b"alice.s"  # `ciml.runs.outputs.decompressed` reads pieces of a MiB
    for shift in range(7):
        data = pa.compress(text[shift:], "zstd", asbytes=True)
        assert set().union(*map(NAMES.found_in, contents("x.zst", data))) == {OWNER}


@pytest.mark.parametrize("path", ["raw/_manifest/000000000001.json", "raw/letters/1.json"])
@pytest.mark.parametrize("part", ["value", "key", "headers"])
def test_messages_in_the_raw_store_are_decoded(path: str, part: str) -> None:
    message: dict[str, Any] = {"value": b"", "key": b"", "headers": ()}
    message[part] = (("ce_subject", b"alice.s"),) if part == "headers" else b"by alice.s"
    payload = payload_of(Message(0, timestamp_ms=7, **message))
    assert set().union(*map(NAMES.found_in, contents(path, canonical_json(payload)))) == {OWNER}


@pytest.mark.parametrize("path", ["x.parquet", "x.arrow", "x.zst"])
def test_what_cannot_be_searched_is_an_error(path: str) -> None:
    with pytest.raises(IntegrityError):
        list(contents(path, b"damaged"))
