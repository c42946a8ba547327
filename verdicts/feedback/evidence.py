"""The evidence of a verdict: whether the run can be compared with passing runs, and its sentences and picture."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from ciml.data_root import DataRoot
from ciml.errors import EngineError
from ciml.globs import matches_any
from ciml.verdicts.feedback.config import Policy, plain_host
from ciml.verdicts.feedback.judgement import Item, Silence
from ciml.verdicts.feedback.text import Finding

if TYPE_CHECKING:
    from ciml.verdicts.evidence import Evidence

T = TypeVar("T")
#: Time for reading the outputs of runs that are not in the signatures yet, s. Beyond it, a run has no note.
_BUDGET_S = 10.0
_log = logging.getLogger(__name__)


def compare_run(data: DataRoot, policy: Policy, record: Mapping[str, Any]) -> Silence | None:
    """Return why the run of a prediction cannot be compared with passing runs of its job; None if it can.

    Args:
      data: of the run, its prediction and the model.
      policy: the conditions.
      record: the prediction.

    Raises:
      EngineError: the store does not answer.
    """
    from ciml.serving.predict.assets import knows_ranges
    from ciml.verdicts.evidence import comparison_of

    def read() -> tuple[Evidence, bool]:
        return comparison_of(data, record), knows_ranges(data, str(record["model"]), int(record["version"]))

    if not policy.min_passing_runs:
        return None
    answer = _read(record, read)
    if answer is None:
        return Silence("no_evidence", "the stored run or the model's profiles cannot be read")
    evidence, has_ranges = answer
    if not has_ranges:
        return Silence("outside", "the model does not know the ranges of the runs that it learned; refresh it")
    return compare_profile(evidence, policy)


def is_noted(data: DataRoot, run_id: str) -> bool:
    """Return whether an operator has a note on the failure of a run.

    Raises:
      EngineError: the store does not answer.
    """
    from ciml.verdicts.signatures.notes import read_notes
    from ciml.verdicts.signatures.stored import shared_signatures

    def read() -> bool:
        notes = read_notes(data.failures)
        if not notes.by_signature:
            return False
        with shared_signatures(data).read(_BUDGET_S) as reader:
            signature = reader.signatures.of_run(run_id)
        return signature is not None and notes.of(signature.id) is not None

    return bool(_read({"run_id": run_id}, read))


def _read(record: Mapping[str, Any], read: Callable[[], T]) -> T | None:
    """Return the result of a function that reads stored objects of a prediction; None if it fails.

    Raises:
      EngineError: if the store does not answer.
    """
    try:
        return read()
    except EngineError:
        raise
    except Exception as error:  # noqa: BLE001  # a run that was removed, a damaged object
        _log.warning("run %.200s: no evidence: %s", record.get("run_id"), error)
        return None


def compare_profile(evidence: Evidence, policy: Policy) -> Silence | None:
    """Return why evidence compares too little; None if it is enough.

    Args:
      evidence: of the run.
      policy: the conditions.
    """
    from ciml.verdicts.evidence.observe import MIN_COMPARED_S

    if evidence.length_s < MIN_COMPARED_S:
        return Silence("not_comparable", f"{evidence.length_s:.0f} s of telemetry; {MIN_COMPARED_S} s are needed")
    least = policy.min_passing_runs
    runs = evidence.runs if evidence.job else 0
    if runs < least:
        return Silence("not_comparable", f"{runs} passing runs of this job; {least} are needed")
    if not policy.same_place:
        return None
    if evidence.same_place is None:
        why = "the model's profiles do not name machines; create the data set again, or set same_place = false"
        return Silence("not_comparable", why)
    if evidence.same_place < least:
        runs = evidence.same_place
        return Silence("not_comparable", f"{runs} passing runs of this job on such machines; {least} are needed")
    return None


def find_evidence(data: DataRoot, item: Item, policy: Policy) -> Finding:
    """Return a verdict with its evidence. Evidence that cannot be computed is left out.

    Args:
      data: of the run and its prediction.
      item: the verdict.
      policy: has the hosts of links.

    Raises:
      EngineError: the store does not answer; the message is written later.
    """
    from ciml.verdicts.evidence import evidence_of

    evidence = _read(item.prediction, lambda: evidence_of(data, item.prediction))
    if evidence is None:
        return Finding(item)
    base_url = policy.base_url.rstrip("/")
    picture = f"{base_url}/{quote(evidence.picture)}" if base_url and evidence.picture else ""
    output = evidence.output
    if output is None:
        return Finding(item, evidence.observations, picture)
    return Finding(item, evidence.observations, picture, output_link(output.url, item, policy), output.note)


def output_link(url: str, item: Item, policy: Policy) -> str:
    """Return the address of an output if a message may link to it; "" otherwise.

    Its host must be one of the policy's, and a receiver must have proved who sent the event that names it: anybody may
    claim runs of a change, and a link of ciml's would lead to a page of theirs.
    """
    host = plain_host(url)
    is_allowed = bool(host) and bool(item.prediction["run"].get("auth")) and matches_any(policy.link_hosts, host)
    return url if is_allowed else ""
