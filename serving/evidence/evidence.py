"""Evidence of a stored prediction: its run is read again, and its picture is stored beside the prediction."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import msgspec

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.events.records import RunFacts
from ciml.manifest.log import ManifestLog
from ciml.raw.known_subjects import with_claims
from ciml.raw.lookup import entries_of, row_of
from ciml.raw.state import open_raw
from ciml.serving.evidence.check import follows
from ciml.serving.evidence.observe import observations
from ciml.serving.evidence.picture import draw
from ciml.serving.evidence.subject import Subject
from ciml.serving.predict.log import prediction_id
from ciml.serving.registry import Registry
from ciml.telemetry import BOOT, TIME
from ciml.transforms.profiles.profile import Profile, Profiles
from ciml.transforms.profiles.series import SERIES
from ciml.transforms.profiles.windows import length_s
from ciml.transforms.raw.reader import read_run
from ciml.verdicts import PROFILES, exit_status_of

_log = logging.getLogger(__name__)

#: Sentences of a message: more would not be read.
MAX_OBSERVATIONS = 3
_ID = re.compile(r"[0-9a-f]{32}")
_NONE = Profiles({}, Profile("", 0, (0.0, 0.0, 0.0), {}))


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a run shows.

    Attributes:
      observations: at most three sentences, the most telling first. Each number follows from the run's telemetry, its
        facts, or the passing profile. Names from outside are in none of them.
      picture: path of an SVG below `DataRoot.predictions`; "" where there is nothing to draw.
      job: whose passing runs it was compared with; "" for those of all jobs.
      runs: number of these passing runs.
      dropped: sentences that did not follow when they were computed a second time: an error of ciml.
      length_s: from the run's first sample to its last.
      same_place: number of these passing runs on the run's kind of machine; None where the profile does not say it.
    """

    observations: tuple[str, ...]
    picture: str = ""
    job: str = ""
    runs: int = 0
    dropped: tuple[str, ...] = ()
    length_s: float = 0.0
    same_place: int | None = None


def evidence_of(data: DataRoot, prediction: Mapping[str, Any]) -> Evidence:
    """Compute the evidence of a prediction, and store its picture.

    Args:
      data: the data root of the prediction.
      prediction: its record, with ``run``.

    Raises:
      IntegrityError: the record is malformed, or the run or the model's profiles are missing or damaged.
      EngineError: the store does not answer.

    Example:
      >>> evidence_of(data, prediction).observations  # doctest: +SKIP
      ('It reached its time limit after 76 s; passing runs take 13 to 32 s.',)
    """
    try:
        facts = RunFacts.from_json(prediction["run"])
        model, version = str(prediction["model"]), int(prediction["version"])
        path = prediction.get("path") or _path_of(data, facts.run_id)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"a prediction cannot be read for its evidence: {error!r:.200}") from None
    table = read_run(data.raw, path, columns=[TIME, BOOT, *SERIES])
    if not table.num_rows:
        raise IntegrityError(f"run {facts.run_id} has no samples")
    profile = profiles_of_version(data, model, version).of(facts.build_name)
    subject = Subject.of(facts, table, profile, _claimed(data, facts))
    found, picture = evidence_for(subject)
    if not picture:
        return found
    name = prediction.get("id", "")
    if not _ID.fullmatch(name):
        name = prediction_id(facts.run_id, model, version)
    data.evidence.replace(f"{name[:2]}/{name}.svg", picture.encode())
    return replace(found, picture=f"evidence/{name[:2]}/{name}.svg")


def evidence_for(subject: Subject) -> tuple[Evidence, str]:
    """Return the evidence of a run without a stored picture, and the picture as SVG ("" for none)."""
    made = observations(subject)
    held = [one for one in made if follows(one.text, subject)]
    dropped = tuple(one.text for one in made if one not in held)
    if dropped:
        _log.warning("evidence that does not follow from its run was dropped: %s", "; ".join(dropped))
    said = held[:MAX_OBSERVATIONS]
    picture = draw(subject, [one.column for one in said if one.column])
    profile = subject.profile
    places = profile.places
    same_place = None if places is None else places.get(subject.place, 0)
    evidence = Evidence(
        tuple(one.text for one in said), "", profile.job, profile.runs, dropped, length_s(subject.table), same_place
    )
    return evidence, picture


def _claimed(data: DataRoot, facts: RunFacts) -> RunFacts | None:
    """Return a run's facts with what events claim that are believed less, such as its recorder's.

    None where the run's own event reports how its command ended: then nothing else is asked for.
    """
    if exit_status_of(facts.labels) is not None:
        return None
    _, state = open_raw(data.raw)
    return with_claims(facts, state.index.subjects.claims(facts.run_id))


def _path_of(data: DataRoot, run_id: str) -> str:
    """Return the path of a run whose prediction does not name it: the raw manifest is searched."""
    log = ManifestLog(data.raw)
    row = row_of(entries_of(log, log.end(), run_id))
    if row is None:
        raise IntegrityError(f"run {run_id} is in no manifest of {data.raw.url()}")
    path: str = row.record["file"]["path"]
    return path


@lru_cache(maxsize=8)
def profiles_of_version(data: DataRoot, model: str, version: int) -> Profiles:
    """Return the passing profiles in a model's assets; none where it has no such file."""
    registry = Registry(data, model)
    if f"assets/{PROFILES}" not in registry.state.files(version):
        return _NONE
    where = f"model {model}, version {version}: assets/{PROFILES}"
    try:
        return Profiles.from_json(msgspec.json.decode(registry.read_asset(version, PROFILES)), where)
    except (CimlError, msgspec.DecodeError) as error:
        raise IntegrityError(f"{where}: no passing profiles: {error}") from None
