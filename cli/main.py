"""The program ``ciml``: a table of commands, each imported when it is used."""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import click

from ciml.errors import CimlError
from ciml.logs import configure_logging

# name: (module:attribute, the line that `ciml --help` shows). The lines stand here so that help imports no command.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("cli.commands.operate.demo.run:command", "Run the whole chain on sample runs and report on it."),
    "report": ("cli.commands.operate.demo.report:command", "Write the HTML report of a demo anew."),
    "up": ("cli.commands.operate.up:command", "Start local engines: Kafka, Flink, S3 and others."),
    "down": ("cli.commands.operate.down:command", "End local engines."),
    "status": ("cli.commands.serve.status:command", "Show the local engines and how they are."),
    "record": ("cli.commands.operate.record:command", "Run a command and record it."),
    "ingest": ("cli.commands.operate.ingest:command", "Turn CI events into raw runs."),
    "backfill": ("cli.commands.operate.backfill:command", "Bring historical logs into the raw store."),
    "letters": ("cli.commands.data.dead_letters:command", "Show dead letters, and try them again."),
    "runs": ("cli.commands.data.runs:command", "Show, verify and compact the stored runs."),
    "spans": ("cli.commands.data.dataset.spans:command", "List and verify the spans of data sets."),
    "dataset": ("cli.commands.data.dataset:command", "Define, build and update data sets."),
    "validate": ("cli.commands.data.drift:command", "Tell what moved in a data set."),
    "experiment": ("cli.commands.learn.experiment:command", "Define experiments, train them, read the results."),
    "plot": ("cli.commands.data.plot:command", "Draw a data set."),
    "cluster": ("cli.commands.data.cluster:command", "Find groups of runs in a data set."),
    "build-dataset": ("cli.commands.data.dataset.build:command", "Build a data set from the stored runs."),
    "train": ("cli.commands.learn.refresh:command", "Train, evaluate and push models."),
    "models": ("cli.commands.learn.models:command", "Show and roll back models."),
    "serve": ("cli.commands.serve.serve:command", "Serve the pushed models."),
    "graph": ("cli.commands.operate.graph:command", "Show a pipeline's portable graph."),
    "predict": ("cli.commands.learn.predict:command", "Predict for runs as they arrive."),
    "live": ("cli.commands.operate.live:command", "Tell the windows of runs that are running."),
}

_INTERNAL_ERROR = 1


class LazyGroup(click.Group):
    """A group whose commands come from a table and are imported when they are used."""

    def __init__(self, *args: Any, table: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.table[cmd_name][0]} is no click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if args and not name.startswith("-") and name not in self.table:
            import difflib

            near = difflib.get_close_matches(name, self.table, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[1]) for name, entry in self.table.items()])

    def invoke(self, ctx: click.Context) -> Any:
        with guarded(debug=bool(ctx.params.get("debug"))):
            return super().invoke(ctx)


class Failure(click.ClickException):
    """An error as the user sees it: one line on standard error, and an exit code."""

    exit_code: int  # type: ignore[misc]  # click has it for the class alone

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code

    def show(self, file: Any = None) -> None:
        click.echo(f"ciml: {self.message}", err=True, file=file)


@contextlib.contextmanager
def guarded(debug: bool = False) -> Iterator[None]:
    """Turns errors into one line and an exit code: `CimlError` has its own, anything unexpected exits with 1.

    Args:
      debug: shows the traceback too.
    """
    try:
        yield
    except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError, KeyboardInterrupt):
        raise
    except CimlError as error:
        if debug:
            traceback.print_exc()
        raise Failure(str(error), error.exit_code) from error
    except Exception as error:
        if debug:
            traceback.print_exc()
            hint = ""
        else:
            hint = " (ciml --debug … shows where)"
        raise Failure(f"internal error: {type(error).__name__}: {error}{hint}", _INTERNAL_ERROR) from error


def run(command: click.Command, args: list[str] | None = None, prog_name: str = "ciml") -> NoReturn:
    """Runs a command as the program and exits: the end of ``ciml`` itself and of the console scripts.

    Exit codes: 0 done, 1 internal error, 2 wrong use or input, 3 an engine, 4 integrity, 130 interrupted; a command may
    return another.
    """
    debug = bool(os.environ.get("CIML_DEBUG"))
    atexit.register(gc.freeze)  # else the garbage collector looks at everything once more at the end
    try:
        with guarded(debug):
            code = command.main(args, prog_name=prog_name, standalone_mode=False)
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


def run_script(command: click.Command, prog_name: str, args: list[str] | None = None) -> NoReturn:
    """Runs one command as a console script of its own, with the logging of ``ciml``."""
    configure_logging(debug=bool(os.environ.get("CIML_DEBUG")))
    run(command, args, prog_name=prog_name)


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example: ciml up, then ciml status. Each command has its own --help with an example.",
)
@click.option("--debug", is_flag=True, envvar="CIML_DEBUG", help="Show the traceback of an error.")
@click.option("-v", "--verbose", count=True, help="Say what is being done; twice with --debug for everything.")
@click.version_option(package_name="ciml", message="ciml %(version)s")
def cli(debug: bool, verbose: int) -> None:
    """Machine learning for continuous integration: from the telemetry of CI jobs to served models."""
    configure_logging(verbose, debug)


def main() -> NoReturn:
    """The console script ``ciml``."""
    run(cli)


if __name__ == "__main__":
    main()
