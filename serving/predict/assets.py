"""The assets of a model that a prediction needs, verified by the registry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from ciml.data_root import DataRoot
from ciml.serving.contract import DEFINITION, read_definition
from ciml.serving.registry import Candidate, Registry, read_asset
from ciml.storage import Store
from ciml.verdict_rules import VERDICTS, VerdictRules, read_rules

if TYPE_CHECKING:
    from ciml.datasets.definition import Context, ResolvedDefinition


@dataclass(frozen=True)
class ModelAssets:
    """The assets of a version that a prediction needs.

    Attributes:
      definition: the data set definition by which runs are prepared.
      rules: of verdicts; None for a model that gives none.
      snapshot: digest of the snapshot that the model learned; "" for one that was not trained by ciml.
    """

    definition: ResolvedDefinition
    rules: VerdictRules | None
    snapshot: str = ""

    @cached_property
    def learned(self) -> Mapping[str, str]:
        """What a prediction names of the model's learning: digests of its definition and its snapshot."""
        snapshot = {"snapshot": self.snapshot} if self.snapshot else {}
        return {"definition": self.definition.digest, **snapshot}

    def takes(self, kind: Context) -> bool:
        """Return whether the model takes a kind of context."""
        return kind in (self.definition.definition.context or ())


def read_assets(registry: Registry, version: int) -> ModelAssets:
    """Read the assets of a pushed version, verified against the registry.

    Raises:
      IntegrityError: if a file was altered, or is malformed.
    """
    state = registry.state
    assets = assets_of(registry.folder(version), state.files(version), f"model {registry.model}, version {version}: ")
    return replace(assets, snapshot=snapshot_in(state.candidates[state.versions[version].candidate]))


def snapshot_in(candidate: Candidate) -> str:
    """Return the digest of the snapshot that a candidate learned; "" if its facts have none."""
    snapshot = candidate.facts.get("snapshot")
    return snapshot if isinstance(snapshot, str) else ""


def assets_of(folder: Store, files: Mapping[str, str], where: str) -> ModelAssets:
    """Read the assets of a model's folder, verified by the digests of its files.

    Raises:
      IntegrityError: if a file was altered, or is malformed.
    """
    definition = read_definition(read_asset(folder, files, DEFINITION), where + DEFINITION)
    if f"assets/{VERDICTS}" not in files:
        return ModelAssets(definition, None)
    rules = read_asset(folder, files, VERDICTS)
    return ModelAssets(
        definition, read_rules(rules, definition.classes, definition.features, f"{where}assets/{VERDICTS}")
    )


@lru_cache(maxsize=8)
def knows_ranges(data: DataRoot, model: str, version: int) -> bool:
    """Return whether a pushed version recognises runs unlike those that it learned.

    It does unless it was trained by a version of ciml that stored no ranges.

    Raises:
      IntegrityError: if its rules were altered.
    """
    registry = Registry(data, model)
    if f"assets/{VERDICTS}" not in registry.state.files(version):
        return False
    rules = json.loads(registry.read_asset(version, VERDICTS))
    return rules.get("ranges") is not None
