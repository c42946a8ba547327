"""Loads a model version: a checked private copy, a process of its own, and warm-up requests.

The process is killed if it does not load the model or answer a call in time: TensorFlow cannot interrupt the folding of
constants, nor a single operation.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from ciml.errors import IntegrityError
from ciml.limits import MAX_MODEL_CALL_S, MAX_MODEL_LOAD_S, MAX_REQUEST_ROWS
from ciml.serving.model_files import LAST_FILE, WARMUP_FILE, copy_model
from ciml.serving.server.model.loaded_model import LoadedModel
from ciml.serving.server.model.process import ModelProcess
from ciml.serving.server.model.warmup import warm_up
from ciml.storage.open import Store

#: Raises unless the copied files (digests by path) are those of a version that may be served.
Verify = Callable[[Mapping[str, str]], None]


def load_model(
    folder: Store,
    verify: Verify | None = None,
    *,
    max_rows: int = MAX_REQUEST_ROWS,
    call_s: float = MAX_MODEL_CALL_S,
    load_s: float = MAX_MODEL_LOAD_S,
) -> LoadedModel:
    """Load the version in ``folder`` into a process of its own, and warm it up.

    Args:
      folder: ``<base_path>/<version>``, local or on S3.
      verify: raises if the copied files are not those of a version that may be served.
      max_rows: the largest batch of one request.
      call_s: limit of a call, seconds, also of restoring the variables.
      load_s: limit of loading without the warm-up, seconds.

    Raises:
      FileNotFoundError: if there is no such version.
      IntegrityError: if it is corrupt or altered, holds a forbidden operation, or fails or exceeds the time of loading
        or warm-up.
      EngineError: if no process can be started.
    """
    work = Path(tempfile.mkdtemp(prefix="ciml-model-"))
    try:
        copy = work / "model"
        digests = copy_model(folder, copy)
        if LAST_FILE not in digests:
            raise IntegrityError(f"{folder.root} has no {LAST_FILE}: not a complete SavedModel")
        if verify is not None:
            verify(digests)
        return _start(copy, folder.root, max_rows, call_s, load_s)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _start(copy: Path, where: str, max_rows: int, call_s: float, load_s: float) -> LoadedModel:
    process = ModelProcess(call_s, load_s)
    try:
        signatures = process.load(copy, where)
        model = LoadedModel(
            where,
            {name: process.signature(name, signature) for name, signature in signatures.items()},
            {name: signature.definition for name, signature in signatures.items()},
            max_rows=max_rows,
            call_s=call_s,
            free=process.end,
            has_ended=lambda: process.ended,
        )
        try:
            warm_up(model, copy / WARMUP_FILE)
        except IntegrityError as error:
            raise IntegrityError(f"{where}: {error}") from None
    except BaseException:
        process.end()
        raise
    return model
