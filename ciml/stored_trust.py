"""The trust policy of a data root: stored in it, with author, reason and time, and reread by all processes.

A data root stores its policies in a manifest log; the last one is in force. Nothing is edited in place, so the policy
of any time can be read, and a decision's digest names it. `policy_of` chooses between this policy and a file that is
given for a trial.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ciml.data_root import DataRoot
from ciml.errors import CimlError, IntegrityError
from ciml.events.fields import check_line
from ciml.manifest.log import Delta, ManifestLog, catch_up, commit
from ciml.storage import Store, open_store
from ciml.trust import POLICY_VARIABLE, PolicySource, TrustPolicy

_log = logging.getLogger(__name__)
#: How long a process judges by a policy before it looks for a newer one, seconds.
REREAD_S = 2.0


@dataclass(frozen=True)
class StoredPolicy:
    """A policy of a data root.

    Attributes:
      number: from 1, in the order in which they were applied.
      policy: its rules; None if the data root went back to the policy of each process.
      document: as it was written: ``rule``, ``globs``, ``caps`` and ``quarantine``.
      author: who applied it.
      reason: why.
      time_us: when, epoch microseconds.
    """

    number: int
    policy: TrustPolicy | None
    document: Mapping[str, Any]
    author: str
    reason: str
    time_us: int

    def to_json(self) -> dict[str, Any]:
        """Return the attributes as JSON, with the digest of the rules in place of `policy`."""
        digest = None if self.policy is None else self.policy.digest
        return {**vars(self), "policy": digest}


class PolicyState:
    """The policies after the last delta applied.

    Attributes:
      version: of the manifest; 0 if none was ever applied.
      policies: all of them, in order.
    """

    def __init__(self) -> None:
        self.version = 0
        self.policies: list[StoredPolicy] = []

    def apply(self, version: int, delta: Delta) -> None:
        """Apply the next delta. Raises `IntegrityError` if it is not one of this log."""
        if delta["kind"] != "policy":
            raise IntegrityError(f"trust: version {version} has the unknown kind {delta['kind']!r}; upgrade ciml")
        document = delta["policy"]
        try:
            policy = TrustPolicy.from_json(document, f"trust policy {version}") if document else None
        except CimlError as error:
            raise IntegrityError(f"{error}; upgrade ciml") from None
        number = len(self.policies) + 1
        stored = StoredPolicy(number, policy, document or {}, delta["author"], delta["reason"], delta["time_us"])
        self.policies.append(stored)

    @property
    def in_force(self) -> StoredPolicy | None:
        """The last policy, unless it is a return to the policy of each process."""
        last = self.policies[-1] if self.policies else None
        return None if last is None or last.policy is None else last


def read_policies(store: Store) -> PolicyState:
    """Read the policies of a store, such as ``DATA/trust``."""
    return catch_up(ManifestLog(store), PolicyState())


def apply_policy(
    store: Store, document: Mapping[str, Any] | None, author: str, reason: str, *, now_us: int | None = None
) -> StoredPolicy | None:
    """Put a policy in force.

    Args:
      store: ``DATA/trust``.
      document: as in `StoredPolicy`; None returns to the policy of each process.
      author: who applies it.
      reason: why.
      now_us: the time, epoch microseconds; the present by default.

    Returns:
      The stored policy; None if the same document is in force already, also if another person applied it.

    Raises:
      CimlError: the document is not a policy; author or reason is empty, or not a printable line.
    """
    if document is not None:
        TrustPolicy.from_json(document)
    check_line("author", author)
    check_line("reason", reason)
    state = PolicyState()

    def build() -> Delta | None:
        present = state.in_force.document if state.in_force else None
        if document == present:
            return None
        time_us = time.time_ns() // 1000 if now_us is None else now_us
        return {"kind": "policy", "time_us": time_us, "author": author, "reason": reason, "policy": document}

    version = commit(ManifestLog(store), state, build)
    _follower(store.root).forget()
    return None if version is None else state.policies[-1]


def policy_of(root: DataRoot, path: str | os.PathLike[str] | None = None, *further: DataRoot) -> PolicySource:
    """Return the policy by which a process judges the runs of a data root.

    It is the first of these: the file ``path``; the policy in force in ``root``, then in ``further``; the file that the
    environment variable `POLICY_VARIABLE` names; the built-in policy.

    Args:
      root: the data root.
      path: a TOML file, for a trial.
      further: other data roots, such as the one whose raw store is read.

    Raises:
      CimlError: a file is not a policy. The store is read when the policy is asked for.
    """
    folders = tuple(dict.fromkeys(data_root.trust.root for data_root in (root, *further)))
    if path is not None:
        return _Trial(TrustPolicy.load(path), os.fspath(path), folders)
    return RootPolicy(folders, TrustPolicy.load(None))


@dataclass(frozen=True)
class RootPolicy:
    """Follows the policies of data roots. It can be pickled, so the workers of a pipeline follow them too.

    Attributes:
      folders: addresses of their policies; the first with a policy in force counts.
      fallback: the policy where none has one.
    """

    folders: tuple[str, ...]
    fallback: TrustPolicy

    def current(self) -> TrustPolicy:
        """Return the policy in force at most `REREAD_S` ago.

        Raises:
          EngineError: the store does not answer.
          IntegrityError: a policy is damaged, or of a later version of ciml.
        """
        for folder in self.folders:
            stored = _follower(folder).in_force()
            if stored is not None:
                if os.environ.get(POLICY_VARIABLE):
                    _warn_once(f"{POLICY_VARIABLE} is ignored: {folder} has a trust policy")
                return stored
        return self.fallback


@dataclass(frozen=True)
class _Trial:
    """A policy that judges in place of those of data roots."""

    policy: TrustPolicy
    path: str
    folders: tuple[str, ...]

    def current(self) -> TrustPolicy:
        for folder in self.folders:
            if _follower(folder).in_force() is not None:
                _warn_once(f"{self.path} replaces the trust policy in {folder}, in this process alone")
        return self.policy


@cache
def _warn_once(line: str) -> None:
    _log.warning("%s", line)


class _Follower:
    """The policies of one folder, as this process knows them. Thread-safe."""

    def __init__(self, folder: str) -> None:
        self._log = ManifestLog(open_store(folder))
        self._state = PolicyState()
        self._read_s = float("-inf")
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Read the policies again when they are next asked for."""
        with self._lock:
            self._read_s = float("-inf")

    def in_force(self) -> TrustPolicy | None:
        """Return the policy in force at most `REREAD_S` ago; None if there is none."""
        with self._lock:
            if time.monotonic() - self._read_s >= REREAD_S:
                catch_up(self._log, self._state)
                self._read_s = time.monotonic()
            stored = self._state.in_force
            return None if stored is None else stored.policy


#: Returns the follower of a folder, one for the process.
_follower = cache(_Follower)
