"""The trainer of the demo: one process beside it that has TensorFlow loaded, and is told when to refresh which model.

A user runs ``ciml refresh``. The demo wants each refresh at its time and all in one process: TensorFlow takes seconds
to import, which here go by while the first events come in.
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
from ciml.storage.open import Store
from engines import processes

_ENTRY = "cli.demo.trainer"


class Trainer:
    """The process, as seen by the demo. Tasks are done one after the other, in the order of asking."""

    def __init__(self, data: Store, log: Path, timeout_s: float = 180.0) -> None:
        self._log, self._timeout_s = log, timeout_s
        self._lock = threading.Lock()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                processes.python_command(_ENTRY, data.root),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                env={**os.environ, **processes.python_environment(), "TF_CPP_MIN_LOG_LEVEL": "2"},
                text=True,
                start_new_session=True,
            )

    def refresh(self, model: str, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """Refreshes a model from the data set of the same name; returns what was told of it.

        Raises:
          EngineError: when the refresh failed, with its error; or the process ended, or takes too long.
        """
        return self._ask({"task": "refresh", "model": model}, say)

    def probabilities(self, model: str, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
        """What the trainer's own model says of its held-out runs; see `cli.demo.trainer_tasks`."""
        return self._ask({"task": "probabilities", "model": model}, say)

    def _ask(self, task: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
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
                    told = json.loads(line)
                    if "say" in told:
                        say(told["say"])
                    elif "error" in told:
                        raise EngineError(f"{task['task']} {task['model']}: {told['error']} (log: {self._log})")
                    else:
                        done: dict[str, Any] = told["done"]
                        return done
            except (OSError, ValueError) as error:
                raise EngineError(f"the trainer broke off: {error} (log: {self._log})") from error
            finally:
                watchdog.cancel()
            raise EngineError(f"the trainer ended: {processes.last_lines(self._log)} (log: {self._log})")

    def close(self) -> None:
        """Ends the process."""
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
            self._process.kill()  # nobody waits any more for what it does
        self.close()


def main(data_root: str) -> None:
    """Does one task after the other, as they are read from standard input, until it is closed."""
    # What libraries print must not come between the lines that the demo reads.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def tell(**told: Any) -> None:
        answers.write(json.dumps(told) + "\n")

    import traceback

    from cli.demo import trainer_tasks as tasks

    tasks.warm_up()
    for line in sys.stdin:
        task = json.loads(line)
        try:
            tell(done=tasks.do(data_root, task, lambda word: tell(say=word)))
        except Exception as error:  # noqa: BLE001 (told to the demo, which ends with it)
            traceback.print_exc()
            tell(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
