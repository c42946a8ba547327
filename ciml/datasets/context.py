"""The names of context features: what an example holds of a run beside its telemetry.

A definition asks for kinds of context (`Context`). Their values are computed by `ciml.transforms.examples.context`;
each is the same in all windows of a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

#: ``outcome``: how the run ended. ``profile``: the run against the passing runs of its job. ``neighbours``: runs that
#: failed on the same provider shortly before.
Context: TypeAlias = Literal["outcome", "profile", "neighbours"]

OUTCOME_FEATURES = ("outcome:timeout", "outcome:exit", "outcome:signal")
NEIGHBOUR_FEATURES = ("neighbours:failed", "neighbours:share")
LENGTH_FEATURE = "profile:length"
#: Of each telemetry feature: its mean, its largest window and its last window.
PROFILE_PARTS = ("mean", "max", "last")


def context_features(context: Iterable[Context], features: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the context features, in the order of the kinds.

    Args:
      context: the kinds, in the definition's order.
      features: names of the telemetry features.
    """
    return tuple(name for kind in context for name in _names(kind, features))


def _names(kind: Context, features: Sequence[str]) -> Iterator[str]:
    if kind == "outcome":
        yield from OUTCOME_FEATURES
    elif kind == "neighbours":
        yield from NEIGHBOUR_FEATURES
    else:
        yield LENGTH_FEATURE
        for feature in features:
            for part in PROFILE_PARTS:
                yield f"profile:{part}:{feature}"
