"""Any delivery of a CI system becomes checked facts or a reason; no secret of it becomes a fact."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from ciml.integrations.adapter import Delivery
from ciml.integrations.registry import adapters
from tests.fuzz.frame import fuzz
from tests.integrations.deliveries import samples
from tests.integrations.hostile import VALUES, changed, encoded, outcome, paths

_SAMPLES = [(name, delivery) for name, found in samples().items() if name in adapters() for delivery in found]


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[str, Delivery]:
    """Draw the name of an adapter and a delivery for it: a sample whose fields are lost, anything, or another's."""
    adapter, delivery = draw(st.sampled_from(_SAMPLES))
    body = json.loads(delivery.body)
    every = list(paths(body))
    for path in draw(st.lists(st.sampled_from(every), min_size=1, max_size=8, unique=True)):
        new = draw(st.sampled_from(VALUES) | st.text(max_size=40) | st.integers() | st.floats(allow_nan=False))
        body = changed(body, path, new)
    return adapter, encoded(delivery, body)


@fuzz
@given(deliveries())
def test_a_delivery_is_understood_or_rejected(given: tuple[str, Delivery]) -> None:
    outcome(*given)
