"""``ciml gate``: why the gate passed or rejected a candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.command import make_command
from ciml.cli.options import Data, Json
from ciml.cli.output import print_table, printable
from ciml.options import argument

if TYPE_CHECKING:
    from ciml.data_root import DataRoot
    from ciml.serving.registry import Candidate, Decision


class ExplainOptions(Data, Json):
    """Options of ``ciml gate explain``."""

    candidate: str = argument()


@make_command("explain")
def explain_decision(options: ExplainOptions) -> None:
    """Show each check of a candidate with its figures.

    A candidate is named by its id, or the beginning of it; a model by its name, which stands for its last candidate.

    \b
    Example:
      ciml gate explain provider --data-path data
      ciml gate explain 3f0c2a --data-path data
    """
    model, candidate, decision = _find(options.root, options.candidate)
    explained = {
        "model": model,
        "candidate": candidate.id,
        "blessed": decision.blessed,
        "reasons": list(decision.reasons),
        "checks": decision.metrics.get("checks", []),
    }
    options.show(explained, _print)


def _find(root: DataRoot, name: str) -> tuple[str, Candidate, Decision]:
    """Return the candidate that a model or the beginning of an id names. Raises `CimlError` unless it is one."""
    from ciml.errors import CimlError
    from ciml.serving.registries import known_registries

    states = {model: registry.state for model, registry in known_registries(root).items()}
    if name in states:
        named = [(name, states[name].last_candidate)]
    else:
        named = [(model, id) for model, state in states.items() for id in state.candidates if id.startswith(name)]
    if not named or not named[0][1]:
        raise CimlError(f"{name!r:.80}: no model or candidate has this name; ciml models history lists candidates")
    if len(named) > 1:
        raise CimlError(f"{name!r:.80}: {len(named)} candidates begin like this; give more characters")
    ((model, candidate),) = named
    decision = states[model].decisions.get(candidate)
    if decision is None:
        raise CimlError(f"model {model}: candidate {candidate} has no decision yet")
    return model, states[model].candidates[candidate], decision


def _print(explained: Mapping[str, Any]) -> None:
    result = "blessed" if explained["blessed"] else "rejected"
    click.echo(f"{explained['model']}: candidate {explained['candidate']} is {result}")
    if not explained["checks"]:  # an earlier version recorded the reasons only
        for reason in explained["reasons"]:
            click.echo(printable(reason))
        return
    checks = [(check["check"], "ok" if check["passed"] else "FAILED", check["reason"]) for check in explained["checks"]]
    print_table(("check", "", "figures"), [tuple(map(printable, row)) for row in checks])
    failed_checks = {check["reason"] for check in explained["checks"] if not check["passed"]}
    for reason in explained["reasons"]:
        if not explained["blessed"] and reason not in failed_checks:
            click.echo(printable(reason))


@click.group("gate", commands=[explain_decision])
def command() -> None:
    """Explain decisions of the gate.

    \b
    Example:
      ciml gate explain provider --data-path data
    """
