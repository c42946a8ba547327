"""Loads a model version: a checked private copy, a session of its own, and warm-up requests.

A session owns its graph, variables and thread-safe callables, and frees them when it is closed. The SavedModel's object
graph, which names Python classes, is never read.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ciml.errors import IntegrityError
from ciml.limits import MAX_MODEL_CALL_S, MAX_REQUEST_ROWS
from ciml.storage.open import Store
from ciml.tensorflow import load_tensorflow
from serving.model_files import LAST_FILE, WARMUP_FILE, copy_model
from serving.server.model.allowed_ops import check_ops
from serving.server.model.loaded_model import LoadedModel, one_line
from serving.server.model.warmup import warm_up

#: Raises unless the copied files (digests by path) are those of a version that may be served.
Verify = Callable[[Mapping[str, str]], None]


def load_model(
    folder: Store, verify: Verify | None = None, *, max_rows: int = MAX_REQUEST_ROWS, call_s: float = MAX_MODEL_CALL_S
) -> LoadedModel:
    """Load the version in ``folder`` and warm it up.

    Args:
      folder: ``<base_path>/<version>``, local or on S3.
      verify: raises if the copied files are not those of a version that may be served.
      max_rows: the largest batch of one request.
      call_s: limit of a call, seconds, also of restoring the variables.

    Raises:
      FileNotFoundError: if there is no such version.
      IntegrityError: if it is corrupt or altered, holds a forbidden operation, or fails its warm-up.
    """
    tf = load_tensorflow()
    work = Path(tempfile.mkdtemp(prefix="ciml-model-"))
    try:
        copy = work / "model"
        digests = copy_model(folder, copy)
        if LAST_FILE not in digests:
            raise IntegrityError(f"{folder.root} has no {LAST_FILE}: not a complete SavedModel")
        if verify is not None:
            verify(digests)
        meta_graph = _checked_meta_graph(folder.root, copy / LAST_FILE)
        config = tf.compat.v1.ConfigProto(operation_timeout_in_ms=int(call_s * 1000))
        session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        try:
            with session.graph.as_default():
                tf.compat.v1.saved_model.loader.load(session, ["serve"], str(copy))
            model = LoadedModel(session, meta_graph, folder.root, max_rows, call_s)
            try:
                warm_up(model, copy / WARMUP_FILE)
            except IntegrityError as error:
                raise IntegrityError(f"{folder.root}: {error}") from None
        except BaseException:
            session.close()
            raise
        return model
    except (tf.errors.OpError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise IntegrityError(f"{folder.root} cannot be loaded: {one_line(str(error))}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _checked_meta_graph(where: str, file: Path) -> Any:
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    saved_model = saved_model_pb2.SavedModel()
    try:
        saved_model.ParseFromString(file.read_bytes())
    except DecodeError:
        raise IntegrityError(f"{where}/{LAST_FILE} is corrupt") from None
    graphs = [one for one in saved_model.meta_graphs if "serve" in one.meta_info_def.tags]
    if len(graphs) != 1 or len(saved_model.meta_graphs) != 1:
        raise IntegrityError(f"{where} holds {len(saved_model.meta_graphs)} graphs; expected one, tagged serve")
    try:
        check_ops(graphs[0])
    except IntegrityError as error:
        raise IntegrityError(f"{where}: {error}") from None
    return graphs[0]
