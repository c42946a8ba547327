"""``ciml record``: run a command and record its machine's telemetry."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ciml.cli.options import home_option, kafka_options, s3_place
from ciml.cli.param_types import Duration
from ciml.settings import pairs

if TYPE_CHECKING:
    from ciml.events.records import RunFacts
    from ciml.recorder.settings import WhoseBroker


@click.command("record", context_settings={"allow_interspersed_args": False})
@click.argument("argv", metavar="COMMAND…", nargs=-1, type=click.UNPROCESSED)
@kafka_options(required=False)
@home_option
@click.option(
    "--log-dir",
    metavar="FOLDER|s3://PREFIX",
    envvar="CIML_LOG_DIR",
    show_envvar=True,
    callback=s3_place,
    help="Folder or s3:// prefix of the log, stored as JOB/RUN-ID/dstat-csv_log.txt.gz.",
)
@click.option(
    "--log-url",
    metavar="URL",
    envvar="CIML_LOG_URL",
    show_envvar=True,
    help="URL of --log-dir for ingest.  [default: --log-dir]",
)
@click.option("--job", metavar="NAME", help="Job of the run.  [default: $CIML_JOB or the CI system's]")
@click.option(
    "--run-id", metavar="ID", help="Native id of the run.  [default: $CIML_RUN_ID, the CI system's or random]"
)
@click.option("--source", metavar="NAME", help="CI system of the run.  [default: $CIML_SOURCE or the detected one]")
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="K=V",
    help="Metadata of the run: change, project, branch, pipeline, provider, flavour or any other; may be repeated.",
)
@click.option(
    "--timeout",
    type=Duration(),
    metavar="TIME",
    help="Timeout of the command, with outcome TIMED_OUT.  [default: none]",
)
@click.option(
    "--flush",
    type=Duration(),
    default="5s",
    metavar="TIME",
    envvar="CIML_FLUSH",
    show_envvar=True,
    help="Time for sending after the command's end; with --send the longest time without progress. The next recorder"
    " sends the rest.",
)
@click.option(
    "--spool",
    metavar="FOLDER",
    help="Folder of unsent recordings.  [default: $CIML_SPOOL or ~/.local/state/ciml/record]",
)
@click.option("--send", is_flag=True, help="Send unsent recordings; run no command.")
@click.option("--samples-topic", default="samples", metavar="TOPIC", help="Topic of samples; '' for none.")
@click.option("--topic", default="ci-events", metavar="TOPIC", help="Topic of the run's events.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing on standard error.")
def command(
    argv: tuple[str, ...],
    kafka: str | None,
    kafka_config: str | None,
    kafka_options: tuple[str, ...],
    home: Path,
    log_dir: str | None,
    log_url: str | None,
    job: str | None,
    run_id: str | None,
    source: str | None,
    labels: tuple[str, ...],
    timeout: float | None,
    flush: float,
    spool: str | None,
    send: bool,
    samples_topic: str,
    topic: str,
    quiet: bool,
) -> None:
    """Run a command and record its machine's telemetry.

    It records CPU, load, memory, disk and network once a second, by dool or else from /proc. The command keeps its
    terminal, streams, signals and exit status. Samples and the events of start and finish go to Kafka, the log to
    --log-dir for ingest. Unsent recordings stay in the spool for the next recorder.

    \b
    Example:
      ciml record -- make test
      ciml record --kafka kafka:9092 --log-dir s3://logs/ci --label provider=rax -- tox -e py311
      ciml record --log-dir logs --job unit -- pytest -x
      ciml record --send
    """
    from ciml.extras import require
    from ciml.kafka.options import KafkaOptions
    from ciml.recorder.ci_environment import missing_id
    from ciml.recorder.settings import Settings, be_quiet, report
    from ciml.recorder.spool.recording import Destination, Plan, default_spool

    if bool(argv) == send:
        raise click.UsageError(
            "no command; give one, such as: ciml record -- make test" if not send else "--send takes no command"
        )
    if log_url and not log_dir:
        raise click.UsageError("--log-url needs --log-dir")
    if log_dir and log_dir.startswith("s3://"):
        require("boto3")
    options = KafkaOptions.of(kafka, pairs("-X", kafka_options), kafka_config) if kafka else None
    named = click.get_current_context().get_parameter_source("kafka") is not click.core.ParameterSource.DEFAULT
    leftovers: WhoseBroker = "given" if named else "unconfirmed" if kafka_options or kafka_config else "recorded"
    settings = Settings(Path(spool).absolute() if spool else default_spool(), options, flush, leftovers)
    if quiet:
        be_quiet()
    destination = Destination(samples_topic, topic, _absolute(log_dir), log_url or "")
    if send:
        from ciml.recorder.spool.flush import send_leftovers

        send_leftovers(settings, destination)
        return
    from ciml.recorder.record import record

    facts = make_facts(dict(pairs("--label", labels)), argv[0], job=job, run_id=run_id, source=source)
    if kafka and not run_id and (line := missing_id(os.environ)):
        report(line)
    record(argv, Plan(facts, kafka or "", **asdict(destination)), settings, timeout)


def make_facts(
    labels: dict[str, str], command: str, *, job: str | None, run_id: str | None, source: str | None
) -> RunFacts:
    """Return the facts of the run, from the options, then from the environment.

    Raises:
      CimlError: an option is not valid in an event.
    """
    import time

    from ciml.errors import CimlError, RejectedInput
    from ciml.events.run_facts import facts_from_run, run_identity
    from ciml.recorder.ci_environment import FACTS, run_of

    detected = run_of(os.environ)
    run = {
        "id": run_id or detected.native_id,
        "attempt": detected.attempt,
        "job": job or labels.pop("job", "") or detected.job or os.path.basename(command) or "command",
        "start_time": time.time(),
        **detected.facts,
        **{name: labels.pop(name) for name in FACTS if name in labels},
        "labels": {**detected.labels, **labels},
    }
    try:
        identity = run_identity(run, source or detected.source)
        return facts_from_run(run, identity, "started")[0]
    except RejectedInput as rejected:
        raise CimlError(f"invalid event field: {rejected}") from None


def _absolute(folder: str | None) -> str:
    if not folder:
        return ""
    return folder if "://" in folder else os.path.abspath(folder)
