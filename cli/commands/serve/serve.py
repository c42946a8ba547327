"""``ciml serve``: the model server."""

from __future__ import annotations

from typing import Any

import click

from ciml.limits import MAX_BODY_S, MAX_GRPC_CONNECTIONS, MAX_HEADER_S, MAX_REST_CONNECTIONS
from cli.options import data_path_option, home_option, metrics_options


@click.command("serve", short_help="Serve the pushed models.")
@data_path_option(required=False)
@home_option
@click.option(
    "--config",
    metavar="FILE|s3://OBJECT",
    help="A ModelServerConfig in text form, polled.  [default: DATA/models/models.config]",
)
@click.option("--registry", metavar="FOLDER", help="Where the registries are.  [default: beside the models' folder]")
@click.option(
    "--unverified", is_flag=True, help="Serve whatever the configuration names, without a registry: for foreign models."
)
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="The address to listen on. There is no authentication."
)
@click.option("--grpc-port", default=8500, show_default=True, help="0: the system chooses.")
@click.option("--rest-port", default=8501, show_default=True, help="0: the system chooses.")
@click.option("--poll-seconds", default=0.5, show_default=True, help="How often the configuration is looked at.")
@click.option("--rest-connections", default=MAX_REST_CONNECTIONS, show_default=True, help="Open REST connections.")
@click.option("--grpc-connections", default=MAX_GRPC_CONNECTIONS, show_default=True, help="Open gRPC connections.")
@click.option("--header-seconds", default=MAX_HEADER_S, show_default=True, help="Time for a request's header.")
@click.option("--body-seconds", default=MAX_BODY_S, show_default=True, help="Time for the rest of a request.")
@click.option("--allow-reload", is_flag=True, help="Answer HandleReloadConfigRequest: any client may then change it.")
@metrics_options
def command(
    data_path: str | None,
    config: str | None,
    registry: str | None,
    unverified: bool,
    host: str,
    grpc_port: int,
    rest_port: int,
    poll_seconds: float,
    rest_connections: int,
    grpc_connections: int,
    header_seconds: float,
    body_seconds: float,
    allow_reload: bool,
    metrics_port: int | None,
    metrics_address: str,
    **_: Any,
) -> None:
    """Serve the pushed models: TensorFlow Serving's gRPC and REST API, and metrics for Prometheus.

    Only versions that were pushed with a blessing, and whose files are as they were then, are loaded. A push is taken
    in while it runs, and no request fails of it. Prints one line of JSON with its ports when it is ready; runs until
    it is ended.

    \b
    Example:
      ciml serve --data-path data
      curl -s http://127.0.0.1:8501/v1/models/provider
    """
    import logging

    from ciml.storage.open import open_store
    from serving.model_config import CONFIG_NAME
    from serving.server.server import ServerOptions, run

    if config is None:
        if data_path is None:
            raise click.UsageError("give --data-path DATA or --config FILE")
        config = open_store(data_path).url(f"models/{CONFIG_NAME}")
    logging.getLogger("serving").setLevel(logging.INFO)  # which version is served since when: what one looks for
    run(
        ServerOptions(
            config=config,
            registry=registry,
            verify=not unverified,
            host=host,
            grpc_port=grpc_port,
            rest_port=rest_port,
            poll_s=poll_seconds,
            rest_connections=rest_connections,
            grpc_connections=grpc_connections,
            header_s=header_seconds,
            body_s=body_seconds,
            allow_reload=allow_reload,
            metrics_port=metrics_port,
            metrics_address=metrics_address,
        )
    )
