"""``ciml serve``: the model server."""

from __future__ import annotations

from typing import Any

import click

from ciml.cli.options import data_path_option, metrics_options
from ciml.limits import MAX_BODY_S, MAX_GRPC_CONNECTIONS, MAX_HEADER_S, MAX_REST_CONNECTIONS


@click.command("serve")
@data_path_option(required=False, creates=True)
@click.option(
    "--config",
    metavar="FILE|s3://OBJECT",
    help="ModelServerConfig in text format, polled.  [default: DATA/models/models.config]",
)
@click.option(
    "--registry", metavar="FOLDER", help="Folder of the model registries.  [default: beside the models' folder]"
)
@click.option("--unverified", is_flag=True, help="Serve models without registry and digests, for foreign models.")
@click.option("--host", default="127.0.0.1", help="Address to listen on, without authentication.")
@click.option("--grpc-port", default=8500, help="Port of the gRPC API; 0 for any free port.")
@click.option("--rest-port", default=8501, help="Port of the REST API; 0 for any free port.")
@click.option("--poll-seconds", "poll_s", default=0.5, help="Interval of polling the configuration, in seconds.")
@click.option("--rest-connections", default=MAX_REST_CONNECTIONS, help="Maximum open REST connections.")
@click.option("--grpc-connections", default=MAX_GRPC_CONNECTIONS, help="Maximum open gRPC connections.")
@click.option("--header-seconds", "header_s", default=MAX_HEADER_S, help="Timeout of a request's header, in seconds.")
@click.option("--body-seconds", "body_s", default=MAX_BODY_S, help="Timeout of a request's body, in seconds.")
@click.option(
    "--allow-reload",
    is_flag=True,
    help="Answer HandleReloadConfigRequest; any client can then change the configuration.",
)
@metrics_options
def command(data_path: str | None, config: str | None, unverified: bool, **options: Any) -> None:
    """Serve pushed models over gRPC and REST.

    The API is that of TensorFlow Serving, with metrics for Prometheus. Only blessed versions with unaltered files are
    loaded. A push takes effect without a restart or a failed request. The server prints one line of JSON with its ports
    when it is ready, and runs until a signal.

    \b
    Example:
      ciml serve --data-path data
      curl -s http://127.0.0.1:8501/v1/models/provider
    """
    import logging

    from ciml.data_root import DataRoot
    from ciml.serving.model_files import CONFIG_NAME
    from ciml.serving.server.server import ServerOptions, run

    if config is None:
        if data_path is None:
            raise click.UsageError("no configuration: give --data-path DATA or --config FILE")
        config = DataRoot.open(data_path).models.url(CONFIG_NAME)
    logging.getLogger("ciml.serving").setLevel(logging.INFO)  # logs the served versions
    run(ServerOptions(config=config, verify=not unverified, **options))
