"""``ciml dataset``: data sets, their spans and files."""

from __future__ import annotations

from cli.commands.data.dataset.manage import command

__all__ = ["command"]
