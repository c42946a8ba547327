"""The import of TensorFlow: quiet, without a search for a GPU, and without Keras, which only trained networks need."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["load_tensorflow", "muted"]

#: What TensorFlow imports at its end, and goes on without: Keras 3, with matplotlib, scipy and pandas where they are
#: installed, or Keras 2 in children of a process with tf.Transform, which sets ``TF_USE_LEGACY_KERAS``. That is 40 % of
#: the processor time of ``import tensorflow``.
_EAGER = ("keras.src.optimizers", "tf_keras.src.optimizers")


def load_tensorflow() -> Any:
    """Return the module ``tensorflow``; the first call in a process takes seconds. Keras is imported when first used.

    Environment variables that are set already keep their values.
    """
    if "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # the search for a GPU takes a second
        refused = {name: None for name in _EAGER if name not in sys.modules}
        sys.modules.update(refused)  # type: ignore[arg-type]  # their import raises ImportError
        try:
            with muted():
                import tensorflow  # noqa: F401
        finally:
            for name in refused:
                del sys.modules[name]
    return sys.modules["tensorflow"]


@contextmanager
def muted() -> Iterator[None]:
    """Close standard error meanwhile: libraries report a missing GPU there before logging is configured."""
    sys.stderr.flush()
    try:
        stderr = os.dup(2)
    except OSError:  # closed
        yield
        return
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
