"""Evidence of a verdict: what a stored run shows beside the passing runs of its job, as sentences and a picture.

Uses `transforms.profiles`. Every number of a sentence is computed a second time from the run before it is said.
"""

from serving.evidence.evidence import Evidence, evidence_of

__all__ = ["Evidence", "evidence_of"]
