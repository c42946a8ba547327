"""Rows 15 to 19: log hosts that fail or attack, odd telemetry, hard times, and addresses that lead inside."""

from __future__ import annotations

import io
import json
import math
import random
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq

from ciml.engines.processes import lasting_ports
from ciml.errors import RejectedInput
from tests.corpus import CORPUS
from tests.faults.children import ROOT, Program, python
from tests.faults.oracle import table_of
from tests.faults.plan import Mix
from tests.faults.results import Verdict
from tests.faults.rows import row
from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.fuzz.strategies.hostile_logs import hostile_log
from tests.golden import make_logs
from tests.golden.make_logs import SECOND, Golden


@contextmanager
def _bad_hosts(
    seed: int, scene: Scene, policy: str, delays: Iterable[str], cycle: int = 0
) -> Iterator[tuple[Story, list[int], list[Program]]]:
    """A story with three log servers that misbehave, their ports and their processes."""
    file = scene.folder / "fetch.toml"
    file.write_text(policy)
    ports = lasting_ports(3)
    options = ["--fetch-policy", str(file)]
    for port in ports:
        options += ["--allow-host", f"http://127.0.0.1:{port}"]
    servers = [_serve(scene, port) for port in ports]
    with ExitStack() as stack:
        stack.callback(lambda: [server.kill() for server in servers])
        yield Story(scene, seed, delays=tuple(delays), options=options, cycle=cycle), ports, servers


def _serve(scene: Scene, port: int) -> Program:
    return python("tests.faults.bad_logs", str(CORPUS), str(port), log=scene.log(f"bad-{port}"))


#: What is always so, and the reason that the dead letter has.
_ALWAYS = {
    "missing": "log_not_found", "forbidden": "log_forbidden", "broken": "log_unavailable", "busy": "log_unavailable",
    "stall": "log_timeout", "reset": "log_unavailable|log_cut", "cut": "log_cut", "hangup": "log_unavailable",
}  # fmt: skip
_DELAYS = ("500ms", "1s", "2s", "3s")


@row(15, "log host 404, 500, stall, reset, cut; log not uploaded yet")
def log_host(seed: int, scene: Scene) -> Verdict:
    policy = "read_s = 1.0\nconnect_s = 1.0\ntotal_s = 3.0\nbatch_s = 30.0\n"
    with _bad_hosts(seed, scene, policy, _DELAYS) as (story, (port, slow, other), servers):
        planner, chance = story.planner, story.random
        for number in range(120):
            run = planner.run()
            path = f"logs/{run.url.partition('/corpus/')[2]}?{number}"  # an address, and so a counter, of its own
            if number % 2:
                planner.event(run, run.claim("run"), log_url=f"http://127.0.0.1:{other}/plain/{path}")
                continue
            word, times = chance.choice(sorted(_ALWAYS)), chance.choice((0, 0, 1, 2, 3))
            # hosts that stall are others than those that do not, as a slow host is asked for no more logs of a batch
            host = f"http://127.0.0.1:{slow if word == 'stall' else port}"
            claim = run.claim("run") if times else run.claim("dead_letter", _ALWAYS[word])
            planner.event(run, claim, log_url=f"{host}/{word}.{times}/{path}")
        plan = planner.mixed(80, Mix(late_logs=0.1, bad=0.1))
        chance.shuffle(plan.sends)
        story.ingest()
        story.produce(plan, rate=60)
        story.commits(1)
        story.sleep(0, 1)
        servers[2].kill()
        story.verdict.count("kills")
        story.sleep(2.0)
        servers[2] = _serve(scene, other)
        verdict = story.conclude()
    tries = [entry.record.get("attempts", 1) for entries in story.ledger.entries.values() for entry in entries]
    verdict.measure("attempts", max(tries))
    verdict.expect(max(tries) <= len(_DELAYS) + 1, f"I6: a log was tried {max(tries)} times, with {_DELAYS}")
    return verdict


_LIMITS = """
read_s = 1.0
connect_s = 1.0
total_s = 5.0
batch_s = 30.0
max_wire_bytes = 4194304
max_bytes = 16777216
max_batch_bytes = 134217728
"""
#: I6 here: what an ingest has at rest, 16 threads with a log of at most 16 MiB each, and what parsing takes.
_MOST_RSS_MB = 700.0
#: Two reasons where the server takes long enough to make so much on a busy machine.
_BAD = {
    "bomb/x": "log_too_large", "nested/x": "log_too_large", "deep/x": "corrupt_gzip",
    "around.1/bomb/x": "log_too_large", "around.5/bomb/x": "log_too_large",
    "around.3/nested/x": "log_too_large", "around.6/bomb/x": "too_many_redirects",
    "circle/x": "too_many_redirects", "away/x": "address_not_allowed", "around.2/away/x": "address_not_allowed",
    "endless/x": "log_too_large|log_timeout", "zeros/x": "log_too_large|log_timeout",
    "drip/x": "log_timeout", "dripheader/x": "log_timeout",
    "widehead/x": "log_unavailable|log_timeout", "announced/x": "log_too_large",
    "members/x": "corrupt_gzip|log_timeout",
    "noise/x": "log_unavailable", "long/x": "log_too_large|log_timeout",
    "wide/x": "not_telemetry|log_too_wide|log_timeout",
}  # fmt: skip


@row(16, "gzip bombs, nested and in redirects; endless and dripping logs")
def bombs(seed: int, scene: Scene) -> Verdict:
    with _bad_hosts(seed, scene, _LIMITS, ("300ms",), cycle=2000) as (story, (fast, slow, heavy), _):
        planner, chance = story.planner, story.random
        for path, reason in [*_BAD.items(), *chance.choices(sorted(_BAD.items()), k=30)]:
            run = planner.run()
            # a host with timeouts in a row is asked for no more logs of the batch
            port = slow if "drip" in path else heavy if "log_timeout" in reason else fast
            url = f"http://127.0.0.1:{port}/{path}?{run.native}"
            planner.event(run, run.claim("dead_letter", reason), log_url=url)
        plan = planner.mixed(80)
        chance.shuffle(plan.sends)
        story.ingest()
        story.produce(plan)
        verdict = story.conclude()
    rss = max(verdict.measures["rss_mb"])
    verdict.expect(rss <= _MOST_RSS_MB, f"I6: ingest had {rss:.0f} MiB, more than {_MOST_RSS_MB:.0f}")
    return verdict


class _Known:
    """A story whose runs have logs with known contents: what is stored of them is compared with what was written."""

    def __init__(self, seed: int, scene: Scene) -> None:
        self.story = Story(scene, seed)
        self.golden: dict[str, Golden] = {}

    def send(self, data: bytes, start_us: int, end_us: int, golden: Golden | None = None) -> RejectedInput | None:
        """Add a run with this log: a row, or a dead letter if the direct computation rejects it; return the reason."""
        planner = self.story.planner
        name = f"known-{len(planner.plan.sends)}.log"
        (planner.served / name).write_bytes(data)
        run = replace(planner.run(log=name), start=_iso(start_us), end=_iso(end_us))
        self.story.verdict.count("logs")
        try:
            table_of(str(planner.served / name), start_us, end_us)
        except RejectedInput as refused:
            planner.event(run, run.claim("dead_letter", refused.reason))
            self.story.verdict.count("refused")
            return refused
        planner.event(run, run.claim("run"))
        if golden is not None:
            self.golden[run.run_id] = golden
        return None

    def send_golden(self, golden: Golden, zone: str = "") -> None:
        """Add a run with a golden log, which may be rejected only if a sample of its zone has an ambiguous time."""
        start = golden.start_us if golden.start_us is not None else min(golden.times_us) - 2 * SECOND
        end = max(golden.end_us or 0, max(golden.times_us) + 3 * SECOND)  # also where the clock was set back
        refused = self.send(golden.data, start, end, golden)
        if refused is not None and not (refused.reason == "ambiguous_time" and zone and _is_ambiguous(golden, zone)):
            self.story.verdict.fail(f"golden: {golden.name} was refused: {refused}")

    def conclude(self) -> Verdict:
        """Ingest all, with the usual golden logs, and compare."""
        story = self.story
        for make in make_logs.SMALL:
            self.send_golden(make())
        story.random.shuffle(story.planner.plan.sends)
        story.ingest()
        story.produce(story.planner.plan)
        verdict = story.conclude(odd=True)
        for run_id, golden in self.golden.items():
            verdict.fail(*(f"golden: {golden.name}: {line}" for line in self._compare(run_id, golden)))
        return verdict

    def _compare(self, run_id: str, golden: Golden) -> Iterator[str]:
        entries = self.story.ledger.rows.get(run_id, [])
        data = self.story.ledger.raw.read(entries[0].record["file"]["path"]) if entries else None
        if data is None:
            yield "it is missing"
            return
        table = pq.ParquetFile(io.BytesIO(data)).read()
        times = table.column("time").cast(pa.int64()).to_pylist()
        if times != golden.times_us or table.column("boot").to_pylist() != golden.boot:
            different = [(a, b) for a, b in zip(times, golden.times_us, strict=False) if a != b]
            yield f"other times or starts: {[(_iso(a), _iso(b)) for a, b in different[:2]]}"
            return
        for name, values in golden.columns.items():
            stored = table.column(name).to_pylist() if name in table.column_names else [None] * len(values)
            if not all(
                a == b or (a is not None and b is not None and math.isclose(a, b))
                for a, b in zip(stored, values, strict=True)
            ):
                yield f"other values of {name}"


def _iso(us: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)).isoformat().replace("+00:00", "Z")


@row(17, "telemetry corpus: every trap of the formats, and fuzz")
def telemetry(seed: int, scene: Scene) -> Verdict:
    known = _Known(seed, scene)
    start, end = make_logs.instant("2026-11-24T12:00:00Z"), make_logs.instant("2026-11-24T13:00:00Z")
    for number in range(130):
        known.send(hostile_log(seed * 1_000_000 + number), start, end)
    known.story.planner.mixed(60)
    return known.conclude()


@row(18, "New Year, 29 February, both clock changes, clock set back")
def times(seed: int, scene: Scene) -> Verdict:
    known = _Known(seed, scene)
    for kind in ("new year", "leap day", "clock change", "clock change", "set back") * 24:
        known.send_golden(*_of_time(kind, known.story.random, len(known.story.planner.plan.sends)))
    return known.conclude()


_ZONES = (
    "UTC", "Europe/Berlin", "Europe/London", "America/New_York", "America/Los_Angeles", "America/Sao_Paulo",
    "Asia/Kolkata", "Asia/Tokyo", "Asia/Kathmandu", "Australia/Sydney", "Australia/Lord_Howe", "Pacific/Auckland",
)  # fmt: skip


def _of_time(kind: str, chance: random.Random, number: int) -> tuple[Golden, str]:
    """Return a log of a time that is hard to get right, in some zone, by some recorder; and the zone."""
    zone, year = chance.choice(_ZONES), chance.randrange(2008, 2037)
    place = ZoneInfo(zone)
    base = chance.choice((make_logs.DSTAT, make_logs.DSTAT_072, make_logs.DOOL, make_logs.PCP))
    recorder = replace(base, zone=zone)
    count, step = chance.choice(((60, 1), (300, 1), (40, 10), (30, 600)))
    back_us = 0
    if kind == "new year":
        middle = datetime(year + 1, 1, 1, tzinfo=place)
    elif kind == "leap day":
        month, day = chance.choice(((2, 29), (3, 1)))
        middle = datetime(chance.randrange(2008, 2036, 4), month, day, tzinfo=place)
    elif kind == "clock change":
        middle = chance.choice(_clock_changes(zone, year) or [datetime(year, 7, 1, tzinfo=place)])
    else:
        day, hour = chance.randrange(1, 29), chance.randrange(5, 20)
        middle = datetime(year, chance.randrange(1, 13), day, hour, tzinfo=place)
        back_us = chance.choice((2, 30, 120)) * SECOND
    first = round(middle.timestamp()) * SECOND - chance.randrange(1, count) * step * SECOND
    times = [first + index * step * SECOND - (back_us if index >= count // 2 else 0) for index in range(count)]
    if step != 1:
        recorder = replace(recorder, cmdline=f"{recorder.cmdline.removesuffix(' 1')} {step}")
    return make_logs.record(f"{kind} {number} {zone}", recorder, times), zone


@cache
def _clock_changes(zone: str, year: int) -> list[datetime]:
    """Return the clock changes of a zone in a year; all are at a full or half hour of UTC."""
    place = ZoneInfo(zone)
    times = [datetime(year, 1, 1, tzinfo=UTC) + timedelta(minutes=30 * number) for number in range(366 * 48)]
    offsets = [time.astimezone(place).utcoffset() for time in times]
    return [time for time, before, after in zip(times[1:], offsets, offsets[1:], strict=False) if before != after]


def _is_ambiguous(golden: Golden, zone: str) -> bool:
    """Return whether a sample has a local time that comes twice."""
    place = ZoneInfo(zone)
    local = [datetime.fromtimestamp(us / SECOND, place) for us in golden.times_us]
    return any(one.replace(fold=0).utcoffset() != one.replace(fold=1).utcoffset() for one in local)


_CASES = 200
_PUBLIC_AT_LEAST = 20


@row(19, "SSRF: link-local, private, encoded, redirect, rebinding")
def ssrf(seed: int, scene: Scene) -> Verdict:
    verdict = Verdict()
    command = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.faults.inner_net", str(seed), str(_CASES)]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=120, check=False)
    if b"unshare" in done.stderr and b"not permitted" in done.stderr:
        verdict.skipped = "network namespaces need root"
    elif done.returncode:
        verdict.fail(f"trial: the namespace ended with {done.returncode}: {done.stderr[-600:].decode()}")
    else:
        found = json.loads(done.stdout)
        verdict.fail(*(f"I8: {connections} connections to {ip}" for ip, connections in found["forbidden"].items()))
        verdict.fail(*(f"I8: {line}" for line in found["wrong"]))
        verdict.expect(found["public"] >= _PUBLIC_AT_LEAST, f"trial: {found['public']} connections to public addresses")
        verdict.count("events", _CASES)
        verdict.count("refused", sum(count for reason, count in found["reasons"].items() if reason != "log"))
    return verdict
