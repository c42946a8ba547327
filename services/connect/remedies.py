"""What to do about the dead letters of a source that was just connected."""

from __future__ import annotations

from collections.abc import Mapping

REMEDIES: Mapping[str, str] = {
    "address_not_allowed": "add the host to hosts of the fetch policy, or to private_hosts if its address is private; "
    "restart ingest; then: ciml dead-letters replay",
    "log_not_found": "check that the job stores its telemetry there; name its path in log_paths, or its artifact in "
    "artifact_names, of the fetch policy; then: ciml dead-letters replay",
    "log_forbidden": "check the token of the host, and its rights; then: ciml dead-letters replay",
    "log_unavailable": "check that ingest can reach the host, and its certificate; then: ciml dead-letters replay",
    "log_timeout": "check that ingest can reach the host; then: ciml dead-letters replay",
    "missing_field": "the job reports no such fact: let it store its telemetry and say where, as ciml connect prints; "
    "only later events have it",
    "unknown_type": "check the event types that the sender sends, and the adapter of the source",
    "broken_json": "check that the sender sends JSON: content type application/json",
    "bad_field": "see docs/adapters.md for the field; a new adapter can replay the dead letter",
    "not_an_event": "the topic has messages that no receiver of ciml produced; give receivers a topic of their own",
    "not_telemetry": "check that the file at this address is the CSV of dstat, dool or ciml record",
    "empty_telemetry": "check that the sampler ran: the file has no sample",
}
_OTHER = "see docs/dead-letters.md; ciml dead-letters show has the whole message"


def remedy(reason: str) -> str:
    """Return what to do about a dead letter of this reason."""
    return REMEDIES.get(reason, _OTHER)
