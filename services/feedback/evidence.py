"""The evidence of a verdict for its message: computed from the stored run when the message is written."""

from __future__ import annotations

import logging
from urllib.parse import quote

from ciml.data_root import DataRoot
from ciml.errors import EngineError
from services.feedback.policy import Item
from services.feedback.text import Finding

_log = logging.getLogger(__name__)


def find_evidence(data: DataRoot, item: Item, base_url: str) -> Finding:
    """Return a verdict with its evidence. Evidence that cannot be computed is left out: the verdict stands without it.

    Args:
      data: of the run and its prediction.
      item: the verdict.
      base_url: public address of the data root's folder of predictions; "" for no link.

    Raises:
      EngineError: the store does not answer; the message is written later.
    """
    from serving.evidence import evidence_of

    try:
        found = evidence_of(data, item.prediction)
    except EngineError:
        raise
    except Exception as error:  # noqa: BLE001  # a run that was removed, a damaged object
        _log.warning("run %s: no evidence: %s", item.run_id, error)
        return Finding(item)
    picture = f"{base_url.rstrip('/')}/{quote(found.picture)}" if base_url and found.picture else ""
    return Finding(item, tuple(found.observations), picture)
