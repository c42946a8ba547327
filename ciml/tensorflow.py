"""The import of TensorFlow, and the settings of ciml's own processes.

A process that uses ciml as a library keeps its settings: TensorFlow is imported as it is. The processes of ciml itself
(commands, services, workers) call `own_process` when they start. There TensorFlow is imported without Keras, runs on
the CPU unless ``CUDA_VISIBLE_DEVICES`` is set, prints less, and takes a fixed number of threads.
"""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ciml.errors import CimlError

#: TensorFlow uses all cores by default; a trainer shares its machine.
THREADS = 2
#: Modules that TensorFlow imports last and does without: Keras 3, with matplotlib, scipy and pandas if installed, or
#: Keras 2 in children of a process with tf.Transform, which sets ``TF_USE_LEGACY_KERAS``. They take 40 % of the
#: processor time of ``import tensorflow``.
_KERAS_IMPORTS = ("keras.src.optimizers", "tf_keras.src.optimizers")


@dataclass(frozen=True)
class _Settings:
    """The settings of a process of ciml; see `own_process`."""

    threads: int | None
    deterministic: bool


#: None in a caller's process.
_settings: _Settings | None = None


def own_process(*, threads: int | None = THREADS, deterministic: bool = True) -> None:
    """Declare that this process belongs to ciml, before it uses TensorFlow. Never called by the Python API.

    Args:
      threads: number of threads of an estimator; None leaves the libraries' defaults.
      deterministic: whether equal seeds and inputs give equal models, which experiments need to be comparable.
    """
    global _settings
    _settings = _Settings(threads, deterministic)


def threads() -> int | None:
    """Return the number of threads of an estimator in this process; None for the library's default."""
    return None if _settings is None else _settings.threads


def load_tensorflow() -> Any:
    """Return the module ``tensorflow``. The first call in a process takes seconds.

    In a process of ciml the first call applies its settings, which cannot be changed later.
    """
    if _settings is not None and "tensorflow" not in sys.modules:
        _import_with(_settings)
    import tensorflow

    if _settings is not None and _settings.deterministic:
        tensorflow.config.experimental.enable_op_determinism()
    return tensorflow


def _import_with(settings: _Settings) -> None:
    """Import TensorFlow with the settings of a process of ciml. Environment variables keep values that are set."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # the search for a GPU takes a second
    if settings.deterministic:
        # oneDNN's sums depend on the CPU's instructions; for small networks it is no faster.
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    blocked = {name: None for name in _KERAS_IMPORTS if name not in sys.modules}
    sys.modules.update(blocked)  # type: ignore[arg-type]  # their import raises ImportError
    try:
        with _muted():
            import tensorflow

            tensorflow.config.list_physical_devices()  # reports a missing GPU
    finally:
        for name in blocked:
            del sys.modules[name]
    tensorflow.get_logger().setLevel("ERROR")
    if settings.threads is not None:
        tensorflow.config.threading.set_inter_op_parallelism_threads(settings.threads)
        tensorflow.config.threading.set_intra_op_parallelism_threads(settings.threads)


@contextmanager
def _muted() -> Iterator[None]:
    """Discard standard error meanwhile: TensorFlow reports a missing GPU there before logging is configured."""
    sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.close(null)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


@contextmanager
def keep_settings() -> Iterator[None]:
    """Restore what libraries change in this process after the block: environment, random state, log handlers.

    In the block, TensorFlow logs errors only.
    """
    tensorflow = logging.getLogger("tensorflow")
    tensorflow.addFilter(_is_error)
    environment = dict(os.environ)
    state = random.getstate()
    handlers = logging.root.handlers[:]
    try:
        yield
    finally:
        tensorflow.removeFilter(_is_error)
        random.setstate(state)
        logging.root.handlers[:] = handlers
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def keras() -> Any:
    """Return the module ``keras``, version 3. ``tf.keras`` is another version once tf.Transform has been imported."""
    load_tensorflow()
    import keras as module

    if module.config.backend() != "tensorflow":
        raise CimlError(f"KERAS_BACKEND is {module.config.backend()!r}, but models need TensorFlow; unset it")
    return module


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw the seeds of new Keras layers from ``seed`` within the block. The caller's random state is restored."""
    state = random.getstate()
    keras()  # imported before the seed is set: its first import draws from the same generator
    random.seed(seed)  # Keras draws the seed of an initializer without one from this generator
    try:
        yield
    finally:
        random.setstate(state)
