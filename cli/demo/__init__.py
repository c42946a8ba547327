"""``ciml demo``: plans events, runs the whole chain as child processes, and checks each number of the stored result.

Uses engines, pipelines and the commands themselves. Its checks recount the stored data and reuse none of their results.
"""

from __future__ import annotations

from pathlib import Path

import click

from ciml.cli.command import DefaultGroup, make_command
from ciml.errors import CimlError, IntegrityError
from ciml.options import Options, flag, option


class DemoOptions(Options):
    """Options of ``ciml demo run``.

    Attributes:
      data_path: Folder of the demo; an earlier demo in it is removed.
      home: Folder of the engines' files; its running engines are stopped. [default: home below --data-path]
      engine: Engine of the ingest; auto is flink where Java is installed.
      corpus: Folder of the sample runs: builds.jsonl and logs.tar. [default: examples/corpus of the checkout]
      runs: Number of sample runs. [default: all]
      span_runs: Number of runs of a span.
      keep: Leave engines, ingest and predict running.
    """

    data_path: str = option("demo", "demo data", metavar="FOLDER")
    home: Path | None = option(kind=click.Path(file_okay=False, path_type=Path), metavar="FOLDER")
    engine: str = option("auto", click.Choice(["auto", "flink", "micro-batches"]))
    corpus: str | None = option(kind=click.Path(exists=True, file_okay=False), metavar="FOLDER")
    runs: int | None = option(kind=click.IntRange(min=120), metavar="N")
    span_runs: int = option(60, click.IntRange(min=20), metavar="N")
    keep: bool = flag()

    @property
    def folder(self) -> Path:
        """The absolute path of the demo's folder."""
        return Path(self.data_path).absolute()

    @property
    def engines_home(self) -> Path:
        """The absolute path of the folder of the engines' files."""
        return (self.home or self.folder / "home").absolute()


@make_command("run")
def run(options: DemoOptions) -> int:
    """Run the whole chain on sample runs.

    The chain leads from CI events to a served model and predictions. One event in sixteen is broken on purpose. At the
    end it recounts all numbers from the stored data and compares them with the producer's list. The exit code is 4 if
    one differs. The report is demo/report.html below the folder.

    \b
    Example:
      ciml demo
      ciml demo --keep --data-path /tmp/demo
      ciml demo --engine micro-batches --runs 300
    """
    import signal

    from rich.console import Console

    from ciml.cli.demo.demo import run_demo

    out = Console()
    if not out.is_terminal:
        out = Console(width=120)  # wider than the default for a terminal of unknown width

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt  # so that all started processes are stopped

    signal.signal(signal.SIGTERM, interrupt)
    result = run_demo(options, Console(stderr=True), out)
    return 0 if result.passed else IntegrityError.exit_code


class ReportOptions(Options):
    """Options of ``ciml demo report``.

    Attributes:
      data_path: Data root of the demo: a folder or an s3:// prefix.
      output: Output file. [default: demo/report.html below --data-path]
    """

    data_path: str = option("demo", "demo data")
    output: str | None = option(kind=click.Path(dir_okay=False))


@make_command("report")
def report(options: ReportOptions) -> None:
    """Write the HTML report of a finished demo.

    It renders demo/result.json below DATA.

    \b
    Example:
      ciml demo report --data-path demo --output report.html
    """
    import msgspec

    from ciml.cli.demo.result import DemoResult, render
    from ciml.data_root import DataRoot

    data_path = options.data_path
    store = DataRoot.open(data_path).demo
    try:
        result = msgspec.json.decode(store.read("result.json"), type=DemoResult)
    except FileNotFoundError:
        raise CimlError(f"no demo/result.json in {data_path}; run ciml demo --data-path {data_path} first") from None
    except msgspec.MsgspecError as error:
        raise CimlError(f"{data_path}: demo/result.json is of another version: {error}; run ciml demo again") from None
    page = render(result).encode()
    if options.output:
        Path(options.output).write_bytes(page)
        click.echo(options.output)
    else:
        store.replace("report.html", page)
        click.echo(store.url("report.html"))


@click.group("demo", cls=DefaultGroup, default="run", commands=[run, report])
def command() -> None:
    """Run the whole chain on sample runs.

    It leads from CI events to a served model and predictions, recounts all numbers from the stored data, and writes
    demo/report.html below the folder. The exit code is 4 if a number differs.

    \b
    Example:
      ciml demo
      ciml demo --keep --data-path /tmp/demo
      ciml demo report --data-path /tmp/demo
    """
