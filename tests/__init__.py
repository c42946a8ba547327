"""Tests. Most of their events are in ciml's own format, without proof, so the policy for trials is their default."""

import os
from pathlib import Path

os.environ.setdefault("CIML_TRUST_POLICY", str(Path(__file__).parents[1] / "examples" / "trust.toml"))
