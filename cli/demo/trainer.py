"""The trainer of the demo: a child process that has TensorFlow loaded and refreshes models on request.

A user runs ``ciml refresh``. The demo runs all refreshes in one process: importing TensorFlow takes seconds, which
pass here while the first events arrive.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ciml.errors import EngineError
from engines import processes

_ENTRY = "cli.demo.trainer"


class Trainer:
    """The client of the process. Tasks run one after the other, in the order of the requests."""

    def __init__(self, data_path: str, log: Path, timeout_s: float = 180.0) -> None:
        self._log, self._timeout_s = log, timeout_s
        self._lock = threading.Lock()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                processes.python_command(_ENTRY, data_path),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                env={**os.environ, **processes.python_environment(), "TF_CPP_MIN_LOG_LEVEL": "2"},
                text=True,
                start_new_session=True,
            )

    def refresh(self, model: str, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """Refresh a model from the data set of the same name; return the result.

        Raises:
          EngineError: the refresh failed, or the process ended or timed out.
        """
        return self._ask({"task": "refresh", "model": model}, progress)

    def probabilities(self, model: str, progress: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """Return the trainer's own predictions of held-out runs; see `cli.demo.trainer_tasks`."""
        return self._ask({"task": "probabilities", "model": model}, progress)

    def _ask(self, task: dict[str, Any], progress: Callable[[str], None]) -> dict[str, Any]:
        with self._lock:
            process = self._process
            if process.stdin is None or process.stdout is None or process.poll() is not None:
                raise EngineError(f"the trainer ended: {processes.last_lines(self._log)} (log: {self._log})")
            watchdog = threading.Timer(self._timeout_s, process.kill)
            watchdog.start()
            try:
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
                for line in process.stdout:
                    answer = json.loads(line)
                    if "progress" in answer:
                        progress(answer["progress"])
                    elif "error" in answer:
                        raise EngineError(f"{task['task']} {task['model']}: {answer['error']} (log: {self._log})")
                    else:
                        done: dict[str, Any] = answer["done"]
                        return done
            except (OSError, ValueError) as error:
                raise EngineError(f"the trainer failed: {error} (log: {self._log})") from error
            finally:
                watchdog.cancel()
            raise EngineError(f"the trainer ended: {processes.last_lines(self._log)} (log: {self._log})")

    def close(self) -> None:
        """Stop the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is not None:
            self._process.kill()  # its result is no longer needed
        self.close()


def main(data_root: str) -> None:
    """Run the tasks that are read from standard input, until it is closed."""
    # Output of libraries must not mix with the lines that the demo reads.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")

    import traceback

    from cli.demo import trainer_tasks as tasks

    tasks.warm_up()
    for line in sys.stdin:
        task = json.loads(line)
        try:
            answer(done=tasks.do(data_root, task, lambda word: answer(progress=word)))
        except Exception as error:  # noqa: BLE001 (reported to the demo, which ends)
            traceback.print_exc()
            answer(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
