"""Verifies registries with their models, and the logs of predictions, feedback and corrections."""

from __future__ import annotations

from ciml.data_root import DataRoot
from ciml.feedback.corrections import corrections_of
from ciml.services.feedback.state import FEEDBACK
from ciml.services.stored.data import check_log
from ciml.services.stored.findings import Findings, Progress
from ciml.serving.model_config import CONFIG_NAME, render_config
from ciml.serving.predict.log import predictions_of_model
from ciml.serving.push import verify_versions
from ciml.serving.registry import Registry, registered_models


def check_models(data: DataRoot, found: Findings, progress: Progress) -> None:
    """Compare the files of each version with its registry, as `ciml models verify` does."""
    found.read |= {"registry deltas", "models"}
    names, entries = registered_models(data), []
    for number, name in enumerate(names, 1):
        progress("models", number, len(names))
        with found.guard("registry deltas", f"model {name}"):
            entries.append(Registry(data, name).entry())
            for fault in filter(None, verify_versions(data, name).values()):
                found.find("models", f"model {name}: {fault}")
    if found.broken["registry deltas"]:
        found.read.discard("models")  # not all of them
        return
    wanted = render_config([entry for entry in entries if entry is not None])
    try:
        if data.models.read(CONFIG_NAME) != wanted.encode():
            found.notes.append(
                f"{data.models.url(CONFIG_NAME)} is not that of the registry in this data root; "
                "ciml models reconcile writes it again"
            )
    except FileNotFoundError:
        pass


def check_predictions(data: DataRoot, found: Findings, progress: Progress) -> None:
    """Verify the log of predictions."""
    check_log(data.predictions, predictions_of_model(), "predictions deltas", found, progress)


def check_feedback(data: DataRoot, found: Findings, progress: Progress) -> None:
    """Verify the logs of messages on changes and of reviewers' corrections."""
    check_log(data.feedback, FEEDBACK, "feedback deltas", found, progress)
    found.read.add("corrections")
    with found.guard("corrections", data.feedback.url("corrections")):
        corrections_of(data)
