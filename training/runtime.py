"""TensorFlow, imported on demand and configured: CPU only, quiet, two threads, deterministic."""

from __future__ import annotations

import os
import sys
from typing import Any

from ciml.errors import CimlError
from ciml.tensorflow import load_tensorflow, muted

#: TensorFlow uses all cores by default; a trainer shares its machine.
THREADS = 2

_threads = THREADS


def threads() -> int:
    """Return the number of threads for an estimator in this process."""
    return _threads


def use_threads(count: int) -> None:
    """Set `threads` for this process before any training, for one of several parallel trainers."""
    global _threads
    _threads = count
    import sklearn.ensemble  # noqa: F401  (threadpoolctl limits only loaded pools)
    from threadpoolctl import threadpool_limits

    threadpool_limits(count)


def tensorflow() -> Any:
    """Return the module ``tensorflow``.

    The first call in a process takes seconds. Its settings cannot be changed later.
    """
    first = "tensorflow" not in sys.modules
    if first:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        # oneDNN's sums depend on the CPU's instructions; for small networks it is no faster.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
        with muted():
            tf = load_tensorflow()
            tf.config.list_physical_devices()  # searches for a GPU and logs that there is none
        tf.get_logger().setLevel("ERROR")
        tf.config.threading.set_inter_op_parallelism_threads(threads())
        tf.config.threading.set_intra_op_parallelism_threads(threads())
    else:
        tf = load_tensorflow()
    # The same seed must give the same model, so that experiments can be compared.
    tf.config.experimental.enable_op_determinism()
    return tf


def keras() -> Any:
    """Return the module ``keras``, version 3. ``tf.keras`` is another version once tf.Transform has been imported."""
    tensorflow()
    import keras as module

    if module.config.backend() != "tensorflow":
        raise CimlError(f"KERAS_BACKEND is {module.config.backend()!r}, but models need TensorFlow; unset it")
    return module


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that a transform and a model depend on."""
    from importlib.metadata import version

    names = ("apache-beam", "keras", "numpy", "tensorflow", "tensorflow-transform", "tfx-bsl")
    return {name: version(name) for name in names}
