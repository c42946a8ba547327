"""``--data-path``: of the command, else of ``ciml`` before it, else of the environment."""

from __future__ import annotations

import click

_GROUPS_VALUE = "ciml.data_path"


class DataPathOption(click.Option):
    """A command's ``--data-path``, whose value `group_data_path` and then the environment stand in for."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        return ctx.meta.get(_GROUPS_VALUE) or super().resolve_envvar_value(ctx)


def group_data_path(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """The callback of the group's ``--data-path``: keeps the value for the command."""
    ctx.meta[_GROUPS_VALUE] = value
