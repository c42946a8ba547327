"""docs/dataflow.md: its settings load, every key is in its table, its commands parse, its costs follow from figures."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from ciml.cli.main import cli
from ciml.errors import CimlError
from ciml.pipelines.dataflow.settings import DataflowSettings
from studies.dataflow_cost import Measured, batch_job, prices, streaming_week

TEXT = (Path(__file__).parents[3] / "docs" / "dataflow.md").read_text()
IMAGE = (Path(__file__).parents[3] / "deploy" / "dataflow" / "Dockerfile").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table after a heading, without its head."""
    table = re.findall(r"^\|(.*)\|$", TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0], re.M)
    return [[cell.strip() for cell in line.split("|")] for line in table[2:]]


def test_the_settings_load_and_every_key_is_in_the_table(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```", TEXT, re.S | re.M)
    (tmp_path / "dataflow.toml").write_text(block)
    assert DataflowSettings.load(tmp_path / "dataflow.toml").max_workers == 1
    named = [name for cells in rows("Settings") for name in re.findall(r"`(\w+)`", cells[0])]
    assert sorted(named) == sorted(DataflowSettings.__struct_fields__)
    required = {re.findall(r"`(\w+)`", cells[0])[0] for cells in rows("Settings") if cells[2] == "required"}
    with pytest.raises(CimlError, match="project: is missing"):
        DataflowSettings.from_json({})
    assert required == set(DataflowSettings.__struct_fields__[: len(required)])


def test_its_commands_parse() -> None:
    lines = [line.strip() for line in TEXT.replace("\\\n", " ").splitlines() if line.startswith("    ciml ")]
    assert len(lines) == 4
    for line in lines:
        words, command, context = shlex.split(line)[1:], cli, click.Context(cli, resilient_parsing=True)
        while isinstance(command, click.Group):
            _, found, words = command.resolve_command(context, words)
            assert found is not None
            command, context = found, click.Context(found, parent=context, resilient_parsing=True)
            if isinstance(found, click.Group) and words[0].startswith("-"):
                words = [found.default, *words]  # type: ignore[attr-defined]
        command.make_context("ciml", words, resilient_parsing=True)
        options = {option for each in command.params for option in each.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_the_costs_follow_from_the_figures() -> None:
    for name in ("0.069", "0.0035557", "0.056", "0.003557", "0.000054", "0.018", "0.011"):
        assert name in TEXT
    assert (prices.VCPU_PER_HR_STREAMING, prices.MEM_PER_GB_HR_STREAMING) == (0.069, 0.0035557)
    assert (prices.VCPU_PER_HR_BATCH, prices.MEM_PER_GB_HR_BATCH, prices.PD_PER_GB_HR) == (0.056, 0.003557, 0.000054)
    assert (prices.SHUFFLE_PER_GB_STREAMING, prices.SHUFFLE_PER_GB_BATCH) == (0.018, 0.011)
    found = rows("What 100,000 runs a week cost")
    assert [cells[0] for cells in found] == ["ingest, a week of streaming", "backfill, one job", "data set, one job"]
    for cells in found:
        measured = Measured(cells[0], float(cells[1].split()[0]) / 1000, float(cells[2].split()[0].replace(",", "")))
        if "streaming" in cells[0]:
            workers, engine, load = streaming_week(measured)
            assert cells[3] == f"{load:.1%} of one worker, all week"
            assert cells[4] == f"${workers + engine:.2f}"
        else:
            usd, hours = batch_job(measured)
            assert cells[3] == f"{hours:.1f} h of one worker"
            assert cells[4] == f"${usd:.2f}"


def test_the_image_is_the_worker_s_with_beam_s_start() -> None:
    assert re.findall(r"^FROM (\S+)", IMAGE, re.M) == ["${BEAM}", "${WORKER}"]
    assert "\nARG BEAM=apache/beam_python3.11_sdk:2.77.0\n" in IMAGE
    assert "COPY --from=beam /opt/apache/beam /opt/apache/beam" in IMAGE
    assert "ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1" in IMAGE
    assert IMAGE.rstrip().endswith('ENTRYPOINT ["/opt/apache/beam/boot"]')
    import apache_beam

    assert f"sdk:{apache_beam.__version__}" in IMAGE
