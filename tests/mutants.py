"""Mutation testing: small changes of a room's code, one at a time, each of which a test should notice.

    make mutants ROOM=manifest SAMPLE=200

mutmut makes the changes. It cannot follow the links of the package, so it works on a copy of the checkout in
build/mutants/, in which each room is a folder of ciml/. A random sample gives the score with its interval; without
--sample, all changes are tried. The changes that survive are written to survivors.diff.

The score is a lower bound:

- The tests of a change are those that run its function in their own process, the shortest first, for --seconds.
- Tests with engines are left out.
- Some changes are equivalent, or change only words of a message. Those that add XX or change the case are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import pytest

from ciml.intervals import wilson

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "mutants"
#: What tests of a room read of the checkout, besides code and tests.
_READ = ["docs", "examples", "deploy", "setup.py", "README.md", "SECURITY.md", "CHANGELOG.md", "requirements.lock"]
#: The environment variable for the most seconds that the tests of a change take.
_LIMIT = "CIML_MUTANT_SECONDS"
#: The most memory of a process: some changes make a program that takes all there is.
_MOST_BYTES = 6 << 30
_SELECTED = "not engines and not bench and not interop and not whole"
#: mutmut's exit codes of a change.
_STATES = {0: "survived", 1: "killed", 3: "killed", 33: "untested", 36: "timeout", 37: "killed", None: "not tried"}
_STATES |= {-24: "timeout", -9: "timeout", -11: "killed", -6: "killed"}  # signals: the time is over; a crash


class Room(NamedTuple):
    """Code that is changed, as patterns of modules in ciml/, and the tests that should notice."""

    code: list[str]
    tests: list[str]


ROOMS = {
    "core": Room(
        ["*.py"],
        [
            *("tests/ciml/test_*.py", "tests/ciml/lineage", "tests/ciml/messages"),
            *("tests/cli/data/test_trust.py", "tests/cli/test_options.py", "tests/serving/test_verdict.py"),
        ],
    ),
    "trust": Room(["trust.py"], ["tests/ciml/test_trust*.py", "tests/cli/data/test_trust.py"]),
    "redaction": Room(["events/redaction.py"], ["tests/ciml/events/test_redaction.py"]),
    "events": Room(["events/*"], ["tests/ciml/events"]),
    "manifest": Room(
        ["manifest/*"],
        ["tests/ciml/manifest", "tests/runs/test_verify.py", "tests/services/stored/test_erase.py"],
    ),
    "runs": Room(["runs/*"], ["tests/runs/test_*.py"]),
    "feedback": Room(["verdicts/feedback/*"], ["tests/verdicts/feedback"]),
    "evidence": Room(["verdicts/evidence/*"], ["tests/verdicts/evidence"]),
    "evaluation": Room(
        ["training/evaluation/*"],
        ["tests/training/evaluation", "tests/training/experiments", "tests/training/test_calibrated.py"],
    ),
    "calibration": Room(
        ["training/calibration/*"], ["tests/training/calibration", "tests/training/test_calibrated.py"]
    ),
    "contract": Room(["serving/contract.py"], ["tests/serving/server/model/test_loader.py"]),
    "registry": Room(["serving/registry.py"], ["tests/serving/test_registry.py", "tests/serving/test_mirror.py"]),
    "push": Room(["serving/push.py"], ["tests/serving/test_push.py", "tests/serving/test_mirror.py"]),
    "fetch": Room(["transforms/fetch/*"], ["tests/transforms/fetch"]),
    "adapters": Room(["integrations/*/adapter.py", "integrations/zuul.py"], ["tests/integrations"]),
    "spool": Room(["recorder/spool/*"], ["tests/recorder"]),
}


#: The seconds of each test with its fixtures, as the first run measures them, in the folder of the changed code.
_SECONDS = Path("seconds.json")
_seconds: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.nodeid] += report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not session.config.option.collectonly and not _SECONDS.exists():
        _SECONDS.write_text(json.dumps(_seconds))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the files and tests that take the least time, and leave out those beyond the limit of a change."""
    if config.option.collectonly or not _SECONDS.exists():
        return
    seconds = json.loads(_SECONDS.read_text())
    by_file: Counter[str] = Counter()
    for item in items:
        by_file[str(item.path)] += seconds.get(item.nodeid, 0)
    items.sort(key=lambda item: (by_file[str(item.path)], str(item.path), seconds.get(item.nodeid, 0)))
    sums = accumulate(seconds.get(item.nodeid, 0) for item in items)
    is_check = os.environ.get("MUTANT_UNDER_TEST") == "fail"  # that some test notices
    limit = float("inf") if is_check else float(os.environ.get(_LIMIT, "inf"))
    del items[max(1, sum(total <= limit for total in sums)) :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("room", choices=ROOMS)
    parser.add_argument("--sample", type=int, help="number of changes, drawn at random; default: all")
    parser.add_argument("--minutes", type=float, default=30.0, help="most time for them; the rest is not tried")
    parser.add_argument("--seconds", type=float, default=20.0, help="most time of a change's tests, the shortest first")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    options = parser.parse_args()
    room, work = ROOMS[options.room], BUILD / options.room
    os.environ[_LIMIT] = str(options.seconds)
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
    copy_checkout(work, room)
    mutmut(work, "run", "no_such_change", minutes=options.minutes)  # makes all, and finds the tests of each
    count_fixtures(work)
    names = sorted(states(work))
    if options.sample is not None and options.sample < len(names):
        names = random.Random(options.seed).sample(names, options.sample)
    mutmut(work, "run", *names, minutes=options.minutes)
    report(work, names)


def copy_checkout(work: Path, room: Room) -> None:
    """Copy the checkout to a folder in which rooms are folders of ciml/, with mutmut's settings."""
    shutil.rmtree(work, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    rooms = {link.name for link in (ROOT / "ciml").iterdir() if link.is_symlink()}
    for name in listed.stdout.splitlines():
        source = ROOT / name
        if source.is_file() and not source.is_symlink():
            target = work / ("ciml" if name.split("/")[0] in rooms else "") / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    (work / "mutants" / "ciml").mkdir(parents=True)
    for name in rooms:  # tests read files of a room where the checkout has them
        (work / "mutants" / name).symlink_to(Path("ciml") / name)
    (work / "mutants" / "ciml" / "examples").symlink_to(Path("..") / "examples")  # where ciml.cli finds the corpus
    settings = {
        "source_paths": ["ciml"],
        "only_mutate": [
            str(path.relative_to(work))
            for pattern in room.code
            for path in sorted((work / "ciml").glob(pattern))
            if path.suffix == ".py"
        ],
        "also_copy": _READ,
        "pytest_add_cli_args": ["-p", "no:randomly", "-p", "no:xdist", "-p", "tests.mutants", "-m", _SELECTED],
        "pytest_add_cli_args_test_selection": [
            str(path.relative_to(ROOT)) for pattern in room.tests for path in sorted(ROOT.glob(pattern))
        ],
        "timeout_constant": 4.0,  # times 15: the machine may be busy
        "process_isolation": "forkserver",
        "track_dependencies": False,
    }
    with (work / "pyproject.toml").open("a") as out:
        out.write("\n[tool.mutmut]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))


def mutmut(work: Path, *words: str, minutes: float) -> None:
    """Run a command of mutmut, which keeps what it found if the time is over."""
    command = [sys.executable, "-m", "mutmut", *words, "--max-children", str(os.cpu_count() or 1)]
    environment = {**os.environ, "CIML_TESTS": "quick", "PYTHONPATH": str(work / "mutants")}
    try:
        subprocess.run(command, cwd=work, env=environment, timeout=60 * minutes, check=False)
    except subprocess.TimeoutExpired:
        print(f"the time of {minutes:g} minutes is over", file=sys.stderr)


def count_fixtures(work: Path) -> None:
    """Add what fixtures take to the times of tests, from which mutmut derives its time limit."""
    path = work / "mutants" / "mutmut-stats.json"
    stats = json.loads(path.read_text())
    seconds = json.loads((work / "mutants" / _SECONDS).read_text())
    stats["duration_by_test"] |= {name: seconds[name] for name in stats["duration_by_test"]}
    path.write_text(json.dumps(stats))


def states(work: Path) -> dict[str, str]:
    """Return the state of each change by its name."""
    found = {}
    for meta in sorted((work / "mutants").rglob("*.py.meta")):
        for name, code in json.loads(meta.read_text())["exit_code_by_key"].items():
            found[name] = _STATES.get(code, f"not tried: exit code {code}")
    return found


def survivors(work: Path, names: list[str]) -> Iterator[str]:
    """Yield each change that no test noticed, as a diff."""
    found = states(work)
    for name in names:
        if found[name] in ("survived", "untested"):
            shown = subprocess.run(
                [sys.executable, "-m", "mutmut", "show", name], cwd=work, capture_output=True, text=True, check=False
            )
            yield shown.stdout


def report(work: Path, names: list[str]) -> None:
    """Print counts and the score by module, and where the survivors are."""
    found = states(work)
    by_module: dict[str, Counter[str]] = {}
    for name in names:
        module = name.partition(".x_")[0].partition(".xǁ")[0]
        by_module.setdefault(module, Counter())[found[name]] += 1
    total = sum(by_module.values(), Counter[str]())
    for module, counts in (*sorted(by_module.items()), ("all", total)):
        tried = sum(count for state, count in counts.items() if not state.startswith("not tried"))
        killed = counts["killed"] + counts["timeout"]
        low, high = wilson(killed, tried)
        score = f"{killed / tried:.3f}, {low:.3f} to {high:.3f}" if tried else "none tried"
        print(f"{module:45} killed {killed:4} of {tried:4}: {score}  {dict(counts)}")
    diffs = list(survivors(work, names))
    path = work / "survivors.diff"
    path.write_text("\n".join(diffs))
    print(f"survivors: {len(diffs)}, of which {sum(map(changes_text, diffs))} change the text of a string; {path}")


def changes_text(diff: str) -> bool:
    """Return whether a change puts XX around a text or changes its case, and nothing else."""
    texts = []
    for sign in "-+":
        lines = [line[1:] for line in diff.splitlines() if line.startswith(sign) and not line.startswith(3 * sign)]
        texts.append("\n".join(lines).replace("XX", "").casefold())
    return texts[0] == texts[1]


if __name__ == "__main__":
    main()
