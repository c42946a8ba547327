"""Verdicts on failed runs: the rules that training writes into a model, and what follows from them for a run.

The names of `ciml.verdicts.rules` that training, serving and feedback share. Texts and evidence are made elsewhere.
"""

from ciml.verdicts.rules import (
    EXIT_LABEL,
    MAX_SCORES,
    POOLED,
    PROFILES,
    UNKNOWN,
    VERDICTS,
    Group,
    Verdict,
    VerdictRules,
    make_verdict,
    read_rules,
)

__all__ = [
    "EXIT_LABEL",
    "MAX_SCORES",
    "POOLED",
    "PROFILES",
    "UNKNOWN",
    "VERDICTS",
    "Group",
    "Verdict",
    "VerdictRules",
    "make_verdict",
    "read_rules",
]
