"""Whatever stands in a field of a delivery, each adapter gives checked facts or a reason, in linear time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ciml.integrations.adapter import Delivery
from ciml.integrations.registry import adapters
from tests.growth import assert_linear
from tests.integrations.deliveries import samples
from tests.integrations.hostile import VALUES, changed, encoded, outcome, paths
from tests.tier import QUICK, part

SAMPLES = [
    pytest.param(name, delivery, id=f"{name}-{index}")
    for name in sorted(adapters())
    for index, delivery in enumerate(samples().get(name, ()))
]
each_sample = pytest.mark.parametrize(("adapter", "delivery"), SAMPLES)


def body_of(delivery: Delivery) -> Any:
    return json.loads(delivery.body)


@pytest.mark.parametrize("adapter", sorted(adapters()))
def test_every_adapter_has_samples_of_runs(adapter: str) -> None:
    found = {outcome(adapter, delivery) for delivery in samples()[adapter]}
    assert found & {"run", "update"}
    assert found <= {"run", "update", "ignored"}


@each_sample
def test_every_field_may_be_lost_or_be_anything(adapter: str, delivery: Delivery) -> None:
    body = body_of(delivery)
    unchanged = outcome(adapter, delivery)
    outcomes = {unchanged} if QUICK else set()
    for number, path in enumerate(paths(body)):
        outcomes |= {outcome(adapter, encoded(delivery, changed(body, path, new))) for new in part(VALUES, number)}
    assert unchanged in outcomes
    assert len(outcomes) > 1 or unchanged == "ignored", "no field of this sample matters"


@each_sample
def test_every_header_may_be_lost_or_be_anything(adapter: str, delivery: Delivery) -> None:
    for name in delivery.headers:
        for new in (value for value in VALUES if isinstance(value, str) and value.isprintable()):
            outcome(adapter, delivery._replace(headers={**delivery.headers, name: new}))
        outcome(adapter, delivery._replace(headers={}))


@each_sample
def test_every_body_may_be_cut_or_damaged(adapter: str, delivery: Delivery) -> None:
    broken = {"broken_json"} | ({"ignored"} & {outcome(adapter, delivery)})  # by its header alone
    for cut in range(0, len(delivery.body), 28 if QUICK else 7):
        outcome(adapter, delivery._replace(body=delivery.body[:cut] or b"x"))
        damaged = delivery.body[:cut] + b"\xff" + delivery.body[cut + 1 :]
        assert outcome(adapter, delivery._replace(body=damaged)) in broken
    for other in (b"[]", b"null", b'"x"', b"7", b"[" * 100_000, b'{"a":' * 100_000):
        assert outcome(adapter, delivery._replace(body=other)) in (
            "bad_field",
            "broken_json",
            "not_an_event",
            "ignored",
        )


@pytest.mark.parametrize(("adapter", "delivery"), part(SAMPLES, 0))
def test_a_field_of_any_size_takes_linear_time(adapter: str, delivery: Delivery) -> None:
    body = body_of(delivery)

    def grown(size: int) -> list[Delivery]:
        grew = []
        for path in paths(body):
            found = body
            for name in path:
                found = found[name]
            if isinstance(found, str):
                grew += [encoded(delivery, changed(body, path, text * size)) for text in ("a", "a/", "@ /", "refs/")]
            elif isinstance(found, list):
                grew.append(encoded(delivery, changed(body, path, found * (size // 20))))
        return grew

    def read(deliveries: list[Delivery]) -> None:
        for one in deliveries:
            outcome(adapter, one)

    assert_linear(grown, read, 2_000)
