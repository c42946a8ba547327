"""What to do about the dead letters of a source that was just connected."""

from __future__ import annotations

from collections.abc import Mapping

REMEDIES: Mapping[str, str] = {
    "address_not_allowed": "add the host to hosts of the fetch policy, or to private_hosts if its address is private; "
    "restart ingest",
    "log_not_found": "check that the job stores its telemetry there; name its path in log_paths, or its artifact in "
    "artifact_names, of the fetch policy",
    "log_forbidden": "check the token of the host, and its rights",
    "log_unavailable": "check that ingest can reach the host, and its certificate",
    "log_timeout": "check that ingest can reach the host",
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


#: Reasons whose dead letters a replay may settle, once their cause is gone.
_AGAIN = frozenset({"address_not_allowed", "log_not_found", "log_forbidden", "log_unavailable", "log_timeout"})


def remedy(reason: str, *, closed: bool = True) -> str:
    """Return what to do about an input of this reason; ``closed``: ingest does not try it again by itself."""
    what = REMEDIES.get(reason, _OTHER)
    return f"{what}; then: ciml dead-letters replay" if closed and reason in _AGAIN else what
