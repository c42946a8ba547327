"""A trusted source whose labels are wrong does not take the runs of another source from the served model."""

from __future__ import annotations

from dataclasses import replace

from ciml.data_root import DataRoot
from ciml.pipelines.datasets.update import update_dataset
from ciml.serving.registry import Registry
from ciml.training.experiment import Experiment
from ciml.training.refresh import TrainConfig
from ciml.training.trainer import run_once
from ciml.trust import TrustPolicy
from tests.runs.scenes import RawStore
from tests.transforms.samples import RECORDINGS, by_recording, corpus

RULES = '[[rule]]\nname = "gate"\ntrusted = true\nsource = "zuul"\npipeline = "gate"\n'
STRANGER = '[[rule]]\nname = "stranger"\ntrusted = true\nsource = "stranger"\n'


def test_wrong_labels_of_a_trusted_source_are_rejected_for_what_another_source_loses(data: DataRoot) -> None:
    experiment = Experiment(estimator="LogisticRegression")
    config = TrainConfig(data, "providers", "m", experiment, TrustPolicy.parse(RULES))
    assert run_once(config).version == 1
    stored = {facts.run_id for facts in corpus(160)[0]}
    new = [(facts, table) for facts, table in zip(*corpus(280)[:2], strict=True) if facts.run_id not in stored]
    wrong = []
    for number, (facts, table) in enumerate(new[:40]):
        run = by_recording(facts)
        provider = RECORDINGS[1 - RECORDINGS.index(run.provider)]
        change = f"poison-{number // 2}"
        wrong.append((run.replace(source="stranger", pipeline="gate", change=change, provider=provider), table))
    RawStore(data).add(wrong)
    update_dataset(data.dataset("providers"), seal=True)
    result = run_once(replace(config, trust=TrustPolicy.parse(RULES + STRANGER)))
    assert result.outcome == "rejected"
    assert any(reason.startswith("on source zuul it loses") for reason in result.reasons), result.reasons
    assert Registry(data, "m").state.champion == 1
