"""Everything that knows one CI or review system: adapters, receivers, review clients and the texts of ``ciml connect``.

An adapter is a pure function from a delivery to runs (`ciml.integrations.adapter`). A receiver produces the raw body to
Kafka; ingest calls the adapter when it decodes, so deliveries can be replayed with a corrected adapter.
"""

from ciml.integrations.adapter import Adapter, Delivery, Ignored, Reading, Run, RunUpdate

__all__ = ["Adapter", "Delivery", "Ignored", "Reading", "Run", "RunUpdate"]

#: The extra that installs the libraries of this room.
EXTRA = "receivers"
