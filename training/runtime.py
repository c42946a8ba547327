"""The libraries that train models: their import, threads, random numbers and versions."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ciml.errors import CimlError
from ciml.tensorflow import load_tensorflow, own_process


def own_trainer(threads: int) -> None:
    """Limit the threads of this process of ciml, which is one of several trainers in parallel."""
    own_process(threads=threads)
    import sklearn.ensemble  # noqa: F401  (threadpoolctl limits only loaded pools)
    from threadpoolctl import threadpool_limits

    threadpool_limits(threads)


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
    random.seed(seed)  # Keras draws the seed of an initializer without one from this generator
    try:
        yield
    finally:
        random.setstate(state)


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that a transform and a model depend on."""
    from importlib.metadata import version

    names = ("apache-beam", "keras", "numpy", "tensorflow", "tensorflow-transform", "tfx-bsl")
    return {name: version(name) for name in names}
