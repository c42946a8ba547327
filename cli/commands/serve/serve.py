"""``ciml serve``: the model server."""

from __future__ import annotations

import click

from ciml.cli.command import call_with_options, make_command
from ciml.cli.running import Endpoint
from ciml.limits import MAX_BODY_S, MAX_GRPC_CONNECTIONS, MAX_HEADER_S, MAX_REST_CONNECTIONS
from ciml.options import flag, option


class ServeOptions(Endpoint):
    """Options of ``ciml serve``.

    Attributes:
      config: ModelServerConfig in text format, polled. [default: DATA/models/models.config]
      registry: Folder of the model registries. [default: next to the models' folder]
      unverified: Serve models without registry and digests, for foreign models.
      host: Address to listen on, without authentication.
      grpc_port: Port of the gRPC API; 0 for any free port.
      rest_port: Port of the REST API; 0 for any free port.
      poll_s: Interval of polling the configuration, in seconds.
      rest_connections: Maximum open REST connections.
      grpc_connections: Maximum open gRPC connections.
      header_s: Timeout of a request's header, in seconds.
      body_s: Timeout of a request's body, in seconds.
      allow_reload: Answer HandleReloadConfigRequest; any client can then change the configuration.
    """

    data_path: str | None = option(kind="new data")
    config: str | None = option(metavar="FILE|s3://OBJECT")
    registry: str | None = option(metavar="FOLDER")
    unverified: bool = flag()
    host: str = option("127.0.0.1")
    grpc_port: int = option(8500)
    rest_port: int = option(8501)
    poll_s: float = option(0.5, flags="--poll-seconds")
    rest_connections: int = option(MAX_REST_CONNECTIONS)
    grpc_connections: int = option(MAX_GRPC_CONNECTIONS)
    header_s: float = option(MAX_HEADER_S, flags="--header-seconds")
    body_s: float = option(MAX_BODY_S, flags="--body-seconds")
    allow_reload: bool = flag()


@make_command("serve")
def command(options: ServeOptions) -> None:
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

    config = options.config
    if config is None:
        if options.data_path is None:
            raise click.UsageError("no configuration: give --data-path DATA or --config FILE")
        config = DataRoot.open(options.data_path).models.url(CONFIG_NAME)
    logging.getLogger("ciml.serving").setLevel(logging.INFO)  # logs the served versions
    run(call_with_options(ServerOptions, options, config=config, verify=not options.unverified))
