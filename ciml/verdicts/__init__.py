"""Verdicts on failed runs: the rules that training writes into a model, and what follows from them for a run.

Its names are those that training, serving and feedback share. Texts and evidence are made elsewhere.
"""

from ciml.verdicts.exit_status import EXIT_LABEL, SIGNAL_LABEL, exit_status_of, signal_of
from ciml.verdicts.ranges import LearnedRanges, Outside, parts_outside
from ciml.verdicts.rules import (
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
    "SIGNAL_LABEL",
    "UNKNOWN",
    "VERDICTS",
    "Group",
    "LearnedRanges",
    "Outside",
    "Verdict",
    "VerdictRules",
    "exit_status_of",
    "make_verdict",
    "parts_outside",
    "read_rules",
    "signal_of",
]
