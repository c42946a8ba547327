"""The pipeline ciml-learn for Kubeflow Pipelines 2: from logs to a pushed model. docs/kubeflow.md has examples.

Each component starts ciml with a list of arguments, without a shell, so that no parameter is ever run. Kubeflow
Pipelines stores the source of a component's function and of `run`, and nothing else of this file: each imports what it
needs.

Run as a program, it compiles the pipeline to ``learn.yaml`` next to it:

    python deploy/kubeflow/pipeline.py
"""

import functools
from pathlib import Path
from typing import NamedTuple

from kfp import compiler, dsl, kubernetes

IMAGE = "registry.example.org/ciml/worker:0.3.0"
#: Where none are named: estimators with their defaults, of seconds each.
EXPERIMENTS = ["random_forest", "svm"]
#: Of the secret; those that are missing are left out.
SECRET_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL_S3")
COMPILED = Path(__file__).parent / "learn.yaml"


def run(*words: str, accepted: tuple = (0,)) -> str:
    """Run ciml; return what it prints. Its errors are in the step's log.

    Raises:
      SystemExit: with an exit code that is not accepted.
    """
    import subprocess

    done = subprocess.run(["ciml", *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in accepted:
        raise SystemExit(done.returncode)
    return done.stdout


# The image has the locked kfp: a step that installs it would need PyPI, and get what is newest there.
component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False, additional_funcs=[run])


@component
def load(logs: str, results: str, source: str, data_path: str) -> int:
    """Load logs and a table of results into the raw store; without logs do nothing, for stores that an ingest fills.

    Returns:
      the number of runs that were added.
    """
    import json

    if not logs:
        return 0
    said = run("load", f"--results={results}", f"--source={source}", f"--data-path={data_path}", "--json", "--", logs)
    return json.loads(said)["totals"]["run"]


@component
def build_dataset(
    dataset: str,
    build_name: str,
    features_regex: str,
    class_label: str,
    sample_interval: str,
    data_path: str,
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Build a data set from the raw store, or add the new runs to it.

    Returns:
      the name of the data set.
    """
    import json

    said = run(
        "dataset",
        "build",
        f"--dataset={dataset}",
        f"--build-name={build_name}",
        f"--features-regex={features_regex}",
        f"--class-label={class_label}",
        f"--sample-interval={sample_interval}",
        f"--data-path={data_path}",
    )
    print(said)
    described = json.loads(run("dataset", "show", f"--data-path={data_path}", "--json", "--", dataset))
    metrics.log_metric("examples", sum(span["examples"] for span in described["spans"]))
    return dataset


@component
def train(
    dataset: str,
    experiment: str,
    parameters: list,
    allow_module: str,
    data_path: str,
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
) -> NamedTuple("Outputs", [("trained", str), ("accuracy", float), ("base_rate", float)]):
    """Train an experiment on a data set, and test it on held-out runs. It is a defined experiment, or an estimator.

    Returns:
      the name of the stored experiment, its accuracy, and the accuracy of always answering the most frequent class.
    """
    import json

    defined = json.loads(run("experiment", "show", f"--data-path={data_path}", "--json"))
    words = ["experiment", "train", f"--dataset={dataset}", f"--data-path={data_path}", "--json"]
    if experiment in defined:
        words.append(f"--experiment={experiment}")
    else:
        words += [f"--estimator={experiment}", *(f"--parameter={parameter}" for parameter in parameters)]
    if allow_module:
        words.append(f"--allow-module={allow_module}")
    result = json.loads(run(*words))
    test = result["test"]
    accuracy, base_rate = (float(test[figure]["value"]) for figure in ("accuracy", "base_rate"))
    metrics.log_metric("accuracy", accuracy)
    metrics.log_metric("base_rate", base_rate)
    confusion.log_confusion_matrix(test["confusion"]["classes"], test["confusion"]["rows_are_labels"])
    print(f"{result['experiment']['name']}: accuracy {accuracy}, base rate {base_rate}")
    return result["experiment"]["name"], accuracy, base_rate


@component
def evaluate(dataset: str, experiments: list, data_path: str, comparison: dsl.Output[dsl.Markdown]) -> NamedTuple(
    "Outputs", [("best", str), ("accuracy", float)]
):
    """Compare experiments on the same held-out runs.

    Returns:
      the name of the most accurate experiment, with ties broken by F1, and its accuracy.
    """
    import json

    names = sorted(set(experiments))
    rows = json.loads(
        run("experiment", "compare", f"--dataset={dataset}", f"--data-path={data_path}", "--json", "--", *names)
    )
    rows.sort(key=lambda row: (row["accuracy"], row["f1"] or 0.0), reverse=True)
    lines = ["| experiment | accuracy | 95 % interval | base rate |", "|---|---|---|---|"]
    lines += [
        f"| {row['experiment']} | {row['accuracy']:.3f} | {row['accuracy_low']:.3f} to {row['accuracy_high']:.3f} "
        f"| {row['base_rate']:.3f} |"
        for row in rows
    ]
    with open(comparison.path, "w", encoding="utf-8") as file:
        file.write(f"{rows[0]['runs']} test runs of {dataset}\n\n" + "\n".join(lines) + "\n")
    print("\n".join(lines))
    return rows[0]["experiment"], float(rows[0]["accuracy"])


@component
def push(
    dataset: str,
    model: str,
    experiment: str,
    accept_baseline: str,
    allow_module: str,
    data_path: str,
    metrics: dsl.Output[dsl.Metrics],
) -> NamedTuple("Outputs", [("outcome", str), ("version", str)]):
    """Train the served model, and push it if the gate blesses it. A rejected candidate is not a failure.

    Returns:
      pushed, refused or nothing_new; and the pushed version, empty without one.
    """
    import json
    import tempfile

    words = [
        "refresh",
        f"--dataset={dataset}",
        f"--model={model}",
        f"--data-path={data_path}",
        "--wait=10min",
        "--json",
    ]
    if accept_baseline:
        words.append(f"--accept-baseline={accept_baseline}")
    if allow_module:
        words.append(f"--allow-module={allow_module}")
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".toml") as file:
        if experiment:
            file.write(experiment)
            file.flush()
            words.append(f"--experiment={file.name}")
        result = json.loads(run(*words, accepted=(0, 5)))  # 5: the gate rejected it
    print("\n".join([result["outcome"], *result["reasons"]]))
    for figure in ("accuracy", "base_rate"):
        if figure in (result["metrics"].get("evaluation") or {}):
            metrics.log_metric(figure, float(result["metrics"]["evaluation"][figure]["value"]))
    return result["outcome"], str(result["version"] or "")


class Learned(NamedTuple):
    """Outputs of the pipeline."""

    best: str
    accuracy: float
    outcome: str
    version: str


@dsl.pipeline(
    name="ciml-learn",
    description="Load logs, build a data set, train and compare experiments, and push a model that the gate blesses.",
)
def learn(
    dataset: str,
    model: str,
    logs: str = "",
    results: str = "",
    source: str = "backfill",
    build_name: str = "all",
    features_regex: str = ".",
    class_label: str = "status",
    sample_interval: str = "10s",
    experiments: list = EXPERIMENTS,
    parameters: list = [],  # noqa: B006, kfp copies it
    served_experiment: str = "",
    accept_baseline: str = "",
    allow_module: str = "",
    data_path: str = "s3://ciml-data",
    secret: str = "ciml-s3",  # noqa: S107, its name
    image: str = IMAGE,
) -> Learned:
    """Load logs, build a data set, train and compare experiments, and push a model that the gate blesses.

    Args:
        dataset: Name of the data set.
        model: Name of the served model.
        logs: Folder or s3:// prefix of the logs; empty if an ingest fills the raw store.
        results: Table of the runs: CSV, Parquet or JSON lines.
        source: Name of the table in run ids and trust policies.
        build_name: Job, glob of jobs, or all.
        features_regex: Pattern of the columns.
        class_label: Label: status, provider or any metadata.
        sample_interval: Length of a window.
        experiments: Experiments or estimators to compare.
        parameters: Parameters of the estimators among them, each NAME=VALUE; VALUE is JSON or a text.
        served_experiment: Definition (TOML) of the served model; empty for that of the last candidate, or a forest.
        accept_baseline: A number of the run that may predict better than the model: duration or memory.
        allow_module: Module, or package, of own estimators that definitions may import.
        data_path: Data root.
        secret: Secret with the credentials of S3; it may be missing.
        image: Worker image.
    """

    def step(task: dsl.PipelineTask, cpu: str, memory: str, limit: str) -> dsl.PipelineTask:
        task.set_container_image(image).set_caching_options(False)  # ciml knows what is done; a cache knows parameters
        task.set_cpu_request(cpu).set_memory_request(memory).set_memory_limit(limit)
        kubernetes.set_security_context(task, run_as_non_root=True)
        return kubernetes.use_secret_as_env(task, secret, {key: key for key in SECRET_KEYS}, optional=True)

    loaded = step(load(logs=logs, results=results, source=source, data_path=data_path), "500m", "1Gi", "2Gi")
    built = step(
        build_dataset(
            dataset=dataset,
            build_name=build_name,
            features_regex=features_regex,
            class_label=class_label,
            sample_interval=sample_interval,
            data_path=data_path,
        ).after(loaded),
        "1",
        "1Gi",
        "2Gi",
    )
    with dsl.ParallelFor(items=experiments, name="side by side") as name:
        # By name: the SDK's local runner replaces outputs of other steps by the item of the loop.
        trained = step(
            train(
                dataset=dataset,
                experiment=name,
                parameters=parameters,
                allow_module=allow_module,
                data_path=data_path,
            ).after(built),
            "1",
            "2Gi",
            "4Gi",
        )
    compared = step(
        evaluate(dataset=dataset, experiments=dsl.Collected(trained.outputs["trained"]), data_path=data_path),
        "500m",
        "1Gi",
        "2Gi",
    )
    pushed = step(
        push(
            dataset=dataset,
            model=model,
            experiment=served_experiment,
            accept_baseline=accept_baseline,
            allow_module=allow_module,
            data_path=data_path,
        ).after(compared),
        "1",
        "2Gi",
        "4Gi",
    )
    return Learned(
        compared.outputs["best"], compared.outputs["accuracy"], pushed.outputs["outcome"], pushed.outputs["version"]
    )


def compile_to(path: Path) -> None:
    """Write the compiled pipeline."""
    compiler.Compiler().compile(learn, str(path))


if __name__ == "__main__":
    compile_to(COMPILED)
    print(f"compiled to {COMPILED}")
