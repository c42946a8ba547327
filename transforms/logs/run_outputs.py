"""The stored outputs of runs as features need them: reduced to templates, one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ciml.errors import IntegrityError
from ciml.events.records import OutputFile
from ciml.manifest.log import ManifestLog
from ciml.runs.outputs import read_output
from ciml.runs.run_log import find_rows
from ciml.storage import Store
from ciml.transforms.logs.ranking import ScannedOutput, scan


def outputs_of_stored(raw: Store, run_ids: Iterable[str]) -> StoredOutputs:
    """Return the outputs of runs by their rows in the manifest of a raw store."""
    rows = find_rows(ManifestLog(raw), run_ids)
    return StoredOutputs(raw, {run_id: row.output for run_id, row in rows.items()})


class StoredOutputs:
    """Returns the output of a run by its id; None where none is stored, or the stored one has expired.

    Args:
      raw: the raw store.
      files: of each run, what its row records of the output.
      skips_damaged: whether a damaged output counts as unavailable, so that its run is predicted by the rest.
    """

    def __init__(self, raw: Store, files: Mapping[str, OutputFile | None], *, skips_damaged: bool = False) -> None:
        self._raw = raw
        self._files = files
        self._skips_damaged = skips_damaged

    def __call__(self, run_id: str) -> ScannedOutput | None:
        """Read an output.

        Raises:
          IntegrityError: it is damaged, or lost before its time; not with ``skips_damaged``.
          EngineError: the store does not answer.
        """
        try:
            output = read_output(self._raw, self._files.get(run_id))
        except IntegrityError:
            if not self._skips_damaged:
                raise
            return None
        return None if isinstance(output, str) else scan(output.data)
