"""Opens the lineage of a data root."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ciml.extras import require
from ciml.lineage.steps import OFF, Lineage

if TYPE_CHECKING:
    from ciml.data_root import DataRoot


@contextmanager
def lineage_of(data: DataRoot, enabled: bool) -> Iterator[Lineage]:
    """Yield what reports the steps on a data root.

    Args:
      data: the data root; its address is the namespace of the jobs, and it gets the events unless OpenLineage is
        configured otherwise.
      enabled: whether lineage is on; if not, nothing is imported.

    Raises:
      CimlError: it is on, and ``ciml[lineage]`` is not installed.
    """
    if not enabled:
        yield OFF
        return
    require("openlineage")
    from ciml.lineage.emitter import Emitter

    lineage = Lineage(Emitter(data))
    try:
        yield lineage
    finally:
        lineage.close()
