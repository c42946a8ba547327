"""What steps of deployments share: what the commands of ciml print from logs to a model, and a program that records."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
from click.testing import CliRunner

from ciml.cli.main import cli
from tests.corpus import CORPUS, builds

#: With the program beside the interpreter of the tests.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
#: A value that a shell would run, and one that a command would read as an option.
HOSTILE = ("x; touch planted $(touch planted) `touch planted` # '\"", "--help")
#: The data set, and the estimators that are compared on it.
DATASET: Mapping[str, str] = {"dataset": "cpu", "features_regex": "^(usr|1m)$", "sample_interval": "1s"}
ESTIMATORS = ("random_forest", "svm")
#: The served model: a network that learns in seconds.
SERVED = "epochs = 40\n"
MODEL = "status"


@dataclass(frozen=True)
class Learned:
    """Figures of a chain from logs to a model.

    Attributes:
      runs: that were loaded.
      trained: (accuracy, base rate) of each stored experiment by its name.
      best: name of the most accurate one.
      outcome: of the refresh.
      version: that was pushed; "" without one.
    """

    runs: int
    trained: Mapping[str, tuple[float, float]]
    best: str
    outcome: str
    version: str

    @classmethod
    def of(cls, answers: Mapping[str, str]) -> Learned:
        """Return the figures in what the commands printed."""
        trained = {}
        for estimator in ESTIMATORS:
            result = json.loads(answers[f"experiment train {estimator}"])
            figures = (result["test"][name]["value"] for name in ("accuracy", "base_rate"))
            trained[result["experiment"]["name"]] = tuple(figures)
        refreshed = json.loads(answers["refresh"])
        return cls(
            json.loads(answers["load"])["totals"]["run"],
            trained,
            json.loads(answers["experiment compare"])[0]["experiment"],
            refreshed["outcome"],
            str(refreshed["version"] or ""),
        )


def write_listing(folder: Path) -> Path:
    """Write a table of 120 runs of the corpus, whose logs are below `CORPUS`, and return it."""
    listing = folder / "builds.jsonl"
    listing.write_text("".join(json.dumps(line) + "\n" for line in builds(120)))
    return listing


def ciml(*words: str, data: Path) -> str:
    """Run a command of ciml in this process; return what it prints."""
    done = CliRunner().invoke(cli, [*words, "--data-path", str(data)], standalone_mode=False)
    assert done.exception is None, done.exception
    assert (done.return_value or 0) in (0, 5), done.output
    return done.stdout


def learn_by_commands(folder: Path) -> None:
    """Load, build, train, compare and refresh in ``data``, as a person does; store what is printed in ``answers``."""
    served = folder / "served.toml"
    served.write_text(SERVED)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in DATASET.items()]
    lines: dict[str, list[str]] = {
        "load": ["load", str(CORPUS), "--results", str(write_listing(folder)), "--json"],
        "dataset build": ["dataset", "build", *options],
    }
    for each in ESTIMATORS:
        lines[f"experiment train {each}"] = ["experiment", "train", "--dataset=cpu", f"--estimator={each}", "--json"]
    lines["experiment compare"] = ["experiment", "compare", "--dataset=cpu", "--json"]
    lines["refresh"] = ["refresh", "--dataset=cpu", f"--model={MODEL}", f"--experiment={served}", "--json"]
    answers = {name: ciml(*words, data=folder / "data") for name, words in lines.items()}
    (folder / "answers.json").write_text(json.dumps(answers))


def recorder(folder: Path, answers: Path | None = None) -> str:
    """Make a ``ciml`` that records its words and its file of ``--experiment``; return a PATH to it.

    It prints what the real one did, or fails.
    """
    program = folder / "bin" / "ciml"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, os, re, shutil, sys\n"
        f"open({str(folder / 'words')!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')\n"
        f"answers = json.load(open({str(answers)!r})) if {answers is not None} else {{}}\n"
        "name = ' '.join(word for word in sys.argv[1:3] if word[0] != '-')\n"
        "if name == 'experiment show' and '--json' in sys.argv: answers[name] = '[]'\n"
        "if name == 'experiment train': name += re.sub('.*--estimator=(\\\\w+).*', r' \\1', ' '.join(sys.argv[3:]))\n"
        "files = [word[13:] for word in sys.argv if word.startswith('--experiment=')]\n"
        f"[shutil.copy(file, {str(folder / 'experiment.toml')!r}) for file in files if os.path.isfile(file)]\n"
        "sys.stdout.write(answers.get(name, ''))\n"
        "sys.exit(0 if name in answers else 2)\n"
    )
    program.chmod(0o700)
    return f"{program.parent}{os.pathsep}{PATH}"


def recorded(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "words").read_text().splitlines()]


def check_values(folder: Path, text: str) -> None:
    """Assert that a hostile value was the value of options or behind ``--`` wherever it was, and ran nowhere."""
    assert not list(folder.rglob("planted"))
    words = [word for line in recorded(folder) for word in (line[: line.index("--")] if "--" in line else line)]
    assert any(text in word for line in recorded(folder) for word in line)
    assert [word for word in words if text in word and not word.endswith(f"={text}")] == []


def parsed(words: list[str]) -> click.Context:
    """Return the context of a command line, whose options exist."""
    command: click.Command = cli
    context = click.Context(cli)
    while isinstance(command, click.Group) and words and (found := command.get_command(context, words[0])):
        command, words = found, words[1:]
    assert not isinstance(command, click.Group), words
    context = click.Context(command)
    command.make_parser(context).parse_args(list(words))
    return context


def served_versions(data: Path) -> dict[str, int]:
    """Return the labels of the served model, with their versions."""
    labels: dict[str, int] = json.loads(ciml("models", "list", "--json", data=data))[MODEL]["labels"]
    return labels
