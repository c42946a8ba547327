"""``--data-path``: of the command, else of ``ciml`` before it, else of the environment."""

from __future__ import annotations

import click

_GROUPS_VALUE = "ciml.data_path"


class DataPathOption(click.Option):
    """A command's ``--data-path``; its defaults are the value of `group_data_path`, then the environment."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        return ctx.meta.get(_GROUPS_VALUE) or super().resolve_envvar_value(ctx)


def group_data_path(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Store the group's ``--data-path`` for the command (a click callback)."""
    ctx.meta[_GROUPS_VALUE] = value
