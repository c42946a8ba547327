"""A model on a server: addresses, older and failing models, replaced versions, and hostile servers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ciml.data_root import DataRoot
from ciml.datasets.definition import ResolvedDefinition
from ciml.errors import CimlError, EngineError, IntegrityError, RejectedInput
from ciml.serving.client import NotServedError
from ciml.serving.description import describe_values
from ciml.serving.predict import remote
from ciml.serving.predict.answers import Answer, LocalModel
from ciml.serving.predict.remote import RemoteModel
from ciml.serving.remote import Described, RestServer, ServedModel, parse_url
from ciml.serving.server.server import ModelServer, ServerOptions
from tests.pipelines.predict.predicting import telemetry
from tests.pipelines.predict.test_hostile import huge
from tests.serving.models_fixture import DEFINITION, push_models, save_model

BASE = "http://h:1"


@pytest.mark.parametrize(
    ("url", "served"),
    [
        ("http://h:1/v1/models/m", ServedModel(BASE, "m")),
        ("http://h:1/v1/models/m/versions/7:predict", ServedModel(BASE, "m", 7)),
        ("http://h:1/v1/models/m/labels/canary/", ServedModel(BASE, "m", None, "canary")),
        ("http://h:1/a/b/v1/models/m/metadata", ServedModel(BASE + "/a/b", "m")),
        ("https://h/v1", ServedModel("https://h")),
        ("http://[::1]:1", ServedModel("http://[::1]:1")),
        ("http://h:1/", ServedModel(BASE)),
        ("grpc://h:1", ServedModel("grpc://h:1")),
        ("grpc://h:1/m/", ServedModel("grpc://h:1", "m")),
    ],
)
def test_an_address_may_name_the_model(url: str, served: ServedModel) -> None:
    assert parse_url(url) == served
    if not served.model:
        assert parse_url(url, "n", 3) == ServedModel(served.url, "n", 3)


@pytest.mark.parametrize(
    ("url", "arguments", "message"),
    [
        ("h:1", {}, "is not the address of a model server; want http://"),
        ("ftp://h:1", {}, "is not the address"),
        ("grpc://h", {}, "is not the address"),
        ("http://user:secret@h:1", {}, "is not the address"),
        ("http://h:1?a=b", {}, "is not the address"),
        ("http://h:99999", {}, "is not the address"),
        ("http://h:1/v1/models/m", {"model": "n"}, "names the model 'm', not 'n'"),
        ("http://h:1/v1/models/m/versions/1", {"version": 2}, "names a version or a label already"),
        ("http://h:1/v1/models/..%2f", {}, "invalid model name"),
    ],
)
def test_another_address_is_rejected(url: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CimlError, match=message):
        parse_url(url, **arguments)


def urls(server: ModelServer) -> list[str]:
    return [f"http://127.0.0.1:{server.rest_port}", f"grpc://127.0.0.1:{server.grpc_port}"]


def test_a_model_of_an_earlier_version_says_what_is_missing(server: ModelServer) -> None:
    for url in urls(server):
        with pytest.raises(CimlError, match="has no signature 'describe', because an earlier version of ciml"):
            RemoteModel(parse_url(url, "m"), 30.0)
        with pytest.raises(NotServedError):
            RemoteModel(parse_url(url, "none"), 30.0)
        with pytest.raises(NotServedError):
            RemoteModel(parse_url(url, "m", version=99), 30.0)
        with pytest.raises(NotServedError):
            RemoteModel(parse_url(url, "m", label="none"), 30.0)


def test_a_run_that_the_model_fails_for_affects_only_itself(tmp_path: Path) -> None:
    """Without the label ``stable``, the latest version is used."""
    data = DataRoot.open(tmp_path / "data")
    push_models(data, save_model(tmp_path / "m", spoil="strict", described=DEFINITION), label="canary")
    with ModelServer(ServerOptions(data.models.url("models.config"), grpc_port=0, rest_port=0)) as server:
        tables = [telemetry(number, 5 + number) for number in range(6)]
        tables[2] = huge(2)
        expected = LocalModel(data, "m", label="canary").predict(tables)
        for url in urls(server):
            model = RemoteModel(parse_url(url, "m"), 30.0)
            for answer, other in zip(model.predict(tables), expected, strict=True):
                if isinstance(other, RejectedInput):
                    assert isinstance(answer, RejectedInput)
                    assert answer.reason == other.reason == "model_error"
                else:
                    assert isinstance(answer, Answer)
                    assert answer.probabilities == pytest.approx(other.probabilities, abs=1e-6)
            model.close()


class Replaced:
    """A server whose version is replaced by one with other windows after its description."""

    served = ServedModel(BASE, "m")

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[int, ...]]] = []
        self.version = 1

    def describe(self) -> Described:
        definition = DEFINITION.replace(windows=4 + self.version)
        return Described({name: value for name, (_, value) in describe_values(definition, "m").items()}, self.version)

    def probabilities(self, inputs: np.ndarray, n_windows: np.ndarray, version: int) -> np.ndarray:
        self.calls.append((version, inputs.shape))
        if self.version == version == 2:
            return np.full((len(inputs), 4), 0.25, np.float32)
        self.version = 2
        raise NotServedError("version 1 is not served")

    def max_rows(self, row_values: int) -> int:
        return 2

    def close(self) -> None:
        pass


def test_runs_are_prepared_again_for_a_version_that_replaces_another(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Replaced()
    monkeypatch.setattr(remote, "connect", lambda served, timeout_s: server)
    answers = RemoteModel(ServedModel(BASE, "m"), 1.0).predict([telemetry(number, 20) for number in range(3)])
    assert [type(answer) for answer in answers] == [Answer] * 3
    assert server.calls == [(1, (2, 5, 3)), (2, (2, 6, 3)), (2, (1, 6, 3))]


class Loading(Replaced):
    """A server that has just started: it loads its model during the first descriptions."""

    def __init__(self, answer: str, descriptions: int) -> None:
        super().__init__()
        self.version = 2
        self.answer = answer
        self.unanswered = descriptions

    def describe(self) -> Described:
        if self.unanswered:
            self.unanswered -= 1
            raise EngineError(self.answer)
        return super().describe()


def test_a_client_waits_for_a_model_that_is_being_loaded_and_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LOADING_PAUSE_S", 0.0)
    server = Loading("503: model m is being loaded", 3)
    monkeypatch.setattr(remote, "connect", lambda served, timeout_s: server)
    assert RemoteModel(ServedModel(BASE, "m"), 30.0).version == 2
    for unavailable, limit_s in (("503: model m is being loaded", 0.0), ("connection refused", 30.0)):
        server = Loading(unavailable, 1_000_000)
        with pytest.raises(EngineError, match=unavailable):
            RemoteModel(ServedModel(BASE, "m"), limit_s)


def answer_of(resolved: ResolvedDefinition, **changes: Any) -> dict[str, Any]:
    values = {name: value for name, (_, value) in describe_values(resolved, "m").items()}
    return {"predictions": [{**values, **changes}]}


METADATA = {
    "model_spec": {"name": "m", "signature_name": "", "version": "1"},
    "metadata": {"signature_def": {"signature_def": {"describe": {}}}},
}
GOOD = answer_of(DEFINITION)
PROFILE = DEFINITION.replace(
    definition=DEFINITION.definition.replace(context=("profile",)),
    features=(*DEFINITION.features, *(f"profile:{number}" for number in range(10))),
)
#: Answers to GET …/metadata, to the description, and to a prediction, and the error.
HOSTILE: list[tuple[Any, Any, Any, type[Exception], str]] = [
    ((302, b""), GOOD, {}, CimlError, "answers 302, a redirect, which is not followed"),
    ((200, b"<html>"), GOOD, {}, EngineError, "unexpected JSON"),
    ((200, b"[" * 100_000), GOOD, {}, EngineError, "unexpected JSON"),
    ((200, b" " * (9 << 20)), GOOD, {}, EngineError, "MAX_ANSWER_BYTES"),
    ((500, b"\x1b[31mno"), GOOD, {}, EngineError, "answers 500"),
    (METADATA, GOOD, (503, b"{}"), EngineError, "answers 503"),  # a busy server, not a failing model
    ({**METADATA, "model_spec": {"version": "../2"}}, GOOD, {}, EngineError, "is not a version"),
    (METADATA, {"predictions": []}, {}, EngineError, "0 descriptions"),
    (METADATA, answer_of(DEFINITION, definition=3), {}, IntegrityError, "has no definition"),
    (METADATA, answer_of(DEFINITION, definition="{}"), {}, IntegrityError, "invalid definition"),
    (METADATA, answer_of(DEFINITION, definition="[" * 99_999), {}, IntegrityError, "invalid definition"),
    (METADATA, answer_of(DEFINITION, definition=" " * (1 << 20) + "{}"), {}, IntegrityError, "has no definition"),
    (METADATA, answer_of(DEFINITION, classes=["x"]), {}, IntegrityError, "has classes"),
    (METADATA, answer_of(DEFINITION, windows=None), {}, IntegrityError, "has windows"),
    (METADATA, answer_of(PROFILE), {}, CimlError, r"context 'profile'\), which a server does not publish"),
    (METADATA, GOOD, {"outputs": [[1.0]]}, IntegrityError, r"answer of shape \(1,\) for 4 classes"),
    (METADATA, GOOD, {"outputs": [[1, 0, 0, 0]] * 2}, EngineError, "no probabilities of 1 runs"),
    (METADATA, GOOD, {"outputs": {"probabilities": "x"}}, EngineError, "no probabilities of 1 runs"),
    (METADATA, GOOD, {"outputs": {"probabilities": [[{}] * 4]}}, EngineError, "no probabilities of 1 runs"),
    (METADATA, GOOD, (200, b'{"outputs": [[1, 0, 0, NaN]]}'), EngineError, "unexpected JSON"),
    (METADATA, GOOD, None, EngineError, "does not answer in time"),
]


@contextmanager
def http_server(answer: Callable[[str], Any]) -> Iterator[str]:
    """A server that answers a request's path with a JSON value, with (status, body), or by a byte now and then."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("content-length", 0))
            path = "describe" if b'"describe"' in self.rfile.read(length) else self.path
            content = answer(path)
            status, body = content if isinstance(content, tuple) else (200, json.dumps(content).encode())
            self.send_response(status)
            self.send_header("location", "http://127.0.0.1:9/")
            self.send_header("content-length", str(len(body) if content is not None else 1000))
            self.end_headers()
            try:
                while content is None:  # drips until the client gives up
                    self.wfile.write(b" ")
                    time.sleep(0.02)
                self.wfile.write(body)
            except OSError:
                pass

        do_POST = do_GET  # noqa: N815 - its names are those of methods of HTTP

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("metadata", "description", "prediction", "kind", "message"), HOSTILE)
def test_a_hostile_server_is_an_error(
    metadata: Any, description: Any, prediction: Any, kind: type[Exception], message: str
) -> None:
    def answer(path: str) -> Any:
        return description if path == "describe" else prediction if path.endswith(":predict") else metadata

    limit_s = 1.0 if prediction is None else 30.0
    with http_server(answer) as url, pytest.raises(kind, match=message):
        RemoteModel(parse_url(url, "m"), limit_s).predict([telemetry(0, 20)])


def test_a_run_that_the_model_of_a_rest_server_fails_for_affects_only_itself() -> None:
    failed = (504, b'{"error": "takes longer than 30 s for one call"}')
    predictions = [(500, b"{}"), {"outputs": [[0.25] * 4]}, failed]  # of both runs, of the first, of the second

    def answer(path: str) -> Any:
        return GOOD if path == "describe" else predictions.pop(0) if path.endswith(":predict") else METADATA

    with http_server(answer) as url:
        answers = RemoteModel(parse_url(url, "m"), 30.0).predict([telemetry(0, 20), telemetry(1, 20)])
    assert isinstance(answers[0], Answer)
    assert isinstance(answers[1], RejectedInput)
    assert answers[1].reason == "model_error"
    assert "takes longer than 30 s" in answers[1].detail


def test_a_request_waits_for_those_of_other_threads_no_longer_than_its_own_limit() -> None:
    server = RestServer(ServedModel(BASE, "m"), 0.05)
    with server._lock, pytest.raises(EngineError, match=r"http://h:1: requests of other threads took 0\.05 s"):
        server.describe()
    server.close()


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a", "b"], "choose from a, b"), ([], "name the model on"), (["../x"], "invalid model name")],
)
def test_without_a_model_the_only_one_of_a_server_is_used(names: list[str], message: str) -> None:
    with http_server(lambda path: {"models": names}) as url, pytest.raises(CimlError, match=message):
        RemoteModel(parse_url(url), 5.0)


def test_without_a_model_grpc_has_no_list() -> None:
    with pytest.raises(CimlError, match="name the model on grpc://h:1: grpc://h:1/NAME, or --model NAME"):
        RemoteModel(parse_url("grpc://h:1"), 5.0)
