"""``ciml demo``: the whole chain on the sample runs, with one command."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("demo", short_help="Run the whole chain on sample runs and report on it.")
@click.option(
    "--data-path",
    metavar="FOLDER",
    default="demo",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where everything is written. What an earlier demo left there is removed first.",
)
@click.option(
    "--home",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the engines keep their files.  [default: home below --data-path]",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "flink", "micro-batches"]),
    default="auto",
    show_default=True,
    help="What runs the ingest; auto means Flink where there is Java.",
)
@click.option(
    "--corpus",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False),
    help="Sample runs: builds.jsonl and logs.  [default: examples/corpus of the checkout]",
)
@click.option("--runs", type=click.IntRange(min=120), metavar="N", help="Only the first N sample runs.  [default: all]")
@click.option(
    "--span-runs", type=click.IntRange(min=20), default=150, show_default=True, metavar="N", help="Runs of a span."
)
@click.option("--keep", is_flag=True, help="Leave engines, ingest and predict running at the end.")
@click.pass_context
def command(
    ctx: click.Context,
    data_path: Path,
    home: Path | None,
    engine: str,
    corpus: str | None,
    runs: int | None,
    span_runs: int,
    keep: bool,
) -> None:
    """Run the whole chain on real sample runs, from CI events to a served model and predictions, and report on it.

    One event in twenty is spoilt on purpose. At the end every number is counted anew from what is stored and held
    against the producer's own list. Exit code 0 means that all of them add up, 4 that some do not; demo/report.html
    below the folder shows everything.

    \b
    Example:
      ciml demo
      ciml demo --keep --data-path /tmp/demo
      ciml demo --engine micro-batches --runs 300
    """
    import signal

    from rich.console import Console

    from cli.demo.demo import demo
    from cli.demo.run import Options

    place = data_path.absolute()
    options = Options(
        data=place,
        home=(home or place / "home").absolute(),
        engine=engine,
        corpus=corpus,
        runs=runs,
        span_runs=span_runs,
        keep=keep,
    )
    out = Console()
    if not out.is_terminal:
        out = Console(width=120)  # a log is read with longer lines than a terminal of unknown width has

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt  # so that whatever was started is ended

    signal.signal(signal.SIGTERM, end)
    result = demo(options, Console(stderr=True), out)
    if not result.passed:
        ctx.exit(4)
