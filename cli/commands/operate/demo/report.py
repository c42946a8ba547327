"""``ciml demo report``: the HTML report of a finished demo, from its stored result."""

from __future__ import annotations

import click

from cli.data_path import DataPathOption


@click.command("report")
@click.option(
    "--data-path",
    cls=DataPathOption,
    metavar="DATA",
    default="demo",
    show_default=True,
    help="Data root of the demo: a folder or an s3:// prefix.",
)
@click.option(
    "--output", type=click.Path(dir_okay=False), help="Output file.  [default: demo/report.html below --data-path]"
)
def command(data_path: str, output: str | None) -> None:
    """Write the HTML report of a finished demo.

    It renders demo/result.json below DATA.

    \b
    Example:
      ciml demo report --data-path demo --output report.html
    """
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
        raise CimlError(f"no demo/result.json in {data_path}; run ciml demo --data-path {data_path} first") from None
    except msgspec.MsgspecError as error:
        raise CimlError(f"{data_path}: demo/result.json is of another version: {error}; run ciml demo again") from None
    page = render(result).encode()
    if output:
        Path(output).write_bytes(page)
        click.echo(output)
    else:
        store.replace("demo/report.html", page)
        click.echo(store.url("demo/report.html"))
