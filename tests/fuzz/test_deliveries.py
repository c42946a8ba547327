"""Any delivery of a CI system becomes checked facts or a reason; no secret of it becomes a fact."""

from __future__ import annotations

from hypothesis import given

from ciml.integrations.adapter import Delivery
from tests.fuzz.frame import fuzz
from tests.fuzz.strategies.deliveries import deliveries
from tests.integrations.hostile import outcome


@fuzz
@given(deliveries())
def test_a_delivery_is_understood_or_rejected(given: tuple[str, Delivery]) -> None:
    outcome(*given)
