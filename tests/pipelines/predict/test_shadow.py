"""A shadow predicts beside the stable version, in a stream of its own; causes settle it, as they do a canary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ciml.manifest.log import ManifestLog
from ciml.pipelines.ingest.committer import render_runs
from ciml.services.canary import compare_canary, settle_canary
from ciml.services.driver import drive
from ciml.services.predict import PredictService
from ciml.services.service import NotReadyError
from ciml.serving.ledger import history
from ciml.serving.predict.log import is_served, read_predictions, stream_of
from ciml.serving.predict.predictor import PredictPolicy
from ciml.serving.push import push
from ciml.serving.registry import CANARY, SHADOW, Registry
from ciml.storage import open_store
from ciml.trust import TrustPolicy
from ciml.verdicts.feedback.truths import Correction, add_corrections
from tests.messages import published
from tests.pipelines.ingest.ingesting import need_real
from tests.pipelines.predict.predicting import BLESSED, World, predict_config, telemetry
from tests.pipelines.predict.test_predict import announce
from tests.runs.scenes import RawStore
from tests.serving.models_fixture import DEFINITION, direct, save_model
from tests.transforms.samples import make_facts

ALL = TrustPolicy.parse('[[rule]]\nname = "all"\ntrusted = true\nsource = ["*"]\n')
CAUSES = DEFINITION.replace(definition=DEFINITION.definition.replace(class_label="cause"), classes=("code", "machine"))
CHANGES, REVIEWED = 120, 20
START_US = 1_772_668_770_000_000


def always(folder: Path, cause: str) -> Path:
    """Write a model that always names one cause."""
    for seed in range(100):
        model = save_model(folder / str(seed), seed, definition=CAUSES, scale=0.0)
        answer = direct(model, np.zeros((1, 5, 3), "f4"), np.ones(1, "i4"))[0]
        if CAUSES.classes[int(answer.argmax())] == cause:
            return model
    raise AssertionError(f"no model says {cause}")


def failed(number: int, attempt: int = 0) -> tuple[object, object]:
    """A run of a change of its own; the second attempt is a rerun that passes."""
    outcome = "success" if attempt else "failure"
    start_us = START_US + attempt * 600_000_000
    facts = make_facts(
        1000 * attempt + number, outcome=outcome, result=outcome.upper(), build_name="job", project="p",
        change=f"c{number}", patchset="1", pipeline="gate", start_us=start_us, end_us=start_us + 60_000_000,
    )  # fmt: skip
    return facts, telemetry(1000 * attempt + number)


@pytest.mark.engines
@pytest.mark.parametrize("label", [SHADOW, CANARY])
def test_causes_by_reruns_and_reviewers_settle_models_of_verdicts(
    label: str, world: World, kafka: str, topic: Callable[..., str], tmp_path: Path
) -> None:
    need_real(kafka)
    policy = PredictPolicy("m", canary_share=0.5 if label == CANARY else 0.0)
    stable = predict_config(world, kafka, topic, policy=policy, cycle_messages=40)
    services = [PredictService(stable)]
    world.push(always(tmp_path / "code", "code"))
    if label == SHADOW:
        services.append(PredictService(replace(stable, policy=replace(policy, label=SHADOW))))
        with pytest.raises(NotReadyError, match="m has no shadow: ciml models promote m --label shadow"):
            services[1].ready()
    push(world.data, "m", open_store(always(tmp_path / "machine", "machine")), BLESSED, label=label, check=False)
    world.server.poll()

    raw = RawStore(world.data)
    raw.add([failed(number) for number in range(CHANGES)])  # type: ignore[misc]
    values = [value for _, delta in ManifestLog(world.data.raw).since(0) for _, value, _ in render_runs(delta)]
    announce(kafka, stable.runs_topic, values)
    for service in services:
        drive(service, until="end")
    predictions = list(read_predictions(world.data.predictions))
    streams = Counter(map(stream_of, predictions))
    assert streams == {"m": CHANGES} | ({"m/shadow": CHANGES} if label == SHADOW else {})
    shown = published(kafka, stable.predictions_topic, "predictions")
    assert len(shown) == sum(map(is_served, predictions)) == CHANGES  # a shadow's answers are not published

    early = compare_canary(world.data, "m", ALL, label=label)
    assert early is not None
    assert (early.decision, early.canary.labelled, early.waits) == ("", 0, CHANGES)
    raw.add([failed(number, 1) for number in range(REVIEWED, CHANGES)])  # type: ignore[misc]
    reviews = [Correction(f"zuul~{number}~1", "machine", "review:alice", number) for number in range(1, REVIEWED)]
    add_corrections(world.data, [Correction("zuul~0~1", "code", "review:bob", 1), *reviews])
    report = settle_canary(world.data, "m", ALL, label=label)
    assert report is not None
    assert (report.decision, report.waits) == ("promote", 0)
    if label == SHADOW:
        assert report.canary.labelled == report.stable.labelled == CHANGES
        assert (report.canary.right, report.stable.right) == (CHANGES - 1, 1)
    last = list(history(Registry(world.data, "m")))[-1]
    assert (last.action, last.labels, last.author) == ("promote", {"stable": 2}, f"the {label} rule")
