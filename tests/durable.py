"""Every durable step of an operation is recorded, and the machine dies between any two of them.

A durable step is a change that a disk, an object store or a broker sees. `Disk` records those of a folder: what is
synced, and which names are created, renamed and deleted. `Steps` records those of an operation, with the same names in
a folder and on S3: objects that a store creates, replaces or deletes, and folders that are renamed. Publications to a
broker: `tests.pipelines.kafka.recorded_topic.Topic`.

When the machine dies, the disk forgets what was not synced, and no later step happens: cleanups of the dead process too
change nothing.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ciml.storage import LocalStore, S3Store
from ciml.storage.json_files import read_object

#: Parts of names that differ from run to run.
_RANDOM = re.compile(
    r"(?<=-)[0-9a-z_]{8}(?= |$)|(?<=staging-[0-9]-)[0-9a-f]{8}"
    r"|(?<![0-9A-Za-z])(?=[0-9]*[a-f])[0-9a-f]{8,64}(?![0-9A-Za-z])"
)
_os = {name: getattr(os, name) for name in "fsync link replace rename unlink remove mkdir rmdir truncate".split()}

_rmtree = shutil.rmtree


class Died(BaseException):
    """The machine is dead. No handler of errors catches it."""


class Recorder:
    """Steps in their order, and what happens before one of them.

    Attributes:
      steps: those that happened, as text. Those of ``event`` are not among them.
      before: index of the step before which ``event`` is called, once; None: never.
      event: by default, the machine dies: neither this step nor a later one happens.
    """

    def __init__(self, before: int | None = None, event: Callable[[], object] | None = None) -> None:
        self.steps: list[str] = []
        self.before = before
        self.event = event or self._die
        self.is_dead = False
        self._in_event = False

    def step(self, text: str) -> None:
        """Record a step that happens now. Raises `Died` if the machine is dead."""
        if self._in_event:
            return
        if self.is_dead:
            raise Died(text)
        if len(self.steps) == self.before:
            self.before = None
            self._in_event = True
            try:
                self.event()
            finally:
                self._in_event = False
        self.steps.append(_RANDOM.sub("*", text))

    def _die(self) -> None:
        self.is_dead = True
        raise Died


class Disk(Recorder):
    """The disk below a folder, which forgets at a power cut what was not synced.

    A content is kept up to its size at the last sync of the file. A name that was created, renamed or deleted is kept
    after a sync of its folder; before it, the change may be lost or kept.

    Attributes:
      keeps_names: whether changes of names survive that were not synced.
    """

    def __init__(self, root: Path, before: int | None = None, *, keeps_names: bool = False) -> None:
        super().__init__(before)
        self.keeps_names = keeps_names
        self.root = root.resolve()
        self._saved = Path(tempfile.mkdtemp(dir=self.root.parent, prefix="saved-"))
        self._sizes = {_inode(file): file.stat().st_size for file in self.root.rglob("*") if file.is_file()}
        self._undo: list[tuple[Path, Callable[[], None]]] = []

    @contextlib.contextmanager
    def recording(self) -> Iterator[Disk]:
        """Record the steps of the block. If it ends with `Died`, the unsynced changes are lost, and it ends there."""
        changes: dict[str, Callable[..., None]] = {
            "fsync": self._fsync, "link": self._link, "replace": self._rename, "rename": self._rename,
            "unlink": self._unlink, "remove": self._unlink, "mkdir": self._mkdir, "rmdir": self._rmdir,
        }  # fmt: skip
        with contextlib.ExitStack() as stack:
            for name, change in changes.items():
                stack.enter_context(patch.object(os, name, change))
            with contextlib.suppress(Died):
                yield self
        if self.is_dead:
            self.lose_unsynced()

    def lose_unsynced(self) -> None:
        """Undo what no sync made durable, as a power cut does."""
        for _, undo in reversed([] if self.keeps_names else self._undo):
            undo()
        for file in self.root.rglob("*"):
            if file.is_file() and not file.is_symlink():
                _os["truncate"](file, min(file.stat().st_size, self._sizes.get(_inode(file), 0)))

    def _at(self, path: Any, folder: int | None = None) -> Path | None:
        """Return the path if it is below the root."""
        base = Path(os.readlink(f"/proc/self/fd/{folder}")) if folder is not None else Path.cwd()
        full = Path(os.path.abspath(base / os.fsdecode(path)))
        return full if full.is_relative_to(self.root) else None

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def _keep(self, path: Path) -> Path:
        """Keep a file of the disk under another name."""
        kept = self._saved / str(len(os.listdir(self._saved)))
        _os["link"](path, kept)
        return kept

    def _fsync(self, descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        path = self._at(os.readlink(f"/proc/self/fd/{number}"))
        if path is not None:
            self.step(f"sync {self._name(path)}" + "/" * path.is_dir())
            if path.is_dir():
                self._undo = [(folder, undo) for folder, undo in self._undo if folder != path]
            else:
                self._sizes[_inode(path)] = path.stat().st_size
        _os["fsync"](descriptor)

    def _link(self, source: Any, target: Any, **options: Any) -> None:
        path = self._at(target, options.get("dst_dir_fd"))
        if path is not None and not path.exists():
            self.step(f"create {self._name(path)}")
            self._undo.append((path.parent, lambda: _os["unlink"](path)))
        _os["link"](source, target, **options)

    def _rename(self, source: Any, target: Any, **options: Any) -> None:
        before, after = self._at(source, options.get("src_dir_fd")), self._at(target, options.get("dst_dir_fd"))
        if before is not None and after is not None:
            self.step(f"rename {self._name(before)} to {self._name(after)}")
            replaced = self._keep(after) if after.is_file() else None

            def undo() -> None:
                _os["rename"](after, before)
                if replaced is not None:
                    _os["link"](replaced, after)

            self._undo.append((after.parent, undo))
        _os["replace"](source, target, **options)

    def _unlink(self, target: Any, **options: Any) -> None:
        path = self._at(target, options.get("dir_fd"))
        if path is not None and path.is_file():
            self.step(f"delete {self._name(path)}")
            kept = self._keep(path)
            self._undo.append((path.parent, lambda: _link_again(kept, path)))
        _os["unlink"](target, **options)

    def _mkdir(self, target: Any, *arguments: Any, **options: Any) -> None:
        path = self._at(target, options.get("dir_fd"))
        if path is not None and path.parent.is_dir() and not path.exists():
            self.step(f"create {self._name(path)}/")
            self._undo.append((path.parent, lambda: shutil.rmtree(path)))
        _os["mkdir"](target, *arguments, **options)

    def _rmdir(self, target: Any, **options: Any) -> None:
        path = self._at(target, options.get("dir_fd"))
        if path is not None and path.is_dir() and not any(path.iterdir()):
            self.step(f"delete {self._name(path)}/")
            self._undo.append((path.parent, lambda: path.mkdir(exist_ok=True)))
        _os["rmdir"](target, **options)


def _inode(path: Path) -> int:
    return path.stat().st_ino


def _link_again(kept: Path, path: Path) -> None:
    if not path.exists():
        _os["link"](kept, path)


class Steps(Recorder):
    """Steps of an operation on the stores below a root, which is a folder or on S3.

    Example::

        with Steps(data.url).recording() as steps:
            push(data, "m", candidate, decision)
        assert steps.steps == ["create registry/m/_manifest/000000000001.json", …]
    """

    def __init__(self, root: str, before: int | None = None, event: Callable[[], object] | None = None) -> None:
        super().__init__(before, event)
        self.root = root

    @contextlib.contextmanager
    def recording(self) -> Iterator[Steps]:
        """Record the steps of the block. If it ends with `Died`, it ends there."""
        with contextlib.ExitStack() as stack:
            for kind in (LocalStore, S3Store):
                for verb in ("create", "replace", "delete"):
                    stack.enter_context(patch.object(kind, verb, self._change(verb, getattr(kind, verb))))
            stack.enter_context(patch.object(os, "rename", self._rename))
            stack.enter_context(patch.object(shutil, "rmtree", self._rmtree))
            with contextlib.suppress(Died):
                yield self

    def _change(self, verb: str, change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(store: Any, path: str, *data: bytes) -> Any:
            if store.url(path).startswith(f"{self.root}/"):
                self.step(_described(verb, store.url(path)[len(self.root) + 1 :], *data))
            return change(store, path, *data)

        return changed

    def _rename(self, source: Any, target: Any, **options: Any) -> None:
        names = [os.path.relpath(os.fsdecode(path), self.root) for path in (source, target)]
        if not names[1].startswith("../"):
            self.step(f"rename {names[0]} to {names[1]}")
        _os["rename"](source, target, **options)

    def _rmtree(self, folder: Any, *arguments: Any, **options: Any) -> None:
        name = os.path.relpath(os.fsdecode(folder), self.root)
        if not name.startswith("../"):
            self.step(f"delete {name}/")
        _rmtree(folder, *arguments, **options)


def _described(verb: str, path: str, data: bytes = b"") -> str:
    """Return the text of a step. A delta of a manifest is described by its kind or its keys, not by its number."""
    folder, _, name = path.rpartition("/_manifest/")
    if verb != "create" or not name.removesuffix(".json").isdecimal():
        return f"{verb} {path}"
    delta = read_object(data, path)
    keys = [key for key, value in delta.items() if value and key not in ("time_us", "version")]
    return f"append {folder}: " + delta.get("kind", " ".join(keys))


class Messages(Recorder):
    """A broker in memory: messages that are produced, and those that it has acknowledged, are steps.

    Args:
      draw: chooses what happens to a message; None: each is acknowledged at the next `acknowledge`, in order.
      refuses, loses, keeps: probabilities that the producer's queue is full, that the broker reports a failure, and
        that a message waits for a later `acknowledge`.

    Attributes:
      stored: name and content of the messages that were acknowledged.
      waiting: those that were produced only.
    """

    def __init__(
        self,
        draw: random.Random | None = None,
        before: int | None = None,
        event: Callable[[], object] | None = None,
        *,
        refuses: float = 0.0,
        loses: float = 0.0,
        keeps: float = 0.0,
    ) -> None:
        super().__init__(before, event)
        self._draw = draw
        self._refuses = refuses
        self._loses = loses
        self._keeps = keeps
        self.stored: list[tuple[str, Any]] = []
        self.waiting: list[tuple[str, Any, Callable[[str], None]]] = []

    def produce(self, name: str, content: Any, done: Callable[[str], None]) -> bool:
        """Queue a message; ``done`` is called with "" or the failure. Return whether the queue has room."""
        if self._happens(self._refuses):
            return False
        self.step(name)
        self.waiting.append((name, content, done))
        return True

    def acknowledge(self) -> None:
        """Acknowledge messages that wait, or report their loss."""
        waiting = self.waiting
        self.waiting = []
        if self._draw is not None:
            self._draw.shuffle(waiting)
        for name, content, done in waiting:
            if self._happens(self._keeps):
                self.waiting.append((name, content, done))
            elif self._happens(self._loses):
                done("the broker does not answer")
            else:
                self.step(f"acknowledge {name}")
                self.stored.append((name, content))
                done("")

    def _happens(self, probability: float) -> bool:
        return self._draw is not None and self._draw.random() < probability


def each_step(count: int, *, few: bool) -> range:
    """Return the indices of steps before which a test does something: all of them, or every fifth where each is slow.

    The first index past the last step is among them: the operation is done, and nothing happens.
    """
    return range(0, count + 1, 5 if few else 1)
