"""Write the results of experiments as pages into a folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from urllib.parse import quote

from ciml.errors import CimlError
from ciml.reports.experiments.comparison_page import comparison_page
from ciml.reports.experiments.page import result_page
from ciml.reports.page import PAGE, save
from ciml.storage.open import Store, open_store
from ciml.training.experiments.results import stored_trials
from ciml.training.experiments.trials import experiment_names, load_experiment


def report_experiments(
    store: Store,
    experiments: Sequence[str],
    datasets: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Draw the latest result of each experiment on each data set, and compare them if there are several.

    Args:
      store: the folder of all experiments.
      experiments: names of experiments; all by default.
      datasets: names of data sets; all by default.
      folder: a folder or an ``s3://`` prefix. Files of the same names are overwritten. ``index.html`` shows a single
        result or compares several; then ``DATASET/EXPERIMENT/index.html`` is the page of each.
      progress: called with the number of finished pages and the total.

    Returns:
      Address of ``index.html``.

    Raises:
      CimlError: when there is no such experiment, or no result.
      IntegrityError: when a stored file was altered.
    """
    names = list(dict.fromkeys(experiments)) or experiment_names(store)
    for name in experiments:
        load_experiment(store, name)
    trials = [(trial, trial.predictions()) for trial in stored_trials(store, names, datasets)]
    if not trials:
        raise CimlError(_nothing(store, names, datasets))
    if missing := set(datasets) - {trial.dataset for trial, _ in trials}:
        raise CimlError(_nothing(store, names, sorted(missing)))
    root = open_store(folder)
    if len(trials) == 1:
        return save(root, result_page(*trials[0]))
    links = {}
    for done, (trial, found) in enumerate(trials):
        progress(done, len(trials) + 1)
        subfolder = f"{trial.dataset}/{trial.experiment}"
        save(root.child(subfolder), result_page(trial, found))
        links[trial.experiment, trial.dataset] = quote(f"{subfolder}/{PAGE}")
    return save(root, comparison_page(trials, links))


def _nothing(store: Store, names: Sequence[str], datasets: Sequence[str]) -> str:
    of = f" of {names[0]}" if len(names) == 1 else f" of {len(names)} experiments"
    on = f" on {', '.join(datasets)}" if datasets else ""
    dataset = datasets[0] if datasets else "NAME"
    which = names[0] if len(names) == 1 else "EXPERIMENT"
    remedy = f"ciml experiment train --experiment {which} --dataset {dataset}"
    return f"no result{of}{on} in {store.url()}: {remedy}"
