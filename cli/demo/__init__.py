"""The demo: plans events, runs the whole chain as child processes, and checks each number of the stored result.

Uses engines, pipelines and the commands themselves. Its checks recount the stored data and reuse none of their results.
"""

from __future__ import annotations

from pathlib import Path

import click

from ciml.options import Options, flag, option


class DemoOptions(Options):
    """Options of ``ciml demo run``.

    Attributes:
      data_path: Folder of the demo; an earlier demo in it is removed.
      home: Folder of the engines' files. [default: home below --data-path]
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
