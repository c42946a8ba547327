"""A data set: its examples as arrays, tables and data frames."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from ciml.data_root import StoredDataset
from ciml.datasets.definition import SPLITS, Split
from ciml.errors import CimlError
from ciml.tensorflow import keep_settings, load_tensorflow

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa
    import tensorflow as tf
    from numpy.typing import NDArray

    from ciml.datasets.definition import DatasetDefinition
    from ciml.training.data.snapshot import Snapshot, SnapshotRun
    from ciml.training.estimators.views import View


class Dataset:
    """The examples of a data set, one for each run, as stored when it was opened by `ciml.Data.dataset`.

    It contains the runs that a training may use: the trust policy accepts them, and they are not excluded. All methods
    return the runs in the same order. The split ``train`` includes the runs on which early stopping is decided.

    Attributes:
      name: name of the data set.
    """

    def __init__(self, stored: StoredDataset, trust_policy: str | None = None) -> None:
        from ciml.stored_trust import policy_of
        from ciml.training.data.examples import read_snapshot_facts

        self._stored = stored
        self.name = stored.name
        state = stored.state()
        self._snapshot: Snapshot
        self._snapshot, _ = read_snapshot_facts(stored, state, policy_of(stored.root, trust_policy).current())
        self._padding = state.padding()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; labels are indices into it."""
        return self._snapshot.resolved.classes

    @property
    def features(self) -> tuple[str, ...]:
        """Short names of the features, in the order of the last axis of X."""
        return self._snapshot.resolved.features

    @property
    def windows(self) -> int:
        """L, the windows of an example; with aggregation functions their number."""
        return self._snapshot.resolved.windows

    @property
    def definition(self) -> DatasetDefinition:
        """The definition: interval, features, label, splits."""
        return self._snapshot.resolved.definition

    @property
    def padding(self) -> float | None:
        """Share of the windows of all stored examples that are padding, 0 to 1; None with aggregation functions."""
        return self._padding

    def to_numpy(self, split: Split | None = None) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the examples as X and y, checked against the data set's manifest.

        Args:
          split: ``train``, ``dev`` or ``test``; all runs by default.

        Returns:
          X float32 [runs, L, features]: as recorded, not normalised, with zeros after a run's last window; and y int64
          [runs]: indices into `classes`.

        Raises:
          IntegrityError: files and manifest disagree.

        Example:
          >>> X, y = dataset.to_numpy("train")
          >>> X.dtype, X.shape[1:] == (dataset.windows, len(dataset.features)), y.dtype
          (dtype('float32'), True, dtype('int64'))
        """
        import numpy as np

        from ciml.training.data.examples import read_snapshot_examples

        # Some runs of the split train have the role dev.
        roles = {run.role for run in self._runs(split)}
        if not roles:
            return np.zeros((0, self.windows, len(self.features)), np.float32), np.zeros(0, np.int64)
        _, examples = read_snapshot_examples(self._stored.store, self._snapshot, *sorted(roles))
        return examples.inputs, examples.labels

    def n_windows(self, split: Split | None = None) -> NDArray[np.int32]:
        """Return the number of each run's own windows, int32 [runs]; the rest of its L windows is padding.

        Example:
          >>> X, _ = dataset.to_numpy("test")
          >>> all((X[row, count:] == 0).all() for row, count in enumerate(dataset.n_windows("test")))
          True
        """
        import numpy as np

        counts = self._counts
        return np.array([counts[run.run_id] for run in self._runs(split)], np.int32)

    def facts(self, split: Split | None = None) -> pa.Table:
        """Return the facts of each run, without its features: ids, job, label, split, times, metadata.

        Example:
          >>> dataset.facts("test").column_names[:4]
          ['run_id', 'build_uuid', 'build_name', 'label']
        """
        from ciml.datasets.definition import METADATA_COLUMNS

        return self._read(split, METADATA_COLUMNS)

    def to_arrow(self, split: Split | None = None) -> pa.Table:
        """Return the stored examples: `facts`, then each feature as fixed_size_list<float32>[L]."""
        return self._read(split, None)

    def to_pandas(self, split: Split | None = None) -> pd.DataFrame:
        """Return the result of `to_arrow` as a DataFrame; each feature is a column of float32 arrays [L]. Needs pandas.

        Example:
          >>> frame = dataset.to_pandas("test")
          >>> len(frame) == len(dataset.facts("test")) and len(frame[dataset.features[0]][0]) == dataset.windows
          True
        """
        return self.to_arrow(split).to_pandas()

    def to_frame(self, split: Split | None = None, view: View = "flat") -> tuple[pd.DataFrame, pd.Series[int]]:
        """Return the examples as scikit-learn takes them: a number in each cell. Needs pandas and ``ciml[train]``.

        Args:
          split: ``train``, ``dev`` or ``test``; all runs by default.
          view: ``flat`` has a column for each window of each feature, with zeros after a run's last window.
            ``summary`` has statistics of each feature over the run's own windows. Both have ``n_windows``, and are not
            normalised.

        Returns:
          X float64, with the columns that `ciml.Data.train` gives to an estimator of this view; and y int64, indices
          into `classes`. The index of both is the run id.

        Raises:
          IntegrityError: files and manifest disagree.

        Example:
          >>> X, y = dataset.to_frame("train", "summary")
          >>> X.shape == (len(y), 10 * len(dataset.features) + 1), sorted(set(y))
          (True, [0, 1])
        """
        import pandas as pd

        from ciml.training.estimators.views import names_of, values_of

        if view not in ("flat", "summary"):
            raise CimlError(f"unknown view {view!r}; choose from flat, summary; to_numpy returns windows")
        inputs, labels = self.to_numpy(split)
        values = values_of(view, inputs, self.n_windows(split))
        runs = pd.Index([run.run_id for run in self._runs(split)], name="run_id")
        columns = names_of(view, self.features, self.windows)
        return pd.DataFrame(values, runs, columns), pd.Series(labels, runs, name="label")

    @keep_settings()
    def to_tf(self, split: Split | None = None) -> tf.data.Dataset:
        """Return the examples as a ``tf.data.Dataset`` of (float32 [L, features], int64 label), not batched.

        Needs ``ciml[train]``.
        """
        from ciml.extras import require

        require("tensorflow", "train")
        return load_tensorflow().data.Dataset.from_tensor_slices(self.to_numpy(split))

    def _runs(self, split: Split | None) -> list[SnapshotRun]:
        if split is not None and split not in SPLITS:
            raise CimlError(f"unknown split {split!r}; choose from {', '.join(SPLITS)}")
        return [run for run in self._snapshot.runs() if split in (None, run.split)]

    @cached_property
    def _counts(self) -> dict[str, int]:
        """The number of windows by run id, for all splits."""
        table = self._read(None, ("run_id", "n_windows"))
        return dict(zip(table.column("run_id").to_pylist(), table.column("n_windows").to_pylist(), strict=True))

    def _read(self, split: Split | None, columns: Sequence[str] | None) -> pa.Table:
        """Return columns of the examples in the order of `_runs`; for None all columns."""
        import numpy as np
        import pyarrow as pa

        from ciml.datasets.schema import schema_of
        from ciml.runs.arrow import numbers
        from ciml.transforms.examples.spans import read_examples

        runs = self._runs(split)
        splits = SPLITS if split is None else (split,)
        files = [file for span in self._snapshot.spans for name in splits for file in span.files.get(name, ())]
        if not files:
            empty_table = schema_of(self._snapshot.resolved).empty_table()
            return empty_table if columns is None else empty_table.select(list(columns))
        table = pa.concat_tables([read_examples(self._stored.store, file, columns) for file in files])
        row_of = {run_id: row for row, run_id in enumerate(table.column("run_id").to_pylist())}
        return table.take(numbers(np.array([row_of[run.run_id] for run in runs], np.int64)))

    def __len__(self) -> int:
        return len(self._runs(None))

    def __repr__(self) -> str:
        shape = f"{len(self)} runs of {self.windows} x {len(self.features)}"
        return f"Dataset({self.name!r}: {shape}, classes {', '.join(self.classes)})"
