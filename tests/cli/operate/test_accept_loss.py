"""``ciml ingest accept-loss``: a loss is listed, and recorded only by the command."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ciml.cli.commands.operate.streams import ingest
from ciml.kafka import KafkaOptions
from ciml.storage import open_store
from tests.pipelines.ingest.ingesting import MakeTopic, need_real
from tests.pipelines.kafka.kafka_topics import covered, delete_records, send_starts


@pytest.mark.engines
def test_a_loss_is_reported_and_then_accepted(kafka: str, topic: MakeTopic, tmp_path: Path) -> None:
    need_real(kafka)
    name, raw = topic(2, "events"), open_store(tmp_path / "data" / "raw")
    send_starts(kafka, name, 1, 20)
    delete_records(KafkaOptions(kafka), name, 1, 12)
    arguments = ["accept-loss", "--data-path", str(tmp_path / "data"), "--kafka", kafka, "--topic", name]

    def reported(*more: str) -> str:
        result = CliRunner().invoke(ingest, [*arguments, *more], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    assert reported("--dry-run") == f"{name}[1]: 12 offsets, 0 to 12: lost\n"
    assert covered(raw, name) == {}
    assert reported() == f"{name}[1]: 12 offsets, 0 to 12: accepted as lost\n"
    assert covered(raw, name) == {1: [(0, 12)]}
    assert reported() == f"{name}: nothing is lost\n"
