"""``ciml demo report``: the HTML report of a finished demo, from its stored result."""

from __future__ import annotations

import click

from ciml.cli.param_types import DataPathOption


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
def command(data_path: str, output: str | None) -> None:
    """Write the HTML report of a finished demo.

    It renders demo/result.json below DATA.

    \b
    Example:
      ciml demo report --data-path demo --output report.html
    """
    from pathlib import Path

    import msgspec

    from ciml.cli.demo.report.page import render
    from ciml.cli.demo.report.result import DemoResult
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
