"""Starts, resumes and stops a supervised service: what the commands do, one at a time for each service."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ciml.errors import CimlError, EngineError, IntegrityError
from engines import processes, state
from engines.local_s3 import use_local_s3
from services.files import Options, ServiceFiles
from services.jobs import jobs_of, submits

Say = Callable[[str], object]

_LOOK_S = 0.2
_AT_WORK = ("starting", "running", "restarting")


def start(place: ServiceFiles, options: Options, wait_s: float, say: Say, *, foreground: bool = False) -> int:
    """Start a service, which goes on from its manifest; in the foreground, supervise it here. Return the exit code.

    A container or systemd starts it again with the same options: that goes on as `resume` does.

    Raises:
      CimlError: it runs already; an option is of no use.
      EngineError: the broker, the store or the engine does not answer, or it is not seen to work in time.
      IntegrityError: going on would lose or mix something.
    """
    with _commanding(place):
        _refuse_a_second(place)
        check(options)
        again = foreground and place.known and _said(place.options()) == _said(options)
        if place.known:
            _end_unlike(place, options, say)
            kept = place.status().get("savepoint")
            if kept and not kept["use"] and not again:
                say(f"The savepoint {kept['path']} is left: this starts from the manifest (resume would have used it).")
        place.put_options(options)
        if not again:
            place.put_status({})
        if not foreground:
            _supervise(place, wait_s, say)
            return 0
        use_s3(place.home, options)
        place.want("run")
    from services.process import supervisor_main

    return supervisor_main(place.home, place.name)


def resume(place: ServiceFiles, parallelism: int | None, wait_s: float, say: Say) -> None:
    """Go on with a service, and take over what of it runs. Raises as `start` does."""
    with _commanding(place):
        options = place.options()
        if place.process("supervisor") is not None:
            if parallelism not in (None, options.parallelism):
                raise CimlError(f"the service {place.name} runs: stop it (ciml service stop --savepoint), then resume")
            say(f"The service {place.name} runs already.")
            return
        check(options)
        if parallelism not in (None, options.parallelism):
            changed = replace(options, parallelism=int(parallelism or 1))
            _end_unlike(place, changed, say)
            options = changed
        place.put_options(options)
        _supervise(place, wait_s, say)


def stop(place: ServiceFiles, wait_s: float, say: Say, *, savepoint: bool = False) -> None:
    """Stop a service, by its supervisor, or in this process where there is none (any more).

    Raises:
      EngineError: it is not stopped in time, or was stopped without the savepoint that was asked for.
    """
    with _commanding(place):
        options = place.options()
        use_s3(place.home, options)
        before = place.status()
        supervisor = place.process("supervisor")
        if supervisor is None and before.get("health") == "stopped" and not _at_work(place, options):
            say(f"The service {place.name} is stopped already.")
            return
        place.want("savepoint" if savepoint else "stop")
        deadline = time.monotonic() + wait_s
        while place.process("supervisor") is not None and time.monotonic() < deadline:
            time.sleep(_LOOK_S)
        if place.process("supervisor") is not None:
            say("The supervisor does not react, and is ended.")
            processes.end(*place.written("supervisor"), grace_s=2.0)
        if place.status().get("health") not in ("stopped", "failed") or _at_work(place, options):
            _stop_here(place, options, wait_s)
        _tell_stopped(place, options, before, say, savepoint=savepoint)


def check(options: Options) -> None:
    """Look at once at what would keep a service from working: options, broker, topic, store, engine.

    Raises:
      CimlError: of the kinds that `start` names.
    """
    from services.process import watched

    service = watched(options)
    if service.needs_flink and options.engine != "flink":
        raise CimlError(service.needs_flink)
    try:
        service.observe()
    finally:
        service.close()
    if options.engine == "flink":
        from pipelines.flink.jobs import list_jobs

        list_jobs(options.jobs)


def use_s3(home: Path, options: Options) -> None:
    """Point S3 clients at the home's own endpoint, where the data are on S3 and nothing else is configured."""
    places = (options.arguments["data_path"], *options.arguments.get("roots", ()))
    if any(one.startswith("s3://") for one in places):
        use_local_s3(state.read(home).get("s3"))


@contextmanager
def _commanding(place: ServiceFiles) -> Iterator[None]:
    with place.exclusive("command", timeout_s=5.0) as held:
        if not held:
            raise CimlError(f"another command starts or stops the service {place.name}; try again when it is done")
        yield


def _refuse_a_second(place: ServiceFiles) -> None:
    if place.process("supervisor") is not None:
        raise CimlError(
            f"a service named {place.name} runs already (pid {place.written('supervisor')[0]}): look at it (ciml "
            "service status), stop it (ciml service stop), or choose another --name"
        )


def _at_work(place: ServiceFiles, options: Options) -> bool:
    """Whether something of it works; an engine that does not answer is not asked again."""
    try:
        return jobs_of(place, options).look().state in _AT_WORK
    except EngineError:
        return False


def _end_unlike(place: ServiceFiles, options: Options, say: Say) -> None:
    """End what an earlier start, with other options, left at work. What is alike is taken over."""
    before = place.options()
    if _said(before) == _said(options) or not _at_work(place, before):
        return
    say(f"What an earlier start of {place.name} left at work had other options, and is ended.")
    jobs_of(place, before).cancel()


def _said(options: Options) -> dict[str, Any]:
    return asdict(replace(options, tied=None))


def _supervise(place: ServiceFiles, wait_s: float, say: Say) -> None:
    """Start a supervisor, and wait until its service works."""
    options = place.options()
    use_s3(place.home, options)
    place.want("run")
    command = processes.python_command("services.process", "supervisor", str(place.home), place.name)
    pid, started = processes.spawn(command, place.log("supervisor"), processes.python_environment(), Path(options.cwd))
    began = time.monotonic()
    deadline, why = began + wait_s, "its supervisor has not started yet"
    while time.monotonic() < deadline:
        seen = place.status()
        mine = (seen.get("supervisor") or {}).get("pid") == pid
        if mine:
            why = seen.get("why") or seen.get("health", "")
            if seen["health"] == "failed":
                raise IntegrityError(why)
            if seen["health"] == "stalled":
                break
            if seen["health"] == "running":
                where = f"; {seen['behind']:,} messages to go" if seen.get("behind") is not None else ""
                engine = f" on {options.engine}" if options.engine else ""
                say(f"The service {place.name} works{engine}, from version {seen.get('version')}{where}.")
                return
        if processes.find(pid, started) is None:
            said = processes.last_lines(place.log("supervisor"))
            raise EngineError(f"the supervisor of {place.name} ended: {said} (log: {place.log('supervisor')})")
        time.sleep(_LOOK_S)
    if wait_s:
        raise EngineError(
            f"the service {place.name} was not seen to work within {time.monotonic() - began:.0f} s: {why}. Its "
            "supervisor goes on; look at it by: ciml service status"
        )
    say(f"The supervisor of {place.name} has started (pid {pid}).")


def _stop_here(place: ServiceFiles, options: Options, wait_s: float) -> None:
    import threading

    from services.process import supervise

    leave = threading.Event()
    timer = threading.Timer(max(wait_s, 30.0), leave.set)
    timer.daemon = True
    with place.exclusive("supervisor", timeout_s=10.0) as held:
        if not held:
            raise EngineError(f"another supervisor of {place.name} has just started; try again")
        timer.start()
        health = supervise(place, options, leave)
        timer.cancel()
    if health not in ("stopped", "failed"):
        raise EngineError(f"the service {place.name} is not stopped: {place.status().get('why')}")


def _tell_stopped(place: ServiceFiles, options: Options, before: dict[str, Any], say: Say, *, savepoint: bool) -> None:
    status = place.status()
    kept = status.get("savepoint") or {}
    fresh = kept.get("path") and kept != (before.get("savepoint") or {})
    if savepoint and submits(options) and not fresh:
        why = status.get("savepoint_failed") or "its job did not run"
        raise EngineError(
            f"the service {place.name} is stopped, without a savepoint: {why}. Resume goes on from the manifest"
        )
    note = f", with the savepoint {kept['path']}" if savepoint and fresh else ""
    if savepoint and not submits(options):
        note = "; no savepoint is needed"
    said = f": {status['why']}" if status.get("why") not in (None, "", "as asked") else ""
    say(f"The service {place.name} is stopped at version {status.get('version')}{note}{said}.")
