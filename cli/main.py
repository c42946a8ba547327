"""The program ``ciml``: its commands come from a table, and each is imported when it is called.

The table holds the help lines, so that ``ciml --help`` imports no command.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ciml.errors import CimlError
from ciml.extras import missing_extra, require_python
from ciml.logs import configure_logging
from ciml.tensorflow import declare_own_process
from ciml.version import __version__, commit, describe

if TYPE_CHECKING:
    from typing import TypeAlias

#: Settings of every command.
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}
_INTERNAL_ERROR = 1
_WRONG_USE = 2
#: By group and command name: its path, relative to `ciml.cli` (module:attribute), and its help line.
Table: TypeAlias = Mapping[str, Mapping[str, tuple[str, str]]]

COMMANDS: Table = {
    "Data": {
        "load": (".commands.data.load:command", "Load your own logs and results."),
        "runs": (".commands.data.runs:command", "Show, verify and compact stored runs."),
        "dataset": (".commands.data.dataset:command", "Build, update, show and verify data sets."),
        "tables": (".commands.data.tables:command", "Publish Delta tables for other engines."),
        "plot": (".commands.data.plot:command", "Plot a data set, or one log."),
        "cluster": (".commands.data.plot:cluster", "Cluster the runs of a data set."),
        "explain": (".commands.data.explain:command", "Show the lines that explain a failed job."),
        "failures": (".commands.data.failures:command", "Show lines that failed runs share."),
        "drift": (".commands.data.drift:command", "Detect data drift."),
        "trust": (".commands.data.trust:command", "Check and apply trust policies, explain a run."),
        "erase": (".commands.data.erase:command", "Erase runs and all derived data."),
        "dead-letters": (".commands.data.dead_letters:command", "List, count, show and replay dead letters."),
    },
    "Learn": {
        "experiment": (".commands.learn.experiment:command", "Define, train and compare experiments."),
        "refresh": (".commands.learn.models:refresh", "Train, evaluate and push a model."),
        "exclude": (".commands.learn.exclude:command", "Exclude runs from training, list and revert exclusions."),
        "purge": (".commands.learn.exclude:purge_command", "Withdraw and retrain models without some runs."),
        "why-trained": (".commands.learn.exclude:why_trained", "Show which models learned from a run, and why."),
        "gate": (".commands.learn.versions:gate", "Explain decisions of the gate."),
        "models": (".commands.learn.models:command", "List, compare, promote and withdraw models."),
        "export": (".commands.learn.models:export", "Export experiments and models to MLflow."),
        "predict": (".commands.learn.predict:command", "Predict for logs, or for a stream of runs."),
        "verdict": (".commands.learn.verdict:command", "Show the verdict on a failed run."),
    },
    "Serve": {
        "serve": (".commands.serve.serve:command", "Serve pushed models over gRPC and REST."),
        "feedback": (".commands.serve.feedback:command", "Comment on changes whose runs fail."),
        "service": (".commands.serve.service:command", "Start, stop and watch supervised services."),
        "status": (".commands.operate.up:status", "Show the status of local engines."),
    },
    "Operate": {
        "up": (".commands.operate.up:command", "Start local engines: Kafka, Flink, S3 and others."),
        "down": (".commands.operate.up:down", "Stop local engines."),
        "connect": (".commands.operate.connect:command", "Connect a CI system."),
        "record": (".commands.operate.record:command", "Run a command and record its machine's telemetry."),
        "receive": (".commands.operate.streams:receive", "Receive deliveries of CI systems."),
        "ingest": (".commands.operate.streams:ingest", "Ingest CI events into the raw store."),
        "topics": (".commands.operate.streams:topics", "Continue with a recreated topic."),
        "adapter": (".commands.operate.adapter:command", "List adapters of CI systems; try a delivery."),
        "backfill": (".commands.operate.backfill:command", "Load historical logs into the raw store."),
        "live": (".commands.operate.streams:live", "Stream windows of running jobs."),
        "schema": (".commands.operate.describe:schema", "Print the JSON Schema of a topic."),
        "migrate": (".commands.operate.migrate:command", "Verify a data root; rewrite data of older versions."),
        "graph": (".commands.operate.describe:graph", "Show the Beam graph of a pipeline."),
        "demo": (".demo:command", "Run the whole chain on sample runs."),
    },
}

#: Former names of commands and what to call instead.
RENAMED: Mapping[str, str] = {
    "letters": "ciml dead-letters",
    "validate": "ciml drift",
    "train": "ciml refresh",
    "spans": "ciml dataset spans or ciml dataset verify",
    "build-dataset": "ciml dataset build",
    "report": "ciml demo report",
}


class LazyGroup(click.Group):
    """A group whose commands come from a table and are imported when they are called."""

    def __init__(self, *args: Any, table: Table, renamed: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table
        self.renamed = renamed or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for group in self.table.values() for name in group]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = next((group[cmd_name][0] for group in self.table.values() if cmd_name in group), None)
        if target is None:
            return None
        if cmd_name != "record":  # the recorder also runs on older versions of Python
            require_python(f"ciml {cmd_name}")
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(module, "ciml.cli"), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{target} is not a click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        names = self.list_commands(ctx)
        if name in self.renamed:
            raise Failure(f"command {name!r} was removed; use {self.renamed[name]}", _WRONG_USE)
        if args and not name.startswith("-") and name not in names:
            import difflib

            matches = difflib.get_close_matches(name, names, n=1)
            hint = f" Did you mean {matches[0]!r}?" if matches else ""
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.list_commands(ctx)))
        for title, group in self.table.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), line) for name, (_, line) in group.items()])

    def invoke(self, ctx: click.Context) -> Any:
        with guarded(debug=bool(ctx.params.get("debug"))):
            return super().invoke(ctx)


class Failure(click.ClickException):
    """An error for the user: one line on standard error and an exit code."""

    exit_code: int  # type: ignore[misc]  # click has it for the class alone

    def __init__(self, message: str, exit_code: int) -> None:
        from ciml.cli.output import printable

        super().__init__(printable(" ".join(message.split())))
        self.exit_code = exit_code

    def show(self, file: Any = None) -> None:
        click.echo(f"ciml: {self.message}", err=True, file=file)


@contextlib.contextmanager
def guarded(debug: bool = False) -> Iterator[None]:
    """Turn errors into one line and an exit code: `CimlError` has its own, an unexpected error exits with 1.

    Args:
      debug: print the traceback too.
    """
    try:
        yield
    except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError, KeyboardInterrupt):
        raise
    except Exception as error:
        if debug:
            traceback.print_exc()
        if isinstance(error, CimlError):
            raise Failure(str(error), error.exit_code) from error
        if isinstance(error, ModuleNotFoundError) and (missing := missing_extra(error)):
            raise Failure(str(missing), missing.exit_code) from error
        hint = "" if debug else " (ciml --debug … prints the traceback)"
        raise Failure(f"internal error: {type(error).__name__}: {error}{hint}", _INTERNAL_ERROR) from error


def is_debug() -> bool:
    """Return whether ``CIML_DEBUG`` prints tracebacks, by the words of ``--debug``."""
    return os.environ.get("CIML_DEBUG", "").strip().lower() not in ("", "0", "false", "f", "no", "n", "off")


def run(command: click.Command, args: list[str] | None = None, prog_name: str = "ciml", **settings: Any) -> NoReturn:
    """Run a command as the program and exit; ``ciml`` and the scripts of the talk end here.

    Exit codes: 0 done, 1 internal error, 2 wrong use or input, 3 an engine, 4 integrity, 130 interrupted; a command may
    return another.
    """
    debug = is_debug()
    declare_own_process()
    atexit.register(gc.freeze)  # else the garbage collector scans all objects once more at exit
    try:
        # Not `command.main`: it answers a closed pipe with the exit code 1.
        with (
            guarded(debug),
            command.make_context(prog_name, sys.argv[1:] if args is None else args, **settings) as context,
        ):
            code = command.invoke(context)
    except click.exceptions.Exit as end:
        sys.exit(end.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("ciml: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # `ciml … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(code if isinstance(code, int) else 0)


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"ciml {describe(__version__, commit())}")
        ctx.exit()


@click.group(cls=LazyGroup, table=COMMANDS, renamed=RENAMED, context_settings=SETTINGS)
@click.option(
    "--data-path",
    metavar="DATA",
    help="Data root for the command: a folder or an s3:// prefix.  [default: $CIML_DATA_PATH]",
)
@click.option("--debug", is_flag=True, envvar="CIML_DEBUG", show_envvar=True, help="Print the traceback of an error.")
@click.option("-v", "--verbose", count=True, show_default=False, help="Log more; with --debug, -vv logs everything.")
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print version and commit.",
)
def cli(data_path: str | None, debug: bool, verbose: int) -> None:
    """Train and serve models on telemetry of CI jobs.

    Each command has its own --help with an example.

    \b
    Example:
      ciml up
      ciml status
      ciml --data-path data runs list
    """
    configure_logging(verbose, debug)


def main() -> NoReturn:
    """Run the console script ``ciml``."""
    if "_CIML_COMPLETE" in os.environ:
        cli.main(prog_name="ciml")  # completion in a shell
    run(cli)
