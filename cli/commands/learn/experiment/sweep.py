"""``ciml experiment sweep``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ciml.cli.batch_options import processors
from ciml.cli.options import data_path_option, learn_from_options, s3_options, s3_place, target_data_path_option
from ciml.cli.progress import progress_bar
from ciml.cli.tables import print_table

if TYPE_CHECKING:
    from ciml.pipelines.sweep import Swept

#: Rows of a printed table; the page and the CSV have all.
_MOST_ROWS = 20


@click.command("sweep")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--jobs",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Number of parallel trials, at most the lag in FILE, each a process of one thread.  [default: one a"
    " processor]",
)
@click.option(
    "--best",
    type=click.IntRange(0),
    default=1,
    metavar="N",
    help="Number of best trials of each question to print commands for.",
)
@learn_from_options
@click.option(
    "--output",
    metavar="FOLDER",
    callback=s3_place,
    help="Folder or s3:// prefix of index.html, the plots and trials.csv.  [default: NAME-sweep]",
)
@click.option("--json", "as_json", is_flag=True, help="JSON output of all trials.")
@data_path_option()
@target_data_path_option
@s3_options
def sweep(
    file: str,
    jobs: int | None,
    best: int,
    trust_policy: str | None,
    exclude: str | None,
    output: str | None,
    as_json: bool,
    data_path: str,
    target_data_path: str | None,
) -> None:
    """Sweep over data sets and hyper-parameters.

    It builds a data set and trains a model for each combination of FILE, and compares them. FILE is TOML with common
    values and lists or ranges of varied ones; docs/sweeps.md lists the keys. Trials are scored on folds or on dev; the
    test runs are never read. An interrupted sweep continues with the remaining trials, to the same result.

    \b
    Example:
      ciml experiment sweep examples/sweep.toml --data-path DATA
      ciml experiment sweep talk.toml --jobs 8 --data-path s3://cimlrawdata --target-data-path s3://cimldatasets
    """
    from ciml.data_root import DataRoot
    from ciml.digest import canonical_json
    from ciml.pipelines.sweep import SweepContext, run_sweep
    from ciml.reports.page import save
    from ciml.reports.sweeps.page import sweep_page
    from ciml.reports.sweeps.views import csv_of
    from ciml.storage import open_store
    from ciml.training.exclusions import add, exclusions_of, read_lines
    from ciml.training.sweeps.definition import Sweep
    from ciml.trust import TrustPolicy

    what = Sweep.load(file)
    source = DataRoot.open(data_path)
    target = source if target_data_path is None else DataRoot.open(target_data_path)
    add(target.exclusions, read_lines(exclude))
    context = SweepContext(source, target, what, TrustPolicy.load(trust_policy), exclusions_of(target, source))
    most = min(jobs or processors(), what.lag)
    with progress_bar(f"sweep {what.name}") as bar:
        swept = run_sweep(context, jobs=most, progress=lambda outcome, done, total: bar(done, total))
    result = _json(swept)
    page = save(open_store(output or f"{what.name}-sweep"), sweep_page(swept), {"trials.csv": csv_of(swept)})
    if as_json:
        click.echo(canonical_json(result))
        return
    _show(swept)
    _print_best(swept, best, target_data_path or data_path)
    click.echo(page)


def _json(swept: Swept) -> dict[str, Any]:
    from ciml.reports.sweeps.views import complete, question_name, questions

    return {
        "sweep": swept.sweep.to_json(),
        "questions": [
            {
                "question": question,
                "name": question_name(swept.sweep, question),
                "parameters": dict(swept.sweep.questions[question]),
                "baselines": dict(swept.baselines[question]),
                "best": next((one.number for one in complete(swept, question)), None),
            }
            for question in questions(swept.sweep)
        ],
        "trials": [outcome.to_json() for outcome in swept.outcomes],
        "trained": swept.trained,
    }


def _show(swept: Swept) -> None:
    from ciml.reports.drawing import shown
    from ciml.reports.sweeps.page import trials_table
    from ciml.reports.sweeps.views import METRICS, question_name, questions, scored_on

    for question in questions(swept.sweep):
        made = trials_table(swept, question)
        name = shown(question_name(swept.sweep, question), 60)
        title = f"{name}: {METRICS[swept.sweep.metric]} on {scored_on(swept.sweep)}"
        numbers = [*made.headings[:1], *made.headings[made.words :]]
        print_table(made.headings, made.rows[:_MOST_ROWS], title=title, right=numbers)
        if len(made.rows) > _MOST_ROWS:
            click.echo(f"{len(made.rows) - _MOST_ROWS} more are on the page and in trials.csv")


def _print_best(swept: Swept, best: int, data_path: str) -> None:
    from ciml.reports.sweeps.views import complete, define_lines, question_name, questions

    states = [outcome.state for outcome in swept.outcomes]
    counts = ", ".join(
        f"{states.count(state)} {state}" for state in ("complete", "pruned", "failed") if state in states
    )
    click.echo(f"{len(states)} trials: {counts}; {swept.trained} trained now")
    chosen = [(question, one) for question in questions(swept.sweep) for one in complete(swept, question)[:best]]
    if chosen:
        click.echo("the test runs are unread; test your choice once, by:")
    for question, one in chosen:
        click.echo(f"# trial {one.number}, {question_name(swept.sweep, question)}")
        for line in define_lines(swept, one, data_path):
            click.echo(line)
