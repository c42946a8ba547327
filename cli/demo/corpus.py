"""The sample runs of examples/corpus, their logs and outputs, and the demo's data sets of them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from ciml.datasets.definition import SPLITS, DatasetDefinition
from ciml.errors import CimlError, RejectedInput
from ciml.events.records import RunFacts
from ciml.events.run_facts import facts_from_listing
from ciml.events.run_id import RunId
from ciml.settings import read_toml
from ciml.transforms.examples.prepare import split_of
from ciml.verdicts.feedback.config import CAUSES

#: The simulated CI system.
SOURCE = "zuul-demo"
#: The names of the data sets and of their models, which answer: did a run pass, which pool ran it, why did it fail?
STATUS = "status"
POOL = "pool"
CAUSE = "cause"
#: The models that are refreshed while events arrive, in the order of the tables.
MODELS = (STATUS, POOL)
#: The number of a run that each model is compared with, as in `ciml.training.evaluation.baselines.numbers_for`.
ONE_NUMBER = {STATUS: "duration", POOL: "memory", CAUSE: "duration"}
#: Number of salts among which `balanced_salt` chooses.
SALTS = 200


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of the corpus.

    Attributes:
      facts: without a log's address.
      log_path: of its log, below the corpus.
      rows: number of samples of the log.
      output_path: of its job's output, below the corpus; "" for none. It has the lines that ciml stores.
    """

    facts: RunFacts
    log_path: str
    rows: int
    output_path: str = ""


def corpus_folder(folder: str | None = None) -> Path:
    """Return the corpus: ``folder``, or examples/corpus of the checkout without one.

    Raises:
      CimlError: if it has no listing.
    """
    path = Path(folder) if folder else examples() / "corpus"
    if not (path / "builds.jsonl").is_file():
        raise CimlError(f"no builds.jsonl in {path}; name a corpus by --corpus")
    return path


def unpack_logs(corpus: Path, into: Path) -> Path:
    """Return the folder of the corpus' logs: the corpus itself, or ``into`` with the content of its logs.tar.

    Raises:
      CimlError: if it has no logs, or its archive is damaged or has a member outside the folder.
    """
    packed = corpus / "logs.tar"
    if not packed.is_file():
        if not (corpus / "logs").is_dir():
            raise CimlError(f"neither logs.tar nor logs in {corpus}; name a whole corpus by --corpus")
        return corpus
    try:
        with tarfile.open(packed) as tar:
            # By hand: the filters of `extractall` are not there before Python 3.11.4, such as in Debian 12.
            for member in tar:
                name = PurePosixPath(member.name)
                if member.isdir():
                    continue
                if not member.isfile() or name.is_absolute() or ".." in name.parts:
                    raise CimlError(f"{packed}: {member.name} is not a file below its folder")
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                with (into / name).open("wb") as file:
                    shutil.copyfileobj(cast(IO[bytes], tar.extractfile(member)), file)
    except (tarfile.TarError, OSError) as error:
        raise CimlError(f"{packed}: {error}") from None
    return into


def read_corpus(folder: Path, runs: int | None = None) -> list[Sample]:
    """Return the runs in the order in which the demo's CI finishes them.

    Changes are in the order of a hash: the listing has one recording after the other, and some recordings name no pool.
    The runs of a change follow each other in the order of their end.

    Args:
      folder: holds ``builds.jsonl``.
      runs: number of runs to return; None for all.

    Raises:
      CimlError: if a line does not describe a run.
    """
    listing = folder / "builds.jsonl"
    samples = []
    for number, text in enumerate(listing.read_text().splitlines(), 1):
        try:
            samples.append(_sample(json.loads(text)))
        except (RejectedInput, ValueError, KeyError, TypeError) as error:
            raise CimlError(f"{listing} line {number}: {error}") from None
    samples.sort(key=_order_key)
    return samples[:runs]


def change_of(facts: RunFacts) -> str:
    """Return the run's change, or its run id if it has none."""
    return facts.change or facts.run_id


def _order_key(sample: Sample) -> tuple[bytes, int, str]:
    facts = sample.facts
    order = hashlib.sha256(f"ciml demo {change_of(facts)}".encode()).digest()
    return order, facts.end_us or 0, facts.run_id


def _sample(line: dict[str, Any]) -> Sample:
    log_path = str(line["log_path"])
    rows = int(line["rows"])
    facts = facts_from_listing({**line, "log_path": ""}, SOURCE)
    # A CI system reports an id for each attempt. It knows the exit code; people may have judged the cause.
    labels = {name: text for name, text in facts.labels.items() if name in ("cause", "exit_code")}
    facts = facts.replace(event="", labels=labels, run_id=RunId(SOURCE, facts.build_uuid).encode())
    return Sample(facts, log_path, rows, str(line.get("output_path", "")))


def examples() -> Path:
    """Return the folder examples/ of the checkout; of an installed ciml, that of the working folder.

    Raises:
      CimlError: if there is none.
    """
    for folder in (Path(__file__).resolve().parents[2] / "examples", Path("examples").resolve()):
        if (folder / "status.toml").is_file():
            return folder
    raise CimlError("the examples are not installed; run ciml demo in a checkout of ciml")


def trust_policy() -> Path:
    """Return the trust policy of the demo, whose events are not signed."""
    return examples() / "trust.toml"


def balanced_salt(samples: Iterable[Sample], weights: tuple[int, int, int]) -> str:
    """Return the salt by which each split comes nearest to its share of each cause, with and without an output.

    Of few failures, a random split may hold out hardly any of one cause. The choice reads nothing but causes and which
    runs have an output, so it does not favour a model.

    Args:
      samples: the runs; those without a known cause do not count.
      weights: of train, dev and test.
    """
    failed = [sample for sample in samples if "cause" in sample.facts.labels]
    strata = [(sample.facts.labels["cause"], bool(sample.output_path)) for sample in failed]

    def imbalance(salt: str) -> float:
        splits = (
            split_of(sample.facts.project, sample.facts.change, sample.facts.run_id, salt, weights) for sample in failed
        )
        runs = Counter(zip(splits, strata, strict=True))
        return sum(
            (runs[split, stratum] - number * weight / sum(weights)) ** 2
            for stratum, number in Counter(strata).items()
            for split, weight in zip(SPLITS, weights, strict=True)
        )

    return min((f"demo {number}" for number in range(SALTS)), key=imbalance)


def definitions(span_runs: int, samples: Collection[Sample], causes: bool) -> list[DatasetDefinition]:
    """Return the definitions of the demo's data sets, which select the same runs.

    Examples of `STATUS` are series of windows. Examples of `POOL` are statistics of the run, because pools differ in
    peaks of a second. Half of the changes are held out: a smaller share of a few hundred runs is too few for the gate.

    Args:
      span_runs: number of runs of a span.
      samples: the runs. `POOL` excludes runs without a pool (``no_label``).
      causes: whether to add `CAUSE`, the causes of failed runs, with a balanced split. It excludes all other runs
        (``no_label``).
    """
    status = read_toml(examples() / "status.toml") | {"name": STATUS, "span_runs": span_runs}
    pool = {key: status[key] for key in ("build_name", "sample_interval", "tdt_split", "count_first_sample")} | {
        "name": POOL,
        "class_label": "provider",
        "classes": sorted({sample.facts.provider for sample in samples} - {""}),
        "aggregation_functions": ["mean", "std", "min", "max", "median"],
        "span_runs": span_runs,
    }
    data_sets = [DatasetDefinition.from_json(keys, keys["name"]) for keys in (status, pool)]
    if causes:
        cause = DatasetDefinition.load(examples() / "cause.toml", name=CAUSE)
        salt = balanced_salt(samples, cause.tdt_split)
        data_sets.append(cause.replace(classes=tuple(sorted(CAUSES)), span_runs=span_runs, salt=salt))
    return data_sets
