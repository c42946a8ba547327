"""Evidence of a verdict: a stored run compared with the passing runs of its job, in sentences and a picture.

Uses `ciml.transforms.profiles`. `evidence_of` reads the run of a prediction again, observes it
(`ciml.verdicts.evidence.observe`) and draws it (`ciml.verdicts.evidence.picture`). Every number of a sentence is
computed a second time from the run before it is sent (`ciml.verdicts.evidence.check`). The first sentences are about
the job's output, where there is one: a new line, failed tests, other runs that failed alike
(`ciml.verdicts.evidence.output`). Then those about the telemetry are fewer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import msgspec
import pyarrow as pa

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.events.outcomes import exit_status_of
from ciml.events.records import RunFacts
from ciml.runs.known_subjects import with_claims
from ciml.runs.reader import read_run
from ciml.serving.predict.log import prediction_id
from ciml.serving.registry import Registry, read_asset
from ciml.storage import Store
from ciml.telemetry import BOOT, TIME
from ciml.transforms.profiles import SERIES, Profile, Profiles, length_s
from ciml.verdict_rules import PROFILES
from ciml.verdicts.evidence.check import follows
from ciml.verdicts.evidence.observe import AS_USUAL, Observation, Subject, observations
from ciml.verdicts.evidence.output import OutputEvidence, output_evidence, shared_raw, stored_row
from ciml.verdicts.evidence.picture import draw

_log = logging.getLogger(__name__)

#: Sentences about the telemetry: more would not be read. Next to those about the output, fewer.
MAX_OBSERVATIONS = 3
_BESIDE_OUTPUT = 2
_ID = re.compile(r"[0-9a-f]{32}")
_NO_PROFILES = Profiles({}, Profile("", 0, (0.0, 0.0, 0.0), {}))


@dataclass(frozen=True, slots=True)
class Evidence:
    """The comparison of a run with passing runs.

    Attributes:
      observations: sentences, the most telling first. At most four are about the output, and at most three about the
        telemetry, or two next to those about the output. Each number follows from the run's telemetry, its facts, the
        passing profile, or the runs of the data root. Those about the output quote hostile text, all of it visible; the
        others hold no name from outside.
      picture: path of an SVG below `DataRoot.predictions`; "" if there is nothing to draw.
      job: the job whose passing runs it was compared with; "" for the passing runs of all jobs.
      runs: number of these passing runs.
      dropped: sentences that did not follow when they were computed a second time: an error of ciml.
      length_s: from the run's first sample to its last.
      same_place: number of these passing runs on the run's kind of machine; None if the profile does not say it.
      output: what the stored output shows; None without one.
    """

    observations: tuple[str, ...]
    picture: str = ""
    job: str = ""
    runs: int = 0
    dropped: tuple[str, ...] = ()
    length_s: float = 0.0
    same_place: int | None = None
    output: OutputEvidence | None = None


def evidence_of(data: DataRoot, prediction: Mapping[str, Any], profiles: Profiles | None = None) -> Evidence:
    """Compute the evidence of a prediction, and store its picture.

    Args:
      data: the data root of the prediction.
      prediction: its record, with ``run``.
      profiles: the passing profiles of the model, if it is a candidate. Its pictures are not stored.

    Raises:
      IntegrityError: the record is malformed, or the run or the model's profiles are missing or damaged.
      EngineError: the store does not answer.

    Example:
      >>> evidence_of(data, prediction).observations  # doctest: +SKIP
      ('It reached its time limit after 76 s; passing runs take 13 to 32 s.',)
    """
    facts, table, profile = _compared(data, prediction, profiles)
    subject = Subject.of(facts, table, profile, _claimed(data, facts))
    evidence, picture = evidence_of_subject(subject, _output_of(data, facts))
    if not picture or profiles is not None:
        return evidence
    name = prediction.get("id", "")
    if not _ID.fullmatch(name):
        name = prediction_id(facts.run_id, str(prediction["model"]), int(prediction["version"]))
    data.evidence.replace(f"{name[:2]}/{name}.svg", picture.encode())
    return replace(evidence, picture=f"evidence/{name[:2]}/{name}.svg")


def comparison_of(data: DataRoot, prediction: Mapping[str, Any]) -> Evidence:
    """Return with how many passing runs the run of a prediction can be compared: evidence without sentences.

    Raises as `evidence_of`.
    """
    facts, table, profile = _compared(data, prediction, None)
    return _comparison(Subject.of(facts, table, profile))


def _compared(
    data: DataRoot, prediction: Mapping[str, Any], profiles: Profiles | None
) -> tuple[RunFacts, pa.Table, Profile]:
    """Return the facts and the telemetry of a prediction's run, and the profile of the passing runs of its job."""
    try:
        facts = RunFacts.from_json(prediction["run"])
        model = str(prediction["model"])
        version = 0 if profiles is not None else int(prediction["version"])
        path = prediction.get("path") or _path_of(data, facts.run_id)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"a prediction cannot be read for its evidence: {error!r:.200}") from None
    table = read_run(data.raw, path, columns=[TIME, BOOT, *SERIES])
    if not table.num_rows:
        raise IntegrityError(f"run {facts.run_id} has no samples")
    of_model = profiles_of_version(data, model, version) if profiles is None else profiles
    return facts, table, of_model.of(facts.build_name)


def _comparison(subject: Subject) -> Evidence:
    profile = subject.profile
    return Evidence(
        (),
        job=profile.job,
        runs=profile.runs,
        length_s=length_s(subject.table),
        same_place=None if profile.places is None else profile.places.get(subject.place, 0),
    )


def evidence_of_subject(subject: Subject, output: OutputEvidence | None = None) -> tuple[Evidence, str]:
    """Return the evidence of a run, whose picture is not stored, and the picture as SVG ("" for none).

    Args:
      subject: the run.
      output: what its output shows; None without one.
    """
    candidates = observations(subject)
    confirmed = [observation for observation in candidates if follows(observation.text, subject)]
    dropped = tuple(observation.text for observation in candidates if observation not in confirmed)
    if dropped:
        _log.warning("evidence that does not follow from its run was dropped: %s", "; ".join(dropped))
    chosen = confirmed[:MAX_OBSERVATIONS]
    output_sentences = () if output is None else output.sentences
    if output is not None and (output.line is not None or output.tests):
        chosen = _beside_output(chosen, subject, output)[:_BESIDE_OUTPUT]
    picture = draw(subject, [observation.column for observation in chosen if observation.column])
    sentences = (*output_sentences, *(observation.text for observation in chosen))
    evidence = replace(_comparison(subject), observations=sentences, dropped=dropped, output=output)
    return evidence, picture


def _beside_output(chosen: Sequence[Observation], subject: Subject, output: OutputEvidence) -> list[Observation]:
    """Return the observations on telemetry that add something to those on an output, or that all was as usual.

    Telemetry does not show everything, so nothing is as usual where the output blames the machine.
    """
    telling = [observation for observation in chosen if observation.tells]
    if len(telling) < len(chosen) and not output.blames_machine and follows(AS_USUAL, subject):
        telling.append(Observation(AS_USUAL))
    return telling


def _output_of(data: DataRoot, facts: RunFacts) -> OutputEvidence | None:
    """Return what the output of a run shows. A damaged output costs these sentences alone."""
    try:
        return output_evidence(data, facts.run_id)
    except IntegrityError as error:
        _log.warning("run %.200s: no evidence of its output: %s", facts.run_id, error)
        return None


def _claimed(data: DataRoot, facts: RunFacts) -> RunFacts | None:
    """Return a run's facts, completed by the claims of events that are believed less, such as its recorder's.

    None if the run's own event reports how its command ended: then no claim is needed.
    """
    if exit_status_of(facts.labels) is not None:
        return None
    with shared_raw(data).state() as state:
        return with_claims(facts, state.index.subjects.claims(facts.run_id))


def _path_of(data: DataRoot, run_id: str) -> str:
    """Return the path of a run whose prediction does not name it: the raw manifest is searched."""
    row = stored_row(data, run_id)
    if row is None:
        raise IntegrityError(f"run {run_id} is in no manifest of {data.raw.url()}")
    return row.file.path


@lru_cache(maxsize=8)
def profiles_of_version(data: DataRoot, model: str, version: int) -> Profiles:
    """Return the passing profiles in a model's assets; none if it has no such file."""
    registry = Registry(data, model)
    where = f"model {model}, version {version}"
    return _profiles_in(registry.folder(version), registry.state.files(version), where)


def profiles_of_candidate(data: DataRoot, model: str, name: str) -> Profiles:
    """Return the passing profiles of a model's candidate; none if it has no such file.

    Args:
      data: the data root.
      model: the model's name.
      name: the candidate's id.

    Raises:
      CimlError: its files are on another machine, or removed.
      IntegrityError: the registry has no such candidate, or its file was altered.
    """
    registry = Registry(data, model)
    candidate = registry.state.candidates.get(name)
    if candidate is None:
        raise IntegrityError(f"model {model} has no candidate {name!r:.40}")
    return _profiles_in(
        registry.candidate_folder(candidate), candidate.files, f"model {model}, candidate {candidate.id}"
    )


def _profiles_in(folder: Store, files: Mapping[str, str], where: str) -> Profiles:
    if f"assets/{PROFILES}" not in files:
        return _NO_PROFILES
    try:
        return Profiles.from_json(msgspec.json.decode(read_asset(folder, files, PROFILES)), where)
    except (CimlError, msgspec.DecodeError) as error:
        raise IntegrityError(f"{where}: assets/{PROFILES}: no passing profiles: {error}") from None
