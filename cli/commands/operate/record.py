"""``ciml record``: any command, with a recorder beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ciml.pairs import pairs
from cli.options import home_option, kafka_config_option, kafka_option, kafka_properties_option, s3_place
from cli.param_types import Duration

if TYPE_CHECKING:
    from recorder.spool.recording import Plan


@click.command("record", short_help="Run a command and record it.", context_settings={"allow_interspersed_args": False})
@click.argument("argv", metavar="COMMAND…", nargs=-1, type=click.UNPROCESSED)
@kafka_option(required=False)
@kafka_config_option
@kafka_properties_option
@home_option
@click.option(
    "--log-dir",
    metavar="FOLDER|s3://PREFIX",
    envvar="CIML_LOG_DIR",
    show_envvar=True,
    callback=s3_place,
    help="Where the log is put at the end, as JOB/RUN-ID/dstat-csv_log.txt.gz.",
)
@click.option(
    "--log-url",
    metavar="URL",
    envvar="CIML_LOG_URL",
    show_envvar=True,
    help="The address under which ingest finds what is in --log-dir.  [default: --log-dir itself]",
)
@click.option("--job", metavar="NAME", help="The kind of job.  [default: $CIML_JOB, or as the CI system says]")
@click.option("--run-id", metavar="ID", help="The run's own id.  [default: $CIML_RUN_ID, the CI system's, or random]")
@click.option("--source", metavar="NAME", help="The CI system.  [default: $CIML_SOURCE, or the one that is found]")
@click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="K=V",
    help="What is known of the run: change, project, branch, pipeline, provider, flavour, … or anything else; may be "
    "repeated.",
)
@click.option("--timeout", type=Duration(), metavar="TIME", help="End the command after so long, as TIMED_OUT.")
@click.option(
    "--flush",
    type=Duration(),
    default="5s",
    show_default=True,
    metavar="TIME",
    envvar="CIML_FLUSH",
    show_envvar=True,
    help="How long to send after the command's end (with --send: how long to wait while nothing gets on). What is left "
    "then is sent by the next.",
)
@click.option(
    "--spool",
    metavar="FOLDER",
    help="Where recordings wait until they are sent.  [default: $CIML_SPOOL or ~/.local/state/ciml/record]",
)
@click.option("--send", is_flag=True, help="Run nothing: send what earlier recorders have left in the spool.")
@click.option(
    "--samples-topic", default="samples", show_default=True, metavar="TOPIC", help="Where samples go; '' for nowhere."
)
@click.option("--topic", default="ci-events", show_default=True, metavar="TOPIC", help="Where the run's events go.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing: standard error is the command's alone.")
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
    """Run a command and record how its machine feels meanwhile: CPU, load, memory, disk, network, once a second.

    The command has its terminal, its streams, its signals and its exit status as without ciml. Samples go to Kafka
    as they come, events tell of the run's start and finish, and the log is put where ingest fetches it. What cannot
    be sent stays in the spool and is sent by the next recorder. Samples are dool's, where it is there, else read from
    /proc.

    \b
    Example:
      ciml record -- make test
      ciml record --kafka kafka:9092 --log-dir s3://logs/ci --label provider=rax -- tox -e py311
      ciml record --log-dir logs --job unit -- pytest -x
      ciml record --send
    """
    from ciml.kafka.options import KafkaOptions
    from recorder.console import be_quiet
    from recorder.settings import Settings
    from recorder.spool.recording import Places, default_spool

    if bool(argv) == send:
        raise click.UsageError("want a command, such as: ciml record -- make test" if not send else
                               "--send runs no command")  # fmt: skip
    if log_url and not log_dir:
        raise click.UsageError("--log-url says how others find --log-dir, which is not given")
    options = KafkaOptions.of(kafka, pairs("-X", kafka_options), kafka_config) if kafka else None
    settings = Settings(Path(spool).absolute() if spool else default_spool(), options, flush)
    if quiet:
        be_quiet()
    if send:
        from recorder.spool.flush import send_leftovers

        send_leftovers(settings, Places(samples_topic, topic, _absolute(log_dir), log_url or ""))
        return
    from recorder.record import record

    plan = make_plan(
        dict(pairs("--label", labels)), job=job, run_id=run_id, source=source, command=argv[0], kafka=kafka or "",
        samples_topic=samples_topic, events_topic=topic, log_dir=_absolute(log_dir), log_url=log_url or "",
    )  # fmt: skip
    record(argv, plan, settings, timeout)


def make_plan(
    labels: dict[str, str],
    *,
    job: str | None,
    run_id: str | None,
    source: str | None,
    command: str,
    kafka: str,
    samples_topic: str,
    events_topic: str,
    log_dir: str,
    log_url: str,
) -> Plan:
    """What is known of the run: from the options, then from the environment.

    Raises:
      CimlError: an option is none that an event can hold.
    """
    import time

    from ciml.errors import CimlError, RejectedInput
    from ciml.events.run_facts import facts_from_run, run_identity
    from recorder.ci_environment import FACTS, known_run
    from recorder.spool.recording import Plan

    known = known_run(os.environ)
    run = {
        "id": run_id or known.native_id,
        "attempt": known.attempt,
        "job": job or labels.pop("job", "") or known.job or os.path.basename(command) or "command",
        "start_time": time.time(),
        **known.facts,
        **{name: labels.pop(name) for name in FACTS if name in labels},
        "labels": {**known.labels, **labels},
    }
    try:
        identity = run_identity(run, source or known.source)
        mention, _ = facts_from_run(run, identity, "started")
    except RejectedInput as refused:
        raise CimlError(f"this cannot stand in an event: {refused}") from None
    return Plan(mention, kafka, samples_topic, events_topic, log_dir, log_url)


def _absolute(place: str | None) -> str:
    if not place:
        return ""
    return place if "://" in place else os.path.abspath(place)
