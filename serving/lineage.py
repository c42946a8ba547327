"""What a push reads and writes, as its lineage describes it (`ciml.lineage.steps`)."""

from __future__ import annotations

from ciml.lineage.description import Data, Description
from ciml.serving.registry import Candidate, Registry


def push_inputs(registry: Registry, candidate: Candidate) -> Description:
    """Describe the candidate that is pushed; its version is that of the training."""
    facts = {"candidate": candidate.id, "digest": candidate.digest}
    version = str(candidate.facts.get("refresh", candidate.id))
    return Description((Data(registry.data.candidates(registry.model), version, facts=facts),))


def pushed_version(registry: Registry, candidate: Candidate, number: int, label: str) -> Description:
    """Describe a pushed version, its label and the digest of its files."""
    facts = {"label": label, "candidate": candidate.id, "digest": candidate.digest}
    output = Data(registry.base.url(), str(number), facts=facts)
    return Description(push_inputs(registry, candidate).inputs, (output,))
