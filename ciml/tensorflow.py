"""The import of TensorFlow and of Keras, and the settings of the process that imports them.

In a process that uses ciml as a library, TensorFlow is imported without any change of settings, and `keep_settings`
restores what other imports change. The processes of ciml itself (commands, services, workers) call
`declare_own_process` when they start. There TensorFlow is imported without Keras, runs on the CPU unless
``CUDA_VISIBLE_DEVICES`` is set, prints less, and takes a fixed number of threads. Threads of OpenMP sleep while they
wait.
"""

from __future__ import annotations

import logging
import os
import random
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from ciml.errors import CimlError

#: TensorFlow uses all cores by default; a trainer shares its machine.
THREADS = 2
#: Optional modules, the last that TensorFlow imports. They load Keras 3 (or Keras 2, if tf.Transform has set
#: ``TF_USE_LEGACY_KERAS``), and take 40 % of the processor time of ``import tensorflow``.
_KERAS_IMPORTS = ("keras.src.optimizers", "tf_keras.src.optimizers")
#: A line that TensorFlow's libraries write before their logging is configured.
_EARLY_MESSAGE = re.compile(
    rb"WARNING: All log messages before absl::|[IWEF][0-9]{4} [0-9:.]+ +[0-9]+ [^ ]+\.cc:[0-9]+\]"
)


@dataclass(frozen=True)
class _Settings:
    """The settings of a process of ciml; see `declare_own_process`."""

    threads: int | None
    deterministic: bool


#: None in a caller's process.
_settings: _Settings | None = None
#: Held during the first import, so that no other thread uses TensorFlow before its settings are applied.
_importing = threading.Lock()


def declare_own_process(*, threads: int | None = THREADS, deterministic: bool = True) -> None:
    """Declare that this process belongs to ciml, before it imports TensorFlow. The Python API never calls this.

    Args:
      threads: number of threads of an estimator; None leaves the libraries' defaults.
      deterministic: whether equal seeds and inputs give equal models, which experiments need to be comparable.
    """
    global _settings
    _settings = _Settings(threads, deterministic)
    # OpenMP reads it when scikit-learn, XGBoost or LightGBM is imported. By default, its threads spin while they wait
    # for each other at every split of a tree: on a busy machine, that is a hundred times slower than to sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def estimator_threads() -> int | None:
    """Return the number of threads of an estimator in this process; None for the library's default."""
    return None if _settings is None else _settings.threads


def load_tensorflow() -> Any:
    """Return the module ``tensorflow``. The first call in a process takes seconds.

    In a process of ciml, the first call applies the process's settings, unless TensorFlow has been imported before.
    """
    with _importing:
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
        with _without_early_messages():
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
def _without_early_messages() -> Iterator[None]:
    """Discard what TensorFlow writes to standard error before its logging is configured, such as a missing GPU.

    During the block, standard error of the whole process goes to a file. The lines of others are printed after it.
    """
    if sys.stderr is None:  # closed when the process started: descriptor 2 may be any file now
        yield
        return
    sys.stderr.flush()
    with ExitStack() as files:
        try:
            original = files.enter_context(open(os.dup(2), "wb"))
            written = files.enter_context(tempfile.TemporaryFile())
        except OSError:  # standard error was closed since, or no file can be stored: nothing is discarded
            yield
            return
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(original.fileno(), 2)
            written.seek(0)
            original.writelines(line for line in written if not _EARLY_MESSAGE.match(line))


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


@contextmanager
def keep_settings() -> Iterator[None]:
    """Restore what libraries change in this process after the block: environment, random state, log handlers.

    In the block, TensorFlow logs errors only. Blocks that overlap, nested or in several threads, count as one.
    """
    global _open_blocks
    with _blocks:
        if not _open_blocks:
            _kept.enter_context(_kept_settings())
        _open_blocks += 1
    try:
        yield
    finally:
        with _blocks:
            _open_blocks -= 1
            if not _open_blocks:
                _kept.close()


_blocks = threading.Lock()
_open_blocks = 0
#: The settings are restored when this is closed.
_kept = ExitStack()


@contextmanager
def _kept_settings() -> Iterator[None]:
    tensorflow = logging.getLogger("tensorflow")
    tensorflow.addFilter(_is_error)
    environment = dict(os.environ)
    state = random.getstate()
    handlers = logging.root.handlers[:]
    yield
    tensorflow.removeFilter(_is_error)
    random.setstate(state)
    logging.root.handlers[:] = handlers
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
