"""Options that several commands share, with one meaning everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import reduce, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ciml.cli.param_types import DataPathOption
from ciml.engines import state
from ciml.engines.local_s3 import use_local_s3
from ciml.errors import CimlError

if TYPE_CHECKING:
    from typing import TypeAlias

FLINK = "flink"
MICRO_BATCHES = "micro-batches"

#: A decorator that adds one or more options.
Option: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True)
class EngineChoice:
    """The engine of a streaming pipeline.

    Attributes:
      name: ``flink``, or ``micro-batches`` for repeated bounded batches on Beam's FnApiRunner.
      job_endpoint: the job server's ``host:port`` for ``flink``, else None.
      named: whether the user named that address; else it is the address of the home's own engine.
    """

    name: str
    job_endpoint: str | None = None
    named: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name} at {self.job_endpoint}" if self.job_endpoint else self.name


#: Repeated bounded batches in this process.
HERE = EngineChoice(MICRO_BATCHES)


def stacked(*options: Option) -> Option:
    """Return one decorator that adds all these options, in this order of ``--help``."""
    return lambda command: reduce(lambda decorated, option: option(decorated), reversed(options), command)


def gathered(parameter: str, names: Iterable[str], make: Callable[..., object]) -> Option:
    """Return a decorator: the command gets the values of several options as one object, the argument ``parameter``.

    Args:
      parameter: name of the argument.
      names: of the options' values; those that the command does not have are left out.
      make: returns the object for the values as keyword arguments.
    """

    def apply(command: Callable[..., Any]) -> Any:
        @wraps(command)
        def with_object(**values: Any) -> Any:
            arguments = {name: values.pop(name) for name in names if name in values}
            return command(**{parameter: make(**arguments)}, **values)

        return with_object

    return apply


def _home(ctx: click.Context, param: click.Parameter, value: str | None) -> Path:
    home = Path(value).absolute() if value else state.default_home()
    ctx.meta["ciml.home"] = home
    return home


def home_of(ctx: click.Context) -> Path:
    """Return the home of the local engines that ``--home`` gave."""
    home: Path = ctx.meta.get("ciml.home") or state.default_home()
    return home


def running_engines(ctx: click.Context) -> dict[str, state.EngineState]:
    """Return the engines that run in the home of ``--home``, by name."""
    states = state.read(home_of(ctx))
    if not states:
        return {}
    from ciml.engines import processes

    return {
        n: engine
        for n, engine in states.items()
        if engine.pid is None or processes.find(engine.pid, engine.started) is not None
    }


def s3_place(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Callback of an option or argument that may be an ``s3://`` prefix: see `use_local_s3`."""
    if value and value.startswith("s3://") and not ctx.resilient_parsing:
        use_local_s3(running_engines(ctx).get("s3"))
    return value


def jobs_option(help: str, *names: str) -> Option:
    """Return ``--job`` and its other names, as ``jobs``: globs, () for all."""
    text = f"{help}; may be repeated.  [default: all]"
    return click.option("--job", *names, "jobs", multiple=True, metavar="GLOB", help=text)


def _sets(name: str, variable: str, metavar: str, help: str) -> Option:
    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value and not ctx.resilient_parsing:
            os.environ[variable] = value

    text = f"{help}.  [default: ${variable}]"
    return click.option(name, metavar=metavar, expose_value=False, is_eager=True, callback=callback, help=text)


#: The talk's ``--s3-profile`` and ``--s3-url``, which set AWS_PROFILE and AWS_ENDPOINT_URL_S3; they pass no argument.
s3_options = stacked(
    _sets("--s3-profile", "AWS_PROFILE", "NAME", "AWS profile of the S3 credentials"),
    _sets("--s3-url", "AWS_ENDPOINT_URL_S3", "URL", "S3 endpoint"),
)


def _engine(ctx: click.Context, param: click.Parameter, value: str | None) -> EngineChoice | None:
    if ctx.resilient_parsing:
        return None
    name, _, endpoint = (value or "").partition(":")
    if name not in ("", FLINK, MICRO_BATCHES) or (name == MICRO_BATCHES and endpoint):
        raise click.BadParameter(
            f"unknown engine {value!r}; choose from {FLINK}, {FLINK}:HOST:PORT, {MICRO_BATCHES}", ctx, param
        )
    if name == MICRO_BATCHES:
        return HERE
    if endpoint:
        return EngineChoice(FLINK, endpoint, named=True)
    running_states = running_engines(ctx)
    flink = running_states.get("flink") or running_states.get("cluster")
    if flink is not None and not flink.light:
        return EngineChoice(FLINK, flink.address)
    if name == FLINK:
        running = f"only {flink.what} runs here" if flink else "no Flink runs here"
        raise CimlError(f"{running}: start it (ciml up flink) or name a job server (--engine flink:HOST:PORT)")
    return HERE


def _home_option(expose_value: bool) -> Option:
    return click.option(
        "--home",
        metavar="FOLDER",
        is_eager=True,
        expose_value=expose_value,
        callback=_home,
        help="Folder of the local engines' files.  [default: $CIML_HOME or .ciml]",
    )


#: ``--home``, as ``home``: a `pathlib.Path`, absolute. Options that need engines read it from the context.
home_option = _home_option(expose_value=True)
#: ``--home`` only for those options: it passes no argument.
engines_home_option = _home_option(expose_value=False)


def require_data(data_path: str) -> None:
    """Raise `CimlError` if nothing is stored at a data path. An empty folder or prefix counts as not there."""
    from ciml.data_root import DataRoot
    from ciml.storage.s3 import impatient

    with impatient():
        root = DataRoot.open(data_path)
    if not root.exists():
        raise CimlError(f"no data at {data_path}; correct --data-path, or load data: ciml load LOGS --results FILE")


def _existing_data(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Callback of the data path of a command that creates none."""
    place = s3_place(ctx, param, value)
    if place is not None and not ctx.resilient_parsing:
        require_data(place)
    return place


def data_path_option(required: bool = True, home: bool = True, creates: bool = False) -> Option:
    """``--data-path``, as ``data_path``: the text, for `ciml.data_root.DataRoot.open`; see `ciml.cli.param_types`.

    Args:
      required: whether the command needs it.
      home: also add ``--home``, which passes no argument; leave it out beside `home_option`.
      creates: whether the command creates a data root that does not exist; for any other it is an error.
    """
    data_path = click.option(
        "--data-path",
        cls=DataPathOption,
        metavar="DATA",
        required=required,
        envvar="CIML_DATA_PATH",
        show_envvar=True,
        callback=s3_place if creates else _existing_data,
        help="Data root: a folder or an s3:// prefix.",
    )
    return stacked(data_path, engines_home_option) if home else data_path


#: An argument DATA, as ``data``: the text, or None. It stands beside an optional `data_path_option`.
data_path_argument = click.argument("data", metavar="[DATA]", required=False, callback=_existing_data)


#: ``--target-data-path``, as ``target_data_path``: the text, or None.
target_data_path_option = click.option(
    "--target-data-path",
    metavar="DATA",
    callback=s3_place,
    help="Data root of data sets: a folder or an s3:// prefix.  [default: --data-path]",
)


def kafka_option(required: bool = True) -> Option:
    """``--kafka``, as ``kafka``: ``host:port``, by default the broker of `ciml up`.

    Args:
      required: fail without a broker; else ``kafka`` is None then, and with ``--kafka ''``.
    """

    def broker(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
        if value or ctx.resilient_parsing:
            return value
        if value is not None and not required:
            return None
        engine = running_engines(ctx).get("kafka")
        if engine is None and required:
            raise CimlError("no Kafka broker: start one (ciml up kafka) or name one (--kafka HOST:PORT)")
        return engine.address if engine else None

    return click.option(
        "--kafka",
        metavar="HOST:PORT",
        envvar="CIML_KAFKA",
        show_envvar=True,
        callback=broker,
        help="Kafka broker.  [default: the broker of ciml up]",
    )


def kafka_options(required: bool = True) -> Option:
    """Return `kafka_option`, ``--kafka-config`` and ``-X``.

    They are passed as ``kafka``; ``kafka_config``: the absolute path of a file, or None; and ``kafka_options``: a tuple
    of ``PROPERTY=VALUE``.
    """
    return stacked(
        kafka_option(required),
        click.option(
            "--kafka-config",
            metavar="FILE",
            envvar="CIML_KAFKA_CONFIG",
            show_envvar=True,
            type=click.Path(exists=True, dir_okay=False, resolve_path=True),
            help="File of librdkafka properties, one NAME=VALUE a line, for TLS, SASL and secrets. -X overrides it.",
        ),
        click.option(
            "-X",
            "kafka_options",
            multiple=True,
            metavar="PROPERTY=VALUE",
            help="librdkafka property, such as security.protocol=SSL; may be repeated.",
        ),
    )


#: ``--beam-option``, as ``beam_options``: a tuple of ``--NAME=VALUE``.
beam_option = click.option(
    "--beam-option", "beam_options", multiple=True, metavar="--NAME=VALUE", help="Further Beam option; may be repeated."
)

#: ``--engine``, as ``engine``: an `EngineChoice`; by default the Flink of `ciml up`, else micro-batches.
engine_option = click.option(
    "--engine",
    metavar="flink|micro-batches",
    envvar="CIML_ENGINE",
    show_envvar=True,
    callback=_engine,
    help="Engine of the pipeline; flink:HOST:PORT names a job server.  [default: flink if it runs, else micro-batches]",
)

#: ``--metrics-port`` and ``--metrics-address``, as ``metrics_port`` (None: no metrics) and ``metrics_address``.
metrics_options = stacked(
    click.option(
        "--metrics-port",
        metavar="PORT",
        envvar="CIML_METRICS_PORT",
        show_envvar=True,
        type=click.IntRange(0, 65535),
        help="Port of the Prometheus endpoint /metrics; 0 for any free port.  [default: no metrics]",
    ),
    click.option(
        "--metrics-address",
        metavar="ADDRESS",
        envvar="CIML_METRICS_ADDRESS",
        show_envvar=True,
        default="127.0.0.1",
        help="Address of the metrics endpoint, which has no authentication.",
    ),
)


def _file_option(name: str, text: str) -> Option:
    return click.option(name, type=click.Path(exists=True, dir_okay=False), metavar="FILE", help=text)


#: ``--trust-policy``, as ``trust_policy``: a path, or None.
trust_policy_option = _file_option(
    "--trust-policy",
    "TOML file of the trust policy.  [default: $CIML_TRUST_POLICY, else proved work of Zuul, and backfills]",
)

#: ``--fetch-policy``, as ``fetch_policy``: a path, or None.
fetch_policy_option = _file_option(
    "--fetch-policy", "TOML file of allowed hosts and roots, and limits of logs; options add to it."
)

#: ``--allow-host``, ``--allow-root`` and ``--fetch-policy``, as ``hosts``, ``roots`` and ``fetch_policy``.
fetch_options = stacked(
    click.option(
        "--allow-host",
        "hosts",
        multiple=True,
        metavar="[http://]HOST[:PORT]",
        help="Allowed host of logs, by https unless http:// is given; may be repeated.",
    ),
    click.option(
        "--allow-root",
        "roots",
        multiple=True,
        metavar="FOLDER|s3://PREFIX",
        help="Allowed root of log files or objects; may be repeated.",
    ),
    fetch_policy_option,
)

#: ``--source``, as ``sources``: a tuple of ``EVENT-SOURCE=NAME``.
sources_option = click.option(
    "--source",
    "sources",
    multiple=True,
    metavar="EVENT-SOURCE=NAME",
    help="Name of an event source in run ids and policies, '*' for all others; may be repeated.",
)

#: ``--trust-policy`` and ``--exclude``, as ``trust_policy`` and ``exclude``: paths, or None.
learn_from_options = stacked(
    trust_policy_option,
    _file_option(
        "--exclude",
        "File of runs excluded from training: one run id a line, optionally with a blank and a reason.",
    ),
)
