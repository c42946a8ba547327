"""The table of commands, by the groups of ``ciml --help``. It holds the help lines, so that help imports no command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

#: By group and command name: its import path (module:attribute) and its help line.
Table: TypeAlias = Mapping[str, Mapping[str, tuple[str, str]]]

COMMANDS: Table = {
    "Data": {
        "load": ("ciml.cli.commands.data.load:command", "Load your own logs and results."),
        "runs": ("ciml.cli.commands.data.runs:command", "Show, verify and compact stored runs."),
        "dataset": ("ciml.cli.commands.data.dataset:command", "Build, update, show and verify data sets."),
        "tables": ("ciml.cli.commands.data.tables:command", "Publish Delta tables for other engines."),
        "plot": ("ciml.cli.commands.data.plot:command", "Plot a data set, or one log."),
        "cluster": ("ciml.cli.commands.data.cluster:command", "Cluster the runs of a data set."),
        "drift": ("ciml.cli.commands.data.drift:command", "Detect data drift."),
        "trust": ("ciml.cli.commands.data.trust:command", "Check a trust policy, explain a run's trust."),
        "dead-letters": ("ciml.cli.commands.data.dead_letters:command", "List, count, show and replay dead letters."),
    },
    "Learn": {
        "experiment": ("ciml.cli.commands.learn.experiment:command", "Define, train and compare experiments."),
        "refresh": ("ciml.cli.commands.learn.refresh:command", "Train, evaluate and push a model."),
        "exclude": (
            "ciml.cli.commands.learn.exclude:command",
            "Exclude runs from training, list and revert exclusions.",
        ),
        "models": ("ciml.cli.commands.learn.models:command", "List, verify, roll back and mirror models."),
        "export": ("ciml.cli.commands.learn.export:command", "Export experiments and models to MLflow."),
        "predict": ("ciml.cli.commands.learn.predict:command", "Predict for logs, or for a stream of runs."),
        "verdict": ("ciml.cli.commands.learn.verdict:command", "Show the verdict on a failed run."),
    },
    "Serve": {
        "serve": ("ciml.cli.commands.serve.serve:command", "Serve pushed models over gRPC and REST."),
        "feedback": ("ciml.cli.commands.serve.feedback:command", "Answer failed runs on their changes."),
        "service": ("ciml.cli.commands.serve.service:command", "Start, stop and watch supervised services."),
        "status": ("ciml.cli.commands.serve.status:command", "Show the status of local engines."),
    },
    "Operate": {
        "up": ("ciml.cli.commands.operate.up:command", "Start local engines: Kafka, Flink, S3 and others."),
        "down": ("ciml.cli.commands.operate.down:command", "Stop local engines."),
        "connect": ("ciml.cli.commands.operate.connect:command", "Connect a CI system."),
        "record": ("ciml.cli.commands.operate.record:command", "Run a command and record its machine's telemetry."),
        "receive": ("ciml.cli.commands.operate.receive:command", "Receive deliveries of CI systems."),
        "ingest": ("ciml.cli.commands.operate.ingest:command", "Ingest CI events into the raw store."),
        "topics": ("ciml.cli.commands.operate.topics:command", "Continue with a topic that was created again."),
        "adapter": ("ciml.cli.commands.operate.adapter:command", "List adapters of CI systems; try a delivery."),
        "backfill": ("ciml.cli.commands.operate.backfill:command", "Load historical logs into the raw store."),
        "live": ("ciml.cli.commands.operate.live:command", "Stream windows of running jobs."),
        "schema": ("ciml.cli.commands.operate.schema:command", "Print the JSON Schema of a topic."),
        "migrate": (
            "ciml.cli.commands.operate.migrate:command",
            "Verify a data root; rewrite what older versions wrote.",
        ),
        "graph": ("ciml.cli.commands.operate.graph:command", "Show the Beam graph of a pipeline."),
        "demo": ("ciml.cli.commands.operate.demo:command", "Run the whole chain on sample runs."),
    },
}

#: Former names of commands and what to call instead.
RENAMED: Mapping[str, str] = {
    "letters": "ciml dead-letters",
    "validate": "ciml drift",
    "train": "ciml refresh",
    "spans": "ciml dataset spans or ciml dataset verify",
    "build-dataset": "ciml dataset build",
    "report": "ciml demo report",
}
