"""A model's allowed operations are checked by the operations that run, not by the names of its functions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ciml.errors import IntegrityError
from ciml.serving.server.model.graph import check_ops
from ciml.serving.server.model.loaded_model import load_model
from ciml.storage import open_store
from tests.serving.models_fixture import save_model


def saved_model(folder: Path) -> Any:
    from tensorflow.core.protobuf import saved_model_pb2

    return saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())


def altered(model: Path, folder: Path, alter: Callable[[Any], None]) -> Path:
    """Copy a model with its MetaGraphDef changed by ``alter``."""
    shutil.copytree(model, folder)
    saved = saved_model(folder)
    alter(saved.meta_graphs[0])
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    return folder


def meta_graph(model: Path, alter: Callable[[Any], None] = lambda graph: None) -> Any:
    graph = saved_model(model).meta_graphs[0]
    alter(graph)
    return graph


def named(name: str) -> Callable[[Any], None]:
    """Add a function of that name with allowed operations only."""

    def alter(graph: Any) -> None:
        function = graph.graph_def.library.function.add()
        function.signature.name = name

    return alter


@pytest.mark.parametrize("name", ["ReadFile", "MatMul", "EagerPyFunc", "RestoreV2"])
def test_function_with_the_name_of_an_operation_is_rejected(good: dict[int, Path], name: str) -> None:
    with pytest.raises(IntegrityError, match=f"function {name} has the name of an operation"):
        check_ops(meta_graph(good[2], named(name)))


def test_function_does_not_hide_an_operation(tmp_path: Path) -> None:
    """The model reads a file, and a harmless function has the operation's name."""
    model = save_model(tmp_path / "reads", spoil="read")
    with pytest.raises(IntegrityError, match="ReadFile"):
        check_ops(meta_graph(model, named("ReadFile")))


def test_bodies_of_functions_are_checked_for_any_name(tmp_path: Path) -> None:
    """A function with a harmless name reads a file, and is called as an operation of that name."""
    model = save_model(tmp_path / "reads", spoil="read")

    def rename(graph: Any) -> None:
        for function in graph.graph_def.library.function:
            if any(node.op == "ReadFile" for node in function.node_def):
                function.signature.name = f"harmless_{function.signature.name}"

    with pytest.raises(IntegrityError, match="operation ReadFile is not allowed"):
        check_ops(meta_graph(model, rename))


def test_two_of_one_name_are_rejected(good: dict[int, Path]) -> None:
    def function_twice(graph: Any) -> None:
        library = graph.graph_def.library.function
        library.add().CopyFrom(library[0])

    def node_twice(graph: Any) -> None:
        graph.graph_def.node.add().CopyFrom(graph.graph_def.node[0])

    for alter, what in ((function_twice, "functions"), (node_twice, "nodes")):
        with pytest.raises(IntegrityError, match=f"two {what} are named"):
            check_ops(meta_graph(good[2], alter))


def test_a_second_graph_is_rejected(good: dict[int, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good[1], tmp_path / "m"))
    saved = saved_model(folder)
    other = saved.meta_graphs.add()
    other.meta_info_def.tags.append("train")
    other.graph_def.node.add(name="read", op="ReadFile")
    (folder / "saved_model.pb").write_bytes(saved.SerializeToString())
    with pytest.raises(IntegrityError, match="holds 2 graphs; expected one, tagged serve"):
        load_model(open_store(folder))


def test_function_that_may_replace_another_counts_as_called(good: dict[int, Path]) -> None:
    """TensorFlow may run any function with the same ``api_implements``: all of them are checked."""

    def alter(graph: Any) -> None:
        library = graph.graph_def.library.function
        served = next(one for one in library if any(node.op == "Softmax" for node in one.node_def))
        saves = library.add()
        saves.signature.name = "saves"
        saves.node_def.add(name="save", op="SaveV2")
        for one in (served, saves):
            one.attr["api_implements"].s = b"the_same"

    with pytest.raises(IntegrityError, match="operation SaveV2 is not allowed for serving a model"):
        check_ops(meta_graph(good[2], alter))


@pytest.mark.parametrize("collection", ["saved_model_main_op", "legacy_init_op"])
def test_initialisers_do_not_save(good: dict[int, Path], collection: str) -> None:
    def alter(graph: Any) -> None:
        saved = graph.saver_def.save_tensor_name.split(":")[0]
        graph.collection_def[collection].node_list.value.append(saved)

    with pytest.raises(IntegrityError, match="is not allowed for serving a model"):
        check_ops(meta_graph(good[2], alter))


def test_models_as_they_are_exported_pass(good: dict[int, Path]) -> None:
    check_ops(meta_graph(good[1]))
