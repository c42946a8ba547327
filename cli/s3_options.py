"""The talk's ``--s3-profile`` and ``--s3-url``."""

from __future__ import annotations

import os

import click

from cli.options import Option, stacked


def _sets(name: str, variable: str, metavar: str, what: str) -> Option:
    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value and not ctx.resilient_parsing:
            os.environ[variable] = value

    text = f"{what}.  [default: ${variable}]"
    return click.option(name, metavar=metavar, expose_value=False, is_eager=True, callback=callback, help=text)


#: ``--s3-profile`` and ``--s3-url``, which set AWS_PROFILE and AWS_ENDPOINT_URL_S3; they pass no argument.
s3_options = stacked(
    _sets("--s3-profile", "AWS_PROFILE", "NAME", "AWS profile of the S3 credentials"),
    _sets("--s3-url", "AWS_ENDPOINT_URL_S3", "URL", "S3 endpoint"),
)
