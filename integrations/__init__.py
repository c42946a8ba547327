"""Adapters: what CI systems send, in one pure module each. `ciml.integrations.adapter` is the interface for all.

A receiver produces the raw body to Kafka; ingest calls the adapter when it decodes, so a corrected adapter can replay.
"""

from ciml.integrations.adapter import Adapter, Delivery, Ignored, Reading, Run, RunUpdate

__all__ = ["Adapter", "Delivery", "Ignored", "Reading", "Run", "RunUpdate"]

#: The extra that installs the libraries of this room.
EXTRA = "receivers"
