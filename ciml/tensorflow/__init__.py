"""The import of TensorFlow: quiet, without a search for a GPU, and without Keras, which only trained networks need."""

from __future__ import annotations

import os
import sys
from typing import Any

__all__ = ["load_tensorflow"]

#: What TensorFlow imports at its end, and goes on without: Keras 3, with matplotlib, scipy and pandas where they are
#: installed. That is 40 % of the processor time of ``import tensorflow``.
_EAGER = "keras.src.optimizers"


def load_tensorflow() -> Any:
    """Return the module ``tensorflow``; the first call in a process takes seconds. Keras is imported when first used.

    Environment variables that are set already keep their values.
    """
    if "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # the search for a GPU takes a second
        refused = sys.modules.setdefault(_EAGER, None) is None  # type: ignore[arg-type]  # its import raises ImportError
        try:
            import tensorflow  # noqa: F401
        finally:
            if refused:
                del sys.modules[_EAGER]
    return sys.modules["tensorflow"]
