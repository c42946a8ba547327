"""The talk's ``--s3-profile`` and ``--s3-url``."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def _sets(variable: str) -> Callable[[click.Context, click.Parameter, str | None], None]:
    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value and not ctx.resilient_parsing:
            os.environ[variable] = value

    return callback


def s3_options(command: F) -> F:
    """``--s3-profile`` and ``--s3-url``, which set AWS_PROFILE and AWS_ENDPOINT_URL_S3; they pass no argument."""
    for name, variable, metavar, text in (
        ("--s3-url", "AWS_ENDPOINT_URL_S3", "URL", "S3 endpoint.  [default: $AWS_ENDPOINT_URL_S3]"),
        ("--s3-profile", "AWS_PROFILE", "NAME", "AWS profile of the S3 credentials.  [default: $AWS_PROFILE]"),
    ):
        command = click.option(
            name, metavar=metavar, expose_value=False, is_eager=True, callback=_sets(variable), help=text
        )(command)
    return command
