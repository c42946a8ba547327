"""Evidence of a verdict: what a stored run shows beside the passing runs of its job, as sentences and a picture.

Uses `ciml.transforms.profiles`. Every number of a sentence is computed a second time from the run before it is said.
"""

from ciml.verdicts.evidence.evidence import Evidence, evidence_of

__all__ = ["Evidence", "evidence_of"]
