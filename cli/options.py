"""The kinds of options, and the groups of options that several commands share.

A kind turns the text of an option into its value. A field names its kind (`ciml.options.option`), and `KINDS` maps the
name to click arguments: a type or a callback. Some callbacks look for the local engines of ``ciml up`` if the user
names no address. The groups, which come last, are data classes of fields.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ciml.engines import state
from ciml.engines.environment import use_local_s3
from ciml.errors import CimlError
from ciml.options import Options, flag, option
from ciml.settings import UNITS_S, seconds_of

if TYPE_CHECKING:
    from ciml.data_root import DataRoot

T = TypeVar("T")

FLINK = "flink"
MICRO_BATCHES = "micro-batches"
MINUTE = 60.0
DAY = 86_400.0


class Duration(click.ParamType):
    """A time such as ``500ms``, ``10s``, ``5min`` or ``2h``, as seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        try:
            return seconds_of(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    @staticmethod
    def text(seconds: float) -> str:
        """Return the shortest text of a time."""
        unit = next((unit for unit in ("d", "h", "min") if seconds and seconds % UNITS_S[unit] == 0), "s")
        return f"{seconds / UNITS_S[unit]:g}{unit}"


class Instant(click.ParamType):
    """A time in ISO 8601, such as ``2026-11-01`` or ``2026-11-01T08:30+01:00``, as epoch µs; UTC without a zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"invalid time {value!r}; give ISO 8601, such as 2026-11-01 or 2026-11-01T08:30Z", param, ctx)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=timezone.utc)
        return round(moment.timestamp() * 1_000_000)


class Windows(click.ParamType):
    """A number of windows, or ``auto``."""

    name = "windows"

    def convert(self, value: int | str, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if isinstance(value, int) or value == "auto":
            return value
        if not re.fullmatch(r"[1-9][0-9]{0,8}", value):
            self.fail(f"invalid number of windows {value!r}; give a whole number, or auto", param, ctx)
        return int(value)


class DataPathOption(click.Option):
    """A command's ``--data-path``; its defaults are the option of ``ciml``, then the environment."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        root = ctx.find_root()
        return (root.params.get("data_path") if root is not ctx else None) or super().resolve_envvar_value(ctx)


@dataclass(frozen=True)
class EngineChoice:
    """The engine of a streaming pipeline.

    Attributes:
      name: ``flink``, or ``micro-batches`` for repeated bounded batches on Beam's FnApiRunner.
      job_endpoint: the job server's ``host:port`` for ``flink``, else None.
      named: whether the user named that address; otherwise it is the address of the engine of ``--home``.
    """

    name: str
    job_endpoint: str | None = None
    named: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name} at {self.job_endpoint}" if self.job_endpoint else self.name


#: Repeated bounded batches in this process, without an engine of its own.
HERE = EngineChoice(MICRO_BATCHES)


def assignments(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    """Parse the texts KEY=VALUE of a repeated option, a callback of click; a key may contain ``=``.

    Raises:
      CimlError: if a text has no ``=`` or no key.
    """
    values = {}
    for text in value:
        key, _, assigned = text.rpartition("=")
        if not key:
            raise CimlError(f"{param.opts[0]} {text!r:.80}: not {param.metavar}")
        values[key] = assigned
    return values


def ask(option_flag: str, question: str) -> str:
    """Ask for the missing value of an option on a terminal.

    Args:
      option_flag: such as ``--kafka``.
      question: describes the value, with an example.

    Raises:
      click.UsageError: if standard input is not a terminal.
    """
    if not sys.stdin.isatty():
        raise click.UsageError(f"missing {option_flag}: the {question}")
    answer: str = click.prompt(f"{question[0].upper()}{question[1:]}")
    return answer


def home_of(ctx: click.Context) -> Path:
    """Return the folder of the local engines: that of ``--home``, otherwise the default."""
    home: Path = ctx.meta.get("ciml.home") or state.default_home()
    return home


def running_engines(ctx: click.Context) -> dict[str, state.EngineState]:
    """Return the engines that run in the folder of ``--home``, by name."""
    states = state.read(home_of(ctx))
    if not states:
        return {}
    from ciml.engines import processes

    return {
        name: engine
        for name, engine in states.items()
        if engine.pid is None or processes.find(engine.process) is not None
    }


def require_data(data_path: str) -> None:
    """Raise `CimlError` if nothing is stored at a data path: it does not exist or is empty."""
    from ciml.data_root import DataRoot
    from ciml.storage.s3 import impatient

    with impatient():
        root = DataRoot.open(data_path)
    if not root.exists():
        raise CimlError(f"no data at {data_path}; correct --data-path, or load data: ciml load LOGS --results FILE")


def _kind_of_variable(variable: str) -> dict[str, Any]:
    """Return the kind of an option that sets an environment variable.

    It is eager, so that the variable is set before other options open a data root.
    """

    def callback(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value and not ctx.resilient_parsing:
            os.environ[variable] = value

    return {"callback": callback, "is_eager": True}


def _set_home(ctx: click.Context, param: click.Parameter, value: str | None) -> Path:
    home = Path(value).absolute() if value else state.default_home()
    ctx.meta["ciml.home"] = home
    return home


def _use_place(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return the place unchanged; for an ``s3://`` prefix, use the local S3 if it runs (`use_local_s3`)."""
    if value and value.startswith("s3://") and not ctx.resilient_parsing:
        use_local_s3(running_engines(ctx).get("s3"))
    return value


def _check_data(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    place = _use_place(ctx, param, value)
    if place is not None and not ctx.resilient_parsing:
        require_data(place)
    return place


def _find_broker(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    address = _find_any_broker(ctx, param, value or None)
    if address is None and not ctx.resilient_parsing:
        raise CimlError("no Kafka broker: start one (ciml up kafka) or name one (--kafka HOST:PORT)")
    return address


def _find_any_broker(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return the broker of the user, or without one that of ``ciml up``; an empty text means none."""
    if value is None and not ctx.resilient_parsing:
        engine = running_engines(ctx).get("kafka")
        return engine.address if engine else None
    return value or None


def _find_model_server(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Return the model server of the user, or without one that of ``ciml up``."""
    if value or ctx.resilient_parsing:
        return value or None
    engine = state.read(home_of(ctx)).get("models")
    return engine.urls["grpc"] if engine else None


def parse_engine(ctx: click.Context, param: click.Parameter, value: str, names: Sequence[str]) -> tuple[str, str]:
    """Return the name of an engine or runner, and the job server of ``flink:HOST:PORT``, otherwise "".

    Args:
      ctx, param: of the callback.
      value: the value of the option.
      names: the valid names.
    """
    name, _, endpoint = value.partition(":")
    if name not in names or (endpoint and name != FLINK):
        choices = ", ".join(f"{FLINK}, {FLINK}:HOST:PORT" if choice == FLINK else choice for choice in names)
        raise click.BadParameter(f"unknown {param.name} {value!r}; choose from {choices}", ctx, param)
    return name, endpoint


def running_flink(ctx: click.Context, param: click.Parameter, *, required: bool) -> str:
    """Return the job server of the Flink of ``ciml up``; "" without one. Raises `CimlError` if it is required."""
    states = running_engines(ctx)
    flink = states.get("flink") or states.get("cluster")
    if flink is not None and not flink.light:
        return flink.address
    if required:
        running = f"only {flink.what} runs here" if flink else "no Flink runs here"
        raise CimlError(f"{running}: start it (ciml up flink) or name a job server (--{param.name} flink:HOST:PORT)")
    return ""


def _find_engine(ctx: click.Context, param: click.Parameter, value: str | None) -> EngineChoice | None:
    if ctx.resilient_parsing:
        return None
    name, endpoint = parse_engine(ctx, param, value, (FLINK, MICRO_BATCHES)) if value else ("", "")
    if name == MICRO_BATCHES:
        return HERE
    if endpoint:
        return EngineChoice(FLINK, endpoint, named=True)
    address = running_flink(ctx, param, required=name == FLINK)
    return EngineChoice(FLINK, address) if address else HERE


_DATA: Mapping[str, Any] = {
    "cls": DataPathOption,
    "metavar": "DATA",
    "envvar": "CIML_DATA_PATH",
    "help": "Data root: a folder or an s3:// prefix.",
}
_BROKER: Mapping[str, Any] = {
    "metavar": "HOST:PORT",
    "envvar": "CIML_KAFKA",
    "help": "Kafka broker.  [default: the broker of ciml up]",
}
#: The click arguments of ``--home``.
HOME: Mapping[str, Any] = {
    "metavar": "FOLDER",
    "is_eager": True,
    "callback": _set_home,
    "help": "Folder of the local engines' files.  [default: $CIML_HOME or .ciml]",
}
#: The click arguments of each kind, which a field's declaration overrides.
KINDS: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "time": {"type": Duration()},
    "instant": {"type": Instant(), "metavar": "TIME"},
    "count": {"type": click.IntRange(1)},
    "no negative number": {"type": click.FloatRange(0)},
    "share": {"type": click.FloatRange(0, 1)},
    "file": {"type": click.Path(exists=True, dir_okay=False), "metavar": "FILE"},
    "absolute file": {"type": click.Path(exists=True, dir_okay=False, resolve_path=True), "metavar": "FILE"},
    "file path": {"type": click.Path(dir_okay=False, resolve_path=True), "metavar": "FILE"},
    "home": HOME,
    "place": {"callback": _use_place},
    "demo data": {"cls": DataPathOption, "metavar": "DATA"},
    "data": {**_DATA, "callback": _check_data},
    "new data": {**_DATA, "callback": _use_place},
    "engine": {"callback": _find_engine},
    "model server": {"callback": _find_model_server},
    "broker": {**_BROKER, "callback": _find_broker},
    "optional broker": {**_BROKER, "callback": _find_any_broker},
}
#: Kinds whose callback finds a value or fails, so that the command line may omit a required one.
DISCOVERED_KINDS = ("broker",)
#: Callbacks that look for local engines; a command with one of them has ``--home``.
ENGINE_CALLBACKS = {_use_place, _check_data, _find_broker, _find_any_broker, _find_model_server, _find_engine}


class Data(Options):
    """The data root of a command that creates none."""

    data_path: str = option(kind="data", required=True)

    @property
    def root(self) -> DataRoot:
        """The opened data root."""
        from ciml.data_root import DataRoot

        return DataRoot.open(self.data_path)


class Signed(Options):
    """Who makes a change that is recorded.

    Attributes:
      author: Author of the change.  [default: the name of the user]
    """

    author: str = option("", metavar="TEXT")

    def signed_by(self) -> str:
        """Return the author. Raises `CimlError` in a container whose user has no name."""
        import getpass

        try:
            return self.author or getpass.getuser()
        except (OSError, KeyError):
            raise CimlError("--author: the user of this process has no name; give one") from None


class NewData(Data):
    """The data root of a command that creates it."""

    data_path: str = option(kind="new data", required=True)


class S3Environment(Options):
    """The talk's options of S3. They set environment variables, so their fields are always None.

    Attributes:
      s3_profile: AWS profile of the S3 credentials. [default: $AWS_PROFILE]
      s3_url: S3 endpoint. [default: $AWS_ENDPOINT_URL_S3]
    """

    s3_profile: None = option(kind=_kind_of_variable("AWS_PROFILE"), metavar="NAME")
    s3_url: None = option(kind=_kind_of_variable("AWS_ENDPOINT_URL_S3"), metavar="URL")


class TargetData(Data):
    """The data root of data sets, which may differ from that of the runs.

    Attributes:
      target_data_path: Data root of data sets: a folder or an s3:// prefix. [default: --data-path]
    """

    target_data_path: str | None = option(kind="place", metavar="DATA")

    @property
    def target(self) -> DataRoot:
        """The opened data root of data sets."""
        from ciml.data_root import DataRoot

        return DataRoot.open(self.target_data_path or self.data_path)


class Json(Options):
    """The form of a command's output.

    Attributes:
      json: JSON output.
    """

    json: bool = flag()

    def show(self, subject: T, text: Callable[[T], None], to_json: Callable[[T], Any] | None = None) -> None:
        """Print a subject by the function ``text``, or as JSON."""
        if self.json:
            click.echo(json.dumps(to_json(subject) if to_json else subject, indent=2))
        else:
            text(subject)


class JsonLines(Json):
    """The form of the output of a command that lists objects.

    Attributes:
      json: JSON output, one object per line.
    """

    def show_all(
        self,
        subjects: Iterable[T],
        text: Callable[[list[T]], None],
        to_json: Callable[[T], Any] | None = None,
        none: str = "",
    ) -> None:
        """Print all subjects by the function ``text``, or each as a line of JSON.

        Args:
          subjects: the objects.
          text: prints them for people.
          to_json: returns the JSON of one; by default it is JSON itself.
          none: printed in place of ``text`` if there are no subjects.
        """
        if not self.json:
            rows = list(subjects)
            if rows or not none:
                text(rows)
            else:
                click.echo(none)
            return
        for subject in subjects:
            click.echo(json.dumps(to_json(subject) if to_json else subject))
