"""What reviewers say of verdicts: corrections of a run's cause, in a log of their own below the folder of feedback.

`ciml.services.feedback` writes them, labels of data sets read them. Uses `ciml.manifest`.
"""

from ciml.feedback.corrections import CAUSES, Cause, Correction, add_corrections, corrections_log, corrections_of

__all__ = ["CAUSES", "Cause", "Correction", "add_corrections", "corrections_log", "corrections_of"]
