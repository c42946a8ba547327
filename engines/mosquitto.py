"""mosquitto, the MQTT broker of Debian's package, on loopback."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from ciml.engines.base import HOST, Engine, Launch, Settings
from ciml.errors import EngineError

# Anyone on this machine may publish and subscribe. Sessions and messages survive a restart.
_CONFIG = """\
listener {port} {host}
allow_anonymous true
user {me}
persistence true
persistence_location {folder}/
autosave_interval 1
max_queued_messages 0
"""


class Mosquitto(Engine):
    """The broker, without TLS and passwords. Its sessions in ``<home>/mosquitto`` survive a restart."""

    name = "mosquitto"
    uses = ("mosquitto",)

    def prepare(self, home: Path, ports: Mapping[str, int], settings: Settings) -> Launch:
        program = find_mosquitto()
        folder = home / "mosquitto"
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "mosquitto.conf"
        port = ports["mosquitto"]
        me = os.environ.get("USER", "root")  # else it would change to a user who may not write here
        config.write_text(_CONFIG.format(port=port, host=HOST, folder=folder, me=me))
        address = f"mqtt://{HOST}:{port}"
        return Launch("mosquitto (MQTT)", (program, "-c", str(config)), ports, address=address)


def find_mosquitto() -> str:
    """Return the path of mosquitto, which Debian puts beside the programs of the administrator.

    Raises:
      EngineError: it is not installed.
    """
    path = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise EngineError("mosquitto is not installed: apt-get install mosquitto")
    return path
