"""``ciml record``: run a command and record its machine's telemetry."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ciml.cli.command import make_command
from ciml.options import BrokerOptions, argument, flag, option, repeated
from ciml.settings import pairs

if TYPE_CHECKING:
    from ciml.events.records import RunFacts
    from ciml.recorder import Settings, WhoseBroker


class RecordOptions(BrokerOptions):
    """Options of ``ciml record``.

    Attributes:
      log_dir: Folder or s3:// prefix of the log, stored as JOB/RUN-ID/dstat-csv_log.txt.gz.
      log_url: URL of --log-dir for ingest. [default: --log-dir]
      output: Record what the command prints, too, and store it next to the log as job-output.txt.gz.
      job: Job of the run. [default: $CIML_JOB or the CI system's]
      run_id: Native id of the run. [default: $CIML_RUN_ID, the CI system's or random]
      source: CI system of the run. [default: $CIML_SOURCE or the detected one]
      labels: Metadata of the run: change, project, branch, pipeline, provider, flavour or any other; may be repeated.
      timeout: Timeout of the command, with outcome TIMED_OUT. [default: none]
      flush: Time for sending after the command's end; with --send the longest time without progress. The next recorder
        sends the rest.
      spool: Folder of unsent recordings. [default: $CIML_SPOOL or ~/.local/state/ciml/record]
      send: Send unsent recordings; run no command.
      samples_topic: Topic of samples; '' for none.
      topic: Topic of the run's events.
      quiet: Print nothing on standard error.
    """

    argv: tuple[str, ...] = argument("COMMAND…", click.UNPROCESSED, many=True, required=False)
    log_dir: str | None = option(kind="place", metavar="FOLDER|s3://PREFIX", envvar="CIML_LOG_DIR")
    log_url: str = option("", metavar="URL", envvar="CIML_LOG_URL")
    output: bool = flag()
    job: str | None = option(metavar="NAME")
    run_id: str | None = option(metavar="ID")
    source: str | None = option(metavar="NAME")
    labels: tuple[str, ...] = repeated(metavar="K=V")
    timeout: float | None = option(kind="time")
    flush: float = option(5.0, "time", envvar="CIML_FLUSH")
    spool: str | None = option(metavar="FOLDER")
    send: bool = flag()
    samples_topic: str = option("samples", metavar="TOPIC")
    topic: str = option("ci-events", metavar="TOPIC")
    quiet: bool = flag("-q --quiet")


@make_command("record", context_settings={"allow_interspersed_args": False})
def command(options: RecordOptions) -> None:
    """Run a command and record its machine's telemetry.

    It records CPU, load, memory, disk and network once a second, by dool, or from /proc without it. The command keeps
    its terminal, streams, signals and exit status. Samples and the events of start and finish go to Kafka, the log to
    --log-dir for ingest. Unsent recordings are kept in the spool for the next recorder.

    \b
    Example:
      ciml record -- make test
      ciml record --kafka kafka:9092 --log-dir s3://logs/ci --label provider=rax -- tox -e py311
      ciml record --log-dir logs --output --job unit -- pytest -x
      ciml record --send
    """
    from ciml.extras import require
    from ciml.recorder import be_quiet, report
    from ciml.recorder.ci_environment import missing_id
    from ciml.recorder.spool.recording import Destination, Plan

    argv = options.argv
    if bool(argv) == options.send:
        raise click.UsageError(
            "--send takes no command" if argv else "no command; give one, such as: ciml record -- make test"
        )
    if options.log_url and not options.log_dir:
        raise click.UsageError("--log-url needs --log-dir")
    if options.output and (options.send or not options.log_dir):
        raise click.UsageError("--output needs a command and --log-dir, where the output is stored next to the log")
    if options.log_dir and options.log_dir.startswith("s3://"):
        require("boto3", "data")
    settings = _settings(options)
    if options.quiet:
        be_quiet()
    destination = Destination(options.samples_topic, options.topic, _absolute(options.log_dir), options.log_url)
    if options.send:
        from ciml.recorder.spool.flush import send_leftovers

        send_leftovers(settings, destination)
        return
    from ciml.recorder.record import record

    facts = run_facts(options)
    if options.kafka and not options.run_id and (line := missing_id(os.environ)):
        report(line)
    plan = Plan(facts, options.kafka or "", **asdict(destination))
    record(argv, plan, settings, options.timeout, with_output=options.output)


def _settings(options: RecordOptions) -> Settings:
    """Return the settings of the recorder, whose broker may be the one that leftover recordings name."""
    from ciml.recorder import Settings
    from ciml.recorder.spool.recording import default_spool

    leftovers: WhoseBroker = "recorded"
    if click.get_current_context().get_parameter_source("kafka") is not click.core.ParameterSource.DEFAULT:
        leftovers = "given"
    elif options.kafka_options or options.kafka_config:
        leftovers = "unconfirmed"
    broker = options.connection() if options.kafka else None
    spool = Path(options.spool).absolute() if options.spool else default_spool()
    return Settings(spool, broker, options.flush, leftovers)


def run_facts(options: RecordOptions) -> RunFacts:
    """Return the facts of the run, from the options, then from the environment.

    Raises:
      CimlError: an option is not valid in an event.
    """
    import time

    from ciml.errors import CimlError, RejectedInput
    from ciml.events.run_facts import facts_from_run, run_identity
    from ciml.recorder.ci_environment import SETTABLE_FACTS, run_of

    labels = dict(pairs("--label", options.labels))
    detected = run_of(os.environ)
    run = {
        "id": options.run_id or detected.native_id,
        "attempt": detected.attempt,
        "job": options.job or labels.pop("job", "") or detected.job or os.path.basename(options.argv[0]) or "command",
        "start_time": time.time(),
        **detected.facts,
        **{name: labels.pop(name) for name in SETTABLE_FACTS if name in labels},
        "labels": {**detected.labels, **labels},
    }
    try:
        identity = run_identity(run, options.source or detected.source)
        return facts_from_run(run, identity, "started")[0]
    except RejectedInput as rejected:
        raise CimlError(f"invalid event field: {rejected}") from None


def _absolute(folder: str | None) -> str:
    """Return the absolute path of a folder, a URL unchanged, or "" for None."""
    if not folder:
        return ""
    return folder if "://" in folder else os.path.abspath(folder)
