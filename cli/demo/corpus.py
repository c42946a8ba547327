"""The sample runs: the listing of examples/corpus as run facts, and its logs."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from ciml.errors import CimlError, RejectedInput
from ciml.events.records import RunFacts
from ciml.events.run_facts import facts_from_listing
from ciml.events.run_id import RunId

#: The simulated CI system.
SOURCE = "zuul-demo"


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of the corpus: its facts (without a log's address), and the path of its log below the corpus."""

    facts: RunFacts
    log_path: str
    rows: int


def corpus_folder(folder: str | None = None) -> Path:
    """Return the corpus: ``folder``, else examples/corpus of the checkout.

    Raises:
      CimlError: there is no listing.
    """
    path = Path(folder) if folder else Path(__file__).resolve().parents[2] / "examples" / "corpus"
    if not (path / "builds.jsonl").is_file():
        raise CimlError(f"no builds.jsonl in {path}; run ciml demo in a checkout, or name a corpus by --corpus")
    return path


def unpack_logs(corpus: Path, into: Path) -> Path:
    """Return the folder below which the corpus' logs are: itself, or ``into`` with the files of its logs.tar.

    Raises:
      CimlError: it has no logs, or its archive is damaged or has a member that would be written elsewhere.
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
                    raise CimlError(f"{packed}: {member.name} is no file below its folder")
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                with (into / name).open("wb") as file:
                    shutil.copyfileobj(cast(IO[bytes], tar.extractfile(member)), file)
    except (tarfile.TarError, OSError) as error:
        raise CimlError(f"{packed}: {error}") from None
    return into


def read_corpus(folder: Path, runs: int | None = None) -> list[Sample]:
    """Return the runs in the order in which the demo's CI finishes them.

    A hash orders the changes: the listing has one recording after the other, and not all of them name a pool. The runs
    of a change stay together, in the order of their end.

    Args:
      folder: holds ``builds.jsonl``.
      runs: number of runs, the first in that order; None for all.

    Raises:
      CimlError: a line that is no run.
    """
    listing = folder / "builds.jsonl"
    found = []
    for number, text in enumerate(listing.read_text().splitlines(), 1):
        try:
            found.append(_sample(json.loads(text)))
        except (RejectedInput, ValueError, KeyError, TypeError) as error:
            raise CimlError(f"{listing} line {number}: {error}") from None
    found.sort(key=_order)
    return found[:runs]


def change_of(facts: RunFacts) -> str:
    """Return the run's change; of a run without one, the run itself."""
    return facts.change or facts.run_id


def _order(sample: Sample) -> tuple[bytes, int, str]:
    facts = sample.facts
    order = hashlib.sha256(f"ciml demo {change_of(facts)}".encode()).digest()
    return order, facts.end_us or 0, facts.run_id


def _sample(line: dict[str, Any]) -> Sample:
    log_path = str(line["log_path"])
    rows = int(line["rows"])
    facts = facts_from_listing({**line, "log_path": ""}, SOURCE)
    # As a CI system reports them: it knows nothing of patches and trouble, and each attempt has an id of its own. It
    # knows the exit status, and people may have judged the cause of a failure.
    labels = {name: text for name, text in facts.labels.items() if name in ("cause", "exit_code")}
    facts = facts.replace(event="", labels=labels, run_id=RunId(SOURCE, facts.build_uuid).encode())
    return Sample(facts, log_path, rows)
