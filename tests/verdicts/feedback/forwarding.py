"""A proxy in front of a real server, whose faults are those of the stubs: a real one cannot be told to misbehave."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from urllib.parse import urlencode

from tests.verdicts.feedback.stub import Answer, Asked, ReviewServer


class ForwardingServer(ReviewServer):
    """Forwards each request to a server; ``effects`` are those that it accepted and that may change something."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self._target = target

    def answer(self, asked: Asked) -> Answer:
        query = f"?{urlencode(asked.query)}" if asked.query else ""
        kept = {name: asked.headers[name] for name in ("authorization", "content-type") if name in asked.headers}
        data = None if asked.body is None else json.dumps(asked.body).encode()
        sent = urllib.request.Request(f"{self._target}{asked.path}{query}", data, kept, method=asked.method)
        try:
            with urllib.request.urlopen(sent, timeout=60) as found:
                if asked.writes:
                    self.effects.append(asked)
                return Answer(found.status, found.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read())
