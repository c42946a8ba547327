"""``ciml demo``: run the whole chain on sample runs, and render the report of a finished demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ciml.cli.default_group import DefaultGroup
from ciml.cli.param_types import DataPathOption


@click.command("run")
@click.option(
    "--data-path",
    cls=DataPathOption,
    metavar="FOLDER",
    default="demo",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the demo; an earlier demo in it is removed.",
)
@click.option(
    "--home",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the engines' files.  [default: home below --data-path]",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "flink", "micro-batches"]),
    default="auto",
    help="Engine of the ingest; auto is flink where Java is installed.",
)
@click.option(
    "--corpus",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False),
    help="Folder of the sample runs: builds.jsonl and logs.tar.  [default: examples/corpus of the checkout]",
)
@click.option("--runs", type=click.IntRange(min=120), metavar="N", help="Number of sample runs.  [default: all]")
@click.option("--span-runs", type=click.IntRange(min=20), default=60, metavar="N", help="Number of runs of a span.")
@click.option("--keep", is_flag=True, help="Leave engines, ingest and predict running.")
@click.pass_context
def run(ctx: click.Context, /, data_path: Path, home: Path | None, **chosen: Any) -> None:
    """Run the whole chain on sample runs.

    It goes from CI events to a served model and predictions, with one event in sixteen broken on purpose. At the end it
    recounts all numbers from the stored data and compares them with the producer's list. The exit code is 4 if one
    differs. The report is demo/report.html below the folder.

    \b
    Example:
      ciml demo
      ciml demo --keep --data-path /tmp/demo
      ciml demo --engine micro-batches --runs 300
    """
    import signal

    from rich.console import Console

    from ciml.cli.demo.demo import demo
    from ciml.cli.demo.run import Options

    folder = data_path.absolute()
    options = Options(data=folder, home=(home or folder / "home").absolute(), **chosen)
    out = Console()
    if not out.is_terminal:
        out = Console(width=120)  # wider than the default for a terminal of unknown width

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt  # so that all started processes are stopped

    signal.signal(signal.SIGTERM, end)
    result = demo(options, Console(stderr=True), out)
    if not result.passed:
        ctx.exit(4)


@click.command("report")
@click.option(
    "--data-path",
    cls=DataPathOption,
    metavar="DATA",
    default="demo",
    help="Data root of the demo: a folder or an s3:// prefix.",
)
@click.option(
    "--output", type=click.Path(dir_okay=False), help="Output file.  [default: demo/report.html below --data-path]"
)
def report(data_path: str, output: str | None) -> None:
    """Write the HTML report of a finished demo.

    It renders demo/result.json below DATA.

    \b
    Example:
      ciml demo report --data-path demo --output report.html
    """

    import msgspec

    from ciml.cli.demo.report import render
    from ciml.cli.demo.result import DemoResult
    from ciml.data_root import DataRoot
    from ciml.errors import CimlError

    store = DataRoot.open(data_path).demo
    try:
        result = msgspec.json.decode(store.read("result.json"), type=DemoResult)
    except FileNotFoundError:
        raise CimlError(f"no demo/result.json in {data_path}; run ciml demo --data-path {data_path} first") from None
    except msgspec.MsgspecError as error:
        raise CimlError(f"{data_path}: demo/result.json is of another version: {error}; run ciml demo again") from None
    page = render(result).encode()
    if output:
        Path(output).write_bytes(page)
        click.echo(output)
    else:
        store.replace("report.html", page)
        click.echo(store.url("report.html"))


@click.group("demo", cls=DefaultGroup, default="run", commands=[run, report])
def command() -> None:
    """Run the whole chain on sample runs.

    It goes from CI events to a served model and predictions, recounts all numbers from the stored data, and writes
    demo/report.html below the folder. The exit code is 4 if a number differs.

    \b
    Example:
      ciml demo
      ciml demo --keep --data-path /tmp/demo
      ciml demo report --data-path /tmp/demo
    """
