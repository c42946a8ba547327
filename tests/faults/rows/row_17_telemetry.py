"""Row 17: telemetry with every known trap, and fuzz."""

from __future__ import annotations

import gzip

from tests.corpus import CORPUS
from tests.faults import fuzz, golden
from tests.faults.children import python
from tests.faults.plan import builds
from tests.faults.scene import Scene
from tests.faults.story import Story
from tests.faults.verdict import Verdict
from tests.golden import make_logs

ROW = 17
TITLE = "telemetry corpus: every trap of the formats, and fuzz"
INJECTED = (
    "the golden logs, 30 traps by hand, 100 logs that hypothesis damages in up to six ways, all as runs through "
    "ingest; 400 more in the parser alone, and 2,000 inputs by atheris, led by coverage, where it is installed"
)
EXPECTED = "rows or dead letters with a reason of the closed set, no crash, nothing stored that is not finite"
INVARIANTS = ("I1", "I2", "I4", "golden", "finite")
TRIALS = 20
ENGINES = ("micro-batches",)

_HEAD = b'"Cmdline:","dstat -tl",,,,"Date:","24 Nov 2026 14:00:00 UTC"\n"system","load avg",,\n"time","1m","5m","15m"\n'
_ROWS = b"".join(b"24-11 14:00:%02d,%d.5,2,3\n" % (second, second) for second in range(30))


def traps() -> dict[str, bytes]:
    """Logs that break one parser or another."""
    real = gzip.decompress((CORPUS / builds()[0]["log_path"]).read_bytes())
    log, packed = _HEAD + _ROWS, gzip.compress(_HEAD + _ROWS, mtime=0)
    found = {
        "latin-1": log.replace(b"\n24-11 14:00:05,5.5", b"\n24-11 14:00:05,5\xe9"),
        "header-midway": log + _HEAD + _ROWS,
        "other-header-midway": log + b"\n\n" + make_logs.dool().data,
        "a-line-of-5-mb": log + b"24-11 14:00:30," + b"7" * (5 << 20) + b",1,2\n",
        "one-bad-row": log + b"24-11 14:00:30,a,b,c,d,e\n" + b"24-11 14:00:31,1,2,3\n",
        "cut-in-a-number": log[:-3],
        "nothing": b"",
        "blank": b"\n" * 100,
        "nul": bytes(1000),
        "a-page": b"<!DOCTYPE html><html>404</html>\n" * 50,
        "only-a-banner": b'"Dstat 0.7.4 CSV output"\n',
        "only-a-header": _HEAD,
        "utf-8-mark": b"\xef\xbb\xbf" + log,
        "utf-16": log.decode().encode("utf-16"),
        "dos": log.replace(b"\n", b"\r\n"),
        "old-mac": log.replace(b"\n", b"\r"),
        "no-date": log.replace(b"24 Nov 2026 14:00:00 UTC", b""),
        "odd-zone": log.replace(b"UTC", b"XYZ"),
        "too-long-a-name": log.replace(b'"15m"', b'"' + b"x" * 5000 + b'"'),
        "many-columns": log.replace(b'"15m"', b",".join(b'"c%d"' % number for number in range(5000))),
        "gzip": packed,
        "gzip-twice": gzip.compress(packed, mtime=0),
        "gzip-thrice": gzip.compress(gzip.compress(packed, mtime=0), mtime=0),
        "gzip-members": gzip.compress(_HEAD, mtime=0) + gzip.compress(_ROWS, mtime=0),
        "gzip-cut": packed[:-9],
        "gzip-flipped": packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:],
        "gzip-and-more": packed + b"rest",
        "many-restarts": (_HEAD + b"24-11 14:00:00,1,2,3\n") * 1500,
        "swapped-times": _HEAD + b"".join(reversed(_ROWS.splitlines(keepends=True))),
        "real": real,
    }  # fmt: skip
    for number, word in enumerate((b"nan", b"1e400", b"1_000", "٣".encode(), b"-inf", b"0x1p3")):
        found[f"cell-{number}"] = log.replace(b",7.5,", b"," + word + b",")
    return found


def trial(seed: int, scene: Scene) -> Verdict:
    story = Story(scene, seed)
    planner, wanted = story.planner, {}
    start, end = make_logs.instant("2026-11-24T13:50:00Z"), make_logs.instant("2026-11-24T15:00:00Z")
    for make in make_logs.SMALL:
        log = make()
        run, refused = golden.send_golden(planner, log, f"golden-{log.name}.csv")
        story.verdict.expect(refused is None, f"golden: {log.name} was refused: {refused}")
        wanted[run.run_id] = log
    damaged = fuzz.draw(seed, 500)[:100]
    story.verdict.count("fuzzed", 500)
    for number, data in enumerate([*traps().values(), *damaged]):
        _, refused = golden.send_log(planner, f"odd-{number}.{'csv.gz' if number % 2 else 'csv'}", data, start, end)
        story.verdict.count("logs")
        story.verdict.count("refused", int(refused is not None))
        if refused is not None:
            story.verdict.expect(refused.reason in fuzz.REASONS, f"I2: an unknown reason: {refused}")
    planner.mixed(60)
    story.random.shuffle(planner.plan.sends)
    hunter = None
    if fuzz.has_atheris():
        hunter = python("tests.faults.fuzz", str(seed), "2000", log=scene.folder / "logs" / "atheris.log")
    story.poll()
    story.ingest()
    story.produce(planner.plan)
    story.settle()
    story.stop_ingest()
    verdict = story.finish(odd=True)
    verdict.fail(*golden.check(story.ledger.raw, story.ledger, wanted)[:20])
    if hunter is not None:
        code = hunter.wait(120)
        verdict.expect(code == 0, f"I2: atheris ended with {code}: {hunter.said()[-600:]}")
        verdict.count("by atheris", 2000)
        hunter.kill()
    return verdict
