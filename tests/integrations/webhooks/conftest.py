"""Fixtures of receivers."""

from tests.integrations.receivers.conftest import probe

__all__ = ["probe"]
