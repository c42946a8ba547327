"""The local S3 endpoint for the clients of this process."""

from __future__ import annotations

import os

import click

from ciml.engines import state


def use_local_s3(one: state.EngineState | None) -> bool:
    """Point this process's S3 clients to the local endpoint, if one runs and no other is configured.

    Returns:
      Whether it did. An endpoint, a profile or credentials in the environment take precedence.
    """
    configured = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_ACCESS_KEY_ID")
    if one is None or any(os.environ.get(name) for name in configured):
        return False
    from ciml.engines.http import s3_environment

    os.environ.update(s3_environment(one.address))
    click.echo(f"S3 is the local endpoint {one.address}", err=True)
    return True
