"""Train a network in two processes by tf.distribute, and in one with the same batches: `python -m studies.two_workers`.

Writes the table in docs/training.md. The two workers of a `MultiWorkerMirroredStrategy` are on this machine, each with
one core; they take halves of the same batches. The rows are repeats of the real examples of the tests. The step is
ciml's: a dense network, cross-entropy with an L2 penalty, Adam; the loop over batches is one compiled call.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROWS = (10_000, 100_000, 1_000_000)
LEARNING_RATE = 1e-3
L2 = 0.002


class Case(NamedTuple):
    """A network and its global batch."""

    layers: tuple[int, ...]
    batch: int


CASES = (Case((128, 64), 128), Case((128, 64), 2048), Case((1024, 1024), 2048))
#: Rows of a case at most: a larger number follows from the seconds of a batch.
MOST_BATCHES = 2_000


def examples(folder: Path) -> Path:
    """Write the normalised real examples of the tests as a NumPy file; return it."""
    from ciml.data_root import DataRoot
    from ciml.training.data.examples import read_snapshot_examples
    from ciml.training.data.snapshot import make_snapshot
    from ciml.trust import TrustPolicy
    from tests.training.conftest import make_providers

    make_providers(folder / "data")
    dataset = DataRoot.open(folder / "data").dataset("providers")
    _, rows = read_snapshot_examples(dataset.store, make_snapshot(dataset, TrustPolicy.load()), "train")
    flat = rows.inputs.reshape(len(rows.inputs), -1)[:, :512]
    extent = flat.max(axis=0) - flat.min(axis=0)
    normal = np.where(extent > 0, (flat - flat.mean(axis=0)) / np.where(extent > 0, extent, 1), 0).astype("f4")
    np.savez(folder / "examples.npz", inputs=normal, labels=rows.labels.astype("i8"))
    return folder / "examples.npz"


def work(file: Path, case: Case, rows: int, threads: int) -> dict[str, Any]:
    """Train an epoch after a warm-up; alone, or as the worker that ``TF_CONFIG`` names."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    is_worker = "TF_CONFIG" in os.environ
    strategy = tf.distribute.MultiWorkerMirroredStrategy() if is_worker else tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"] if is_worker else 0
    stored = np.load(file)
    inputs = tf.constant(stored["inputs"])
    labels = tf.constant(stored["labels"])
    random = np.random.default_rng(0)
    sizes = [inputs.shape[1], *case.layers, int(stored["labels"].max()) + 1]
    with strategy.scope():
        weights = [
            tf.Variable(values.astype("f4"))
            for before, after in itertools.pairwise(sizes)
            for values in (random.normal(0, (2 / before) ** 0.5, (before, after)), np.zeros(after))
        ]
        moments = [tf.Variable(tf.zeros_like(weight)) for weight in weights for _ in range(2)]
        count = tf.Variable(0.0)

    def step(chosen: Any) -> None:
        rows_of_worker = tf.split(chosen, replicas)[index]
        with tf.GradientTape() as tape:
            hidden = tf.gather(inputs, rows_of_worker)
            for layer in range(0, len(weights), 2):
                hidden = hidden @ weights[layer] + weights[layer + 1]
                hidden = tf.nn.relu(hidden) if layer + 2 < len(weights) else hidden
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.gather(labels, rows_of_worker), hidden)
            penalty = L2 * tf.add_n([tf.reduce_sum(weight**2) for weight in weights[::2]])
            loss = tf.reduce_sum(losses) / case.batch + penalty / replicas
        gradients = tape.gradient(loss, weights)
        if is_worker:
            gradients = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        count.assign_add(1.0)
        for place, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            first = moments[2 * place]
            second = moments[2 * place + 1]
            first.assign(0.9 * first + 0.1 * gradient)
            second.assign(0.999 * second + 0.001 * gradient**2)
            scaled = (first / (1 - 0.9**count)) / (tf.sqrt(second / (1 - 0.999**count)) + 1e-7)
            weight.assign_sub(LEARNING_RATE * scaled)

    @tf.function
    def epoch(order: Any) -> None:
        for batch in order:
            strategy.run(step, (batch,))

    def batches(number: int) -> Any:
        return tf.constant(random.integers(len(stored["labels"]), size=(number, case.batch)))

    epoch(batches(4))
    number = max(1, min(rows // case.batch, MOST_BATCHES))
    order = batches(number)
    started = time.perf_counter()
    epoch(order)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "batches": number, "weights": [weight.numpy().tolist() for weight in weights]}


def run(folder: Path, file: Path, case: Case, rows: int, workers: int, threads: int) -> dict[str, Any]:
    """Run one process, or two workers with a core each; return the result of the first."""
    ports = [_free_port() for _ in range(workers)]
    processes = []
    for index in range(workers):
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
        if workers > 1:
            cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
            environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        words = [sys.executable, "-m", "studies.two_workers", "--work", str(file), "--rows", str(rows)]
        words += ["--threads", str(threads), "--batch", str(case.batch), "--layers", *map(str, case.layers)]
        words += ["--out", str(folder / f"{index}.json")]
        cores = ["taskset", "-c", str(index)] if threads == 1 else []
        processes.append(subprocess.Popen([*cores, *words], env=environment, stderr=subprocess.DEVNULL))
    for process in processes:
        if process.wait(900) != 0:
            raise SystemExit(f"a worker ended with {process.returncode}")
    result: dict[str, Any] = json.loads((folder / "0.json").read_text())
    return result


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    """Print a row for each case and size; or be a worker."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--layers", type=int, nargs="*", default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.work:
        case = Case(tuple(options.layers), options.batch)
        options.out.write_text(json.dumps(work(options.work, case, options.rows[0], options.threads)))
        return
    print("| layers | global batch | rows | one core, s | two cores, s | two workers of a core, s | gain |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = examples(folder)
        for case in CASES:
            for rows in options.rows or ROWS:
                one, both, two = (run(folder, file, case, rows, *setting) for setting in ((1, 1), (1, 2), (2, 1)))
                difference = max(
                    float(np.abs(np.subtract(a, b)).max()) for a, b in zip(one["weights"], two["weights"], strict=True)
                )
                scale = max(1, rows // case.batch) / one["batches"]
                seconds = [result["seconds"] * scale for result in (one, both, two)]
                mark = " (extrapolated)" if scale > 1 else ""
                cells = (*(f"{value:.1f}" for value in seconds), f"{seconds[0] / seconds[2]:.2f}")
                print(f"| {case.layers} | {case.batch} | {rows:,}{mark} | {' | '.join(cells)} |", flush=True)
                print(
                    f"largest difference of a weight: {difference:.2g}; load {os.getloadavg()[0]:.1f}", file=sys.stderr
                )


if __name__ == "__main__":
    main()
