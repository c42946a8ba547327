"""``ciml migrate``: stores of each released version are read completely, and damage of each kind of object is named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ciml.data_root import DataRoot
from ciml.digest import canonical_json
from ciml.errors import IntegrityError
from ciml.events.records import Batch, OffsetRange, Origin, Outcome
from ciml.manifest.checkpoints import Checkpoints
from ciml.manifest.log import ManifestLog
from ciml.manifest.verify import verify_log
from ciml.pipelines.ingest.committer import committer
from ciml.runs.state import RAW, open_raw
from ciml.runs.tables.publish import publish_tables
from ciml.services.stored.examine import examine, rewrite
from ciml.services.stored.findings import Kind, kind_of
from ciml.serving.predict import answers
from ciml.serving.registry import Registry
from ciml.storage import LocalStore, open_store
from ciml.transforms.examples import changes
from tests.cli.calling import ciml
from tests.durable import Steps, each_step
from tests.growth import assert_linear
from tests.tier import part

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden"
#: Data roots that released versions wrote, and one of the present version with the kinds that they lack.
SAMPLES = {
    "data_root": "data_root/data",
    **{name: name for name in ("checkpoints", "stored", "present", "packs", "outputs", "erasures")},
}
#: A checkpoint without trust is deleted first, and the new one appears when all that it needs is there.
REWRITE = [
    "delete checkpoints/000000001000.json",
    *["delete index/*.arrow"] * 3,
    "create segments/000000/000000001000.jsonl.zst",
    *["create index/*.arrow"] * 3,
    "create checkpoints/000000001000.json",
]
NOT_READ = {"derived", "unreferenced", "scratch", "other"}
#: Kinds whose objects are JSON without a digest: another letter in a text is another text.
NO_DIGEST = {
    "raw deltas", "pack deltas", "data set deltas", "experiments", "results", "sweeps", "exclusions",
    "training metrics", "registry deltas", "predictions deltas", "feedback deltas", "corrections",
    "failure notes", "erasures",
}  # fmt: skip
#: Kinds whose objects may be gone: nothing else names them, or the next that needs one makes it again.
MAY_BE_GONE = {
    "checkpoints", "results", "exclusions", "snapshots", "analyses", "training metrics", "feedback deltas",
    "corrections", "failure notes", "erasures",
}  # fmt: skip


def migrate(*words: str | Path, code: int = 0) -> str:
    return ciml("migrate", *words, code=code).output


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def root(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a sample, which a test may change."""

    def copied(sample: str) -> Path:
        return Path(shutil.copytree(GOLDEN / SAMPLES[sample], tmp_path / sample))

    return copied


# ---- stores of released versions ----


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_store_is_read_completely_and_nothing_in_it_changes(sample: str, root: Callable[[str], Path]) -> None:
    data = root(sample)
    before = contents(data)
    found = json.loads(migrate(data, "--json"))
    assert contents(data) == before
    assert (found["broken"], found["faults"]) == (0, [])
    for kind, one in found["kinds"].items():
        assert kind != "other"
        assert one["verified"] == (None if kind in NOT_READ else one["objects"]), kind
    assert sum(one["objects"] for one in found["kinds"].values()) == len(before)


def test_each_kind_and_format_has_a_sample() -> None:
    """As the table of docs/compatibility.md says."""
    seen: dict[str, set[str]] = {}
    for sample in SAMPLES.values():
        found = examine(DataRoot.open(GOLDEN / sample))
        for kind in found.present():
            seen.setdefault(kind, set()).update(found.formats_of(kind))
    text = (ROOT / "docs" / "compatibility.md").read_text()
    table = re.findall(r"^\| ([a-z ]+) \| ([0-9, ]+) \| ([^|]+) \| ([^|]+) \| `([^`]+)` \|$", text, re.M)
    documented = {name: set(formats.split(", ")) for name, formats, *_ in table}
    assert documented == {kind: formats for kind, formats in seen.items() if kind not in NOT_READ}
    assert documented.keys() == set(Kind) - NOT_READ
    for name, _, _, _, sample in table:
        files = [path for path in GOLDEN.glob(sample) if path.is_file()]
        below = [str(path.relative_to(GOLDEN / root)) for path in files for root in SAMPLES.values()
                 if path.is_relative_to(GOLDEN / root)]  # fmt: skip
        assert files, name
        assert {kind_of(path) for path in below} == {name}


def test_checkpoints_of_version_0_1_are_made_again_with_trust(root: Callable[[str], Path]) -> None:
    data = root("checkpoints")
    assert "1 to rewrite" not in (shown := migrate(data))
    assert "4 to rewrite (--apply)" in shown
    before = contents(data)
    assert "rewritten: 1 checkpoints, verified again" in migrate(data, "--apply").replace("\n", " ")
    after = contents(data)
    derived = re.compile(r"raw/_manifest/(checkpoints|index)/.+")
    assert {path for path in before if before[path] != after.get(path)} <= set(filter(derived.fullmatch, before))
    assert set(after) - set(before) <= set(filter(derived.fullmatch, after))
    assert {kind for kind, one in json.loads(migrate(data, "--json"))["kinds"].items() if one["to_rewrite"]} == set()
    assert "nothing to rewrite" in migrate(data, "--apply")
    for place, trusted in ((GOLDEN / "checkpoints", [True, True, True]), (data, [True, False, True])):
        index = open_raw(LocalStore(place / "raw"))[1].index
        runs = [index.run(f"zuul~{number}~1") for number in (1, 2, 3)]
        assert [run is not None and run.trusted for run in runs] == trusted


@pytest.mark.parametrize(
    ("name", "faults"),
    [
        (re.compile(r"tables/.+\.parquet"), []),  # a publication removes them
        (re.compile(r"experiments/.+/predictions-.+\.parquet"), ["BROKEN"]),
    ],
)
def test_an_object_that_is_removed_meanwhile(
    name: re.Pattern[str], faults: list[str], root: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its listing and its reading."""
    data = root("data_root")
    read = LocalStore.read

    def read_late(self: LocalStore, path: str) -> bytes:
        if name.search(self.url(path).removeprefix(f"{data}/")):
            self.delete(path)
        return read(self, path)

    list(publish_tables(DataRoot.open(data)))
    listed = [path for path in data.rglob("*.parquet") if name.search(str(path.relative_to(data)))]
    monkeypatch.setattr(LocalStore, "read", read_late)
    assert [line.split()[0] for line in examine(DataRoot.open(data)).lines() if "No such file" in line] == faults
    assert any(not path.exists() for path in listed)


@pytest.mark.whole
def test_a_rewrite_dies_before_each_of_its_steps_and_is_completed(root: Callable[[str], Path]) -> None:
    data = root("checkpoints")
    shutil.rmtree(data / "predictions")
    found = examine(DataRoot.open(data))
    whole = shutil.copytree(data, data.parent / "whole")
    with Steps(str(whole / "raw/_manifest")).recording() as steps:
        rewrite(DataRoot.open(whole), found)
    assert steps.steps == REWRITE
    for index in each_step(len(steps.steps) - 1, few=False):
        place = Path(shutil.copytree(data, data.parent / f"try-{index}"))
        with Steps(str(place / "raw/_manifest"), index).recording():
            rewrite(DataRoot.open(place), found)
        log = ManifestLog(LocalStore(place / "raw"))
        if index % 2:
            while Checkpoints(log, RAW).maintain():  # a service does it, where no checkpoint is left
                pass
        else:
            assert rewrite(DataRoot.open(place), found) == 1
        assert log.checkpoints() == [1000]
        faults = {fault.kind for fault in verify_log(log, RAW)}
        assert faults <= ({"unsealed"} if index else {"unsealed", "older"})
        shutil.rmtree(place)


@pytest.mark.parametrize("damaged", [Kind.RAW_DELTAS, Kind.SEGMENTS])
def test_a_damaged_manifest_is_not_rewritten(damaged: Kind, root: Callable[[str], Path]) -> None:
    data = root("checkpoints")
    (segment,) = (data / "raw/_manifest/segments").rglob("*.zst")
    segment.write_bytes(segment.read_bytes()[:-3])
    before = contents(data)
    assert f"BROKEN {segment}" in migrate(data, "--apply", code=4)
    assert contents(data) == before
    data = root("data_root")
    found, before = examine(DataRoot.open(data)), contents(data)
    found.rewritten["checkpoints"] = 1
    found.add_fault(damaged, "counts differ")
    with pytest.raises(IntegrityError, match=r"is damaged, so it was not rewritten; restore a backup"):
        rewrite(DataRoot.open(data), found)
    assert contents(data) == before


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("raw/packs/job=a/date=2026-11-24/0123456789abcdef0123456789abcdef.parquet", "packs"),
        ("raw/_delta_log/00000000000000000001.json", "derived"),
        ("raw/packs/_delta_log/00000000000000000010.checkpoint.parquet", "derived"),
        ("datasets/cpu/_delta_log/00000000000000000001.json", "derived"),
        ("datasets/cpu/_definition.toml", "derived"),
        (f"datasets/cpu/{changes.BOOKMARK}", "derived"),
        (f"predictions/{answers.BOOKMARK}", "derived"),
        ("datasets/cpu/notes.txt", "other"),
        ("trainer/status/work/0123/model/saved_model.pb", "scratch"),
        ("models/status/staging-2-abcd/saved_model.pb", "scratch"),
        ("models/status/12/assets/definition.json", "models"),
        ("models/status/latest/saved_model.pb", "other"),
        ("feedback/corrections/_manifest/000000000001.json", "corrections"),
        ("predictions/_manifest/segments/000000/000000001000.jsonl.zst", "segments"),
        ("segments/000000/000000001000.jsonl.zst", "other"),
    ],
)
def test_the_kind_follows_from_the_path(path: str, kind: Kind) -> None:
    assert kind_of(path) == kind


# ---- damage ----

#: For each kind, a sample that has it.
OF = {
    kind: sample
    for sample, folder in reversed(SAMPLES.items())
    for path in sorted((GOLDEN / folder).rglob("*"))
    if path.is_file() and (kind := kind_of(str(path.relative_to(GOLDEN / folder)))) not in NOT_READ
}


def flipped(data: bytes) -> bytes:
    """Another byte in the middle."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = [
    (kind, damage)
    for kind in Kind
    for damage in ("flipped", "cut", "empty", "other", "gone")
    if kind not in NOT_READ
    and not (damage == "flipped" and kind in NO_DIGEST)
    and not (damage == "gone" and kind in MAY_BE_GONE)
    and (kind, damage) not in (("training metrics", "other"), ("pack deltas", "gone"))  # see the next test
]


def _beside(kind: Kind) -> tuple[str, ...]:
    """The folders of a data root that are read with a kind of object."""
    folder = kind.pattern.pattern.partition("/")[0]
    several = {
        "datasets": ("raw", "datasets"),
        "models": ("registry", "models"),
        "(raw|predictions|feedback)": ("raw",),
    }
    return several.get(folder, (folder,))


@pytest.mark.parametrize(("kind", "damage"), part(DAMAGE, 0, 3))
def test_damage_of_each_kind_is_named(kind: Kind, damage: str, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for folder in _beside(kind):  # the others are read by other cases
        if (source := GOLDEN / SAMPLES[OF[kind]] / folder).exists():
            shutil.copytree(source, data / folder)
    files = [path for path in sorted(data.rglob("*")) if path.is_file() and path.name != "0.json"]
    path = next(path for path in files if kind_of(str(path.relative_to(data))) == kind)
    good = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"flipped": flipped(good), "cut": good[:-1], "empty": b"", "other": b"{}"}[damage])
    found = json.loads(migrate(data, "--json", code=4))
    if damage == "gone":  # what names it is broken
        assert found["faults"]
        return
    assert found["kinds"][kind]["broken"] >= 1, found["faults"]
    names = {path.name, path.stem, path.parent.name, path.parent.parent.name} - {"_manifest"}
    assert any(name in line for line in found["faults"] for name in names), found["faults"]


def test_objects_that_are_gone_or_not_of_ciml_are_named(root: Callable[[str], Path]) -> None:
    data = root("present")
    for path in data.rglob("packs/*/*/_manifest/*.json"):
        path.unlink()  # where nothing was packed, the next compaction writes the manifest again
    found = json.loads(migrate(data, "--json", code=4))
    assert found["kinds"]["runs"]["broken"] == 4
    assert all("is in the manifest but does not exist" in line for line in found["faults"])
    data = root("data_root")
    shutil.rmtree(data / "datasets/provider/_manifest")
    found = json.loads(migrate(data, "--json", code=4))
    (fault,) = found["faults"]
    assert fault.startswith("data set provider: no data set 'provider' in")
    assert (found["kinds"]["data set deltas"]["broken"], found["kinds"]["examples"]["verified"]) == (1, 0)
    data = root("stored")
    (data / "notes.txt").write_text("x")
    shown = migrate(data)
    assert f"note: {data}/notes.txt was not written by ciml; it is not read" in shown.replace("\n", " ")


def test_a_malformed_record_costs_only_its_own_manifest(root: Callable[[str], Path]) -> None:
    """JSON with the right version, and without what the kind of manifest needs."""
    data = root("data_root")
    (data / "registry/provider/_manifest/000000000002.json").write_text('{"version":2,"time_us":1}')
    (data / "datasets/provider/_manifest/000000000003.json").write_text('{"version":3,"spans":[{"span":"x"}]}')
    found = json.loads(migrate(data, "--json", code=4))
    assert {kind for kind, one in found["kinds"].items() if one["broken"]} == {"registry deltas", "data set deltas"}
    assert found["kinds"]["models"]["verified"] is None
    assert found["kinds"]["runs"]["verified"] == 19


def test_a_check_that_ends_early_has_verified_nothing(
    root: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise IntegrityError("no more")

    monkeypatch.setattr("ciml.services.stored.examine.verify_raw", fails)
    found = examine(DataRoot.open(root("data_root")))
    assert [found.verified(kind) for kind in (Kind.RAW_DELTAS, Kind.RUNS)] == [None, None]
    assert found.verified(Kind.MODELS) == found.objects[Kind.MODELS]
    assert [line for line in found.findings if "no more" in line] != []


def test_the_message_of_each_dead_letter_is_read(tmp_path: Path) -> None:
    """Also of those that are in the delta itself, of which no two share a path."""
    data = DataRoot.open(tmp_path)
    for offset, value in enumerate(("b2s=", 3, "b2s=", 4)):
        payload = {"value": value, "headers": [], "timestamp_ms": 1}
        outcome = Outcome("dead_letter", Origin("t", 0, offset), f"e{offset}", reason="bad_json", payload=payload)
        committer(data.raw).commit([Batch(OffsetRange("t", "", 0, offset, offset + 1), settled=[outcome])])
    faults = examine(data).findings
    found = [re.findall(r"version \d, a dead letter", line) for line in faults]
    assert found == [["version 2, a dead letter"], ["version 4, a dead letter"]], faults


def test_where_there_is_nothing(tmp_path: Path) -> None:
    assert "no data at" in migrate(tmp_path / "none", code=2)
    assert "give a data root: ciml migrate DATA" in ciml("migrate", code=2, env={"CIML_DATA_PATH": None}).output


@pytest.mark.parametrize(
    "words",
    [["--data-path", "GOLDEN", "migrate"], ["migrate", "--data-path", "GOLDEN"], ["migrate", "GOLDEN"]],
    ids=["before", "option", "argument"],
)
def test_the_data_path_is_that_of_the_line_and_not_of_the_environment(words: list[str]) -> None:
    words = [str(GOLDEN / "stored") if word == "GOLDEN" else word for word in words]
    assert "14 objects: all readable" in ciml(*words, env={"CIML_DATA_PATH": "none"}).output


@pytest.mark.engines
def test_a_store_on_s3_is_rewritten_and_its_damage_named(s3: Any) -> None:
    url = f"{s3.bucket()}/data"
    store = open_store(url)
    for path, content in contents(GOLDEN / "checkpoints").items():
        store.create(path, content)
    assert "4 to rewrite (--apply)" in migrate(url)
    assert "rewritten: 1 checkpoints" in migrate(url, "--apply").replace("\n", " ")
    assert "nothing to rewrite" in migrate(url)
    segment = next(path for path in store.list("raw") if "segments" in path)
    store.replace(segment, flipped(store.read(segment)))
    assert f"{url}/{segment}" in migrate(url, code=4).replace("\n", "")


def test_time_is_linear_in_the_objects(tmp_path: Path) -> None:
    def make(size: int) -> DataRoot:
        folder = tmp_path / str(size)
        for number in range(size):
            name = f"e{number}"
            for path, text in (
                (folder / f"trainer/m{number % 10}/metrics/{number}.json", "{}"),
                (folder / f"experiments/{name}/experiment.json", json.dumps({"name": name})),
            ):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        return DataRoot.open(folder)

    assert_linear(make, examine, 50)


def test_deltas_that_an_older_version_wrote_after_an_upgrade_get_a_digest(root: Callable[[str], Path]) -> None:
    data = root("data_root")
    registry = Registry(DataRoot.open(data), "provider")
    registry.commit(lambda state: {"kind": "labels", "labels": {"canary": 1}})
    delta = {"kind": "labels", "labels": {}, "removed": ["canary"], "time_us": 1, "version": 6}
    (data / "registry/provider/_manifest/000000000006.json").write_bytes(canonical_json(delta))
    assert "000000000006.json has no digest, but the delta before it has" in migrate(data, code=4).replace("\n", " ")
    assert migrate(data, "--apply").startswith("1 deltas of an older version have a digest now.")
    assert "nothing to rewrite" in migrate(data)
    assert Registry(DataRoot.open(data), "provider").state.labels == {"stable": 1}


def test_a_log_with_damage_gets_no_digest_and_all_faults_are_listed(root: Callable[[str], Path]) -> None:
    data = root("checkpoints")
    shutil.copytree(GOLDEN / "data_root/data/registry", data / "registry")
    registry = Registry(DataRoot.open(data), "provider")
    registry.commit(lambda state: {"kind": "labels", "labels": {"canary": 1}})
    folder = data / "registry/provider/_manifest"
    delta = {"kind": "labels", "labels": {}, "removed": ["canary"], "time_us": 1}
    (folder / "000000000006.json").write_bytes(canonical_json({**delta, "version": 6}))
    (folder / "000000000007.json").write_bytes(canonical_json({**delta, "version": 8}))
    (raw_delta, *_) = sorted((data / "raw/_manifest").glob("0*.json"))
    raw_delta.write_text("{}")
    before = contents(data)
    faults = json.loads(migrate(data, "--json", code=4))["faults"]
    assert len(faults) >= 2
    assert json.loads(migrate(data, "--apply", "--json", code=4))["faults"] == faults
    assert contents(data) == before


def test_a_manifest_that_cannot_be_rewritten_is_an_error_below_its_faults(
    root: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rejected(*_: Any) -> int:
        raise IntegrityError("the manifest is damaged")

    monkeypatch.setattr("ciml.services.stored.examine.rewrite", rejected)
    done = ciml("migrate", root("checkpoints"), "--apply", code=4)
    assert "4 to rewrite." in done.stdout
    assert done.stderr == "ciml: the manifest is damaged\n"
