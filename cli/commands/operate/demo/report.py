"""``ciml report``: the HTML report of a finished demo, written anew from its result."""

from __future__ import annotations

import click


@click.command(
    "report",
    epilog="Example: ciml report --data-path demo --output report.html",
    short_help="Write the HTML report of a demo anew.",
)
@click.option(
    "--data-path", default="demo", show_default=True, help="The folder or s3:// prefix that the demo wrote to."
)
@click.option(
    "--output", type=click.Path(dir_okay=False), help="Where to write it.  [default: demo/report.html below DATA]"
)
def command(data_path: str, output: str | None) -> None:
    """Writes the HTML report of a finished ``ciml demo`` anew, from demo/result.json below DATA."""
    from pathlib import Path

    import msgspec

    from ciml.errors import CimlError
    from ciml.storage.open import open_store
    from cli.demo.report.page import render
    from cli.demo.report.result import DemoResult

    store = open_store(data_path)
    try:
        result = msgspec.json.decode(store.read("demo/result.json"), type=DemoResult)
    except FileNotFoundError:
        raise CimlError(f"{data_path} holds no demo/result.json: run ciml demo --data-path {data_path} first") from None
    except msgspec.MsgspecError as error:
        raise CimlError(f"{data_path}: demo/result.json is no result of this version of the demo: {error}") from None
    page = render(result).encode()
    if output:
        Path(output).write_bytes(page)
        click.echo(output)
    else:
        store.replace("demo/report.html", page)
        click.echo(store.url("demo/report.html"))
