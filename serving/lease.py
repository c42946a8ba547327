"""The lease of a model: one trainer at a time refreshes and pushes it.

The lease is in the model's registry, as candidates and versions are. If a trainer freezes and another one takes its
lease, the first can no longer write: its next delta would follow the other trainer's, and is refused
(`ciml.serving.registry.Registry.lease`). No clock decides about that. Clocks only decide when a lease may be taken from
a trainer that does not renew it.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace

import psutil

from ciml.errors import CimlError
from ciml.manifest.log import Delta
from ciml.serving.registry import Lease, LostLeaseError, Registry, RegistryState

#: For how long a lease is valid without a renewal, seconds. It is renewed three times as often.
LEASE_S = 120.0
#: The start time of a process is derived from the boot time, which a correction of the clock shifts a little, seconds.
_SAME_START_S = 1.0
_LOG = logging.getLogger(__name__)


class ModelLockedError(CimlError):
    """Another process trains the model: wait for it, and try again."""

    exit_code = 6


@contextmanager
def leased(registry: Registry, seconds: float = LEASE_S) -> Iterator[None]:
    """Hold the lease of a model, and renew it. In the context, all writes of ``registry`` need it.

    Args:
      registry: the registry of the model. No other thread may use it meanwhile.
      seconds: validity of the lease without a renewal.

    Raises:
      ModelLockedError: another trainer holds it.
      LostLeaseError: raised by each write after another trainer has taken the lease.
    """
    lease = _take(registry, seconds)
    registry.lease = lease.id
    stop = threading.Event()
    renewer = threading.Thread(target=_renew_until, args=(registry, lease, seconds, stop), daemon=True)
    renewer.start()
    try:
        yield
    finally:
        stop.set()
        renewer.join()
        registry.lease = ""
        with suppress(CimlError):  # an expired or lost lease needs no end, and the next trainer waits for this one's
            registry.commit(lambda state: _end(state, lease))


def _take(registry: Registry, seconds: float) -> Lease:
    pid = os.getpid()
    lease = Lease(secrets.token_hex(8), socket.gethostname(), pid, _start_time(pid), until_us=0)

    def build(state: RegistryState) -> Delta:
        now_us = registry.now_us()
        held = state.lease
        if held is not None and held.is_valid(now_us) and not _has_ended(held):
            left_s = (held.until_us - now_us) / 1e6
            raise ModelLockedError(
                f"model {registry.model!r} is being trained by process {held.pid} on {held.host}; wait for it. If it "
                f"ended without a trace, its lease ends in {left_s:.0f} s"
            )
        return _lease_delta(lease, now_us + round(seconds * 1e6))

    registry.commit(build)
    return lease


def _lease_delta(lease: Lease, until_us: int) -> Delta:
    return {"kind": "lease", "lease": asdict(replace(lease, until_us=until_us))}


def _renew_until(registry: Registry, lease: Lease, seconds: float, stop: threading.Event) -> None:
    """Renew a lease by a registry object of this thread, until it ends or is lost."""
    renewal = Registry(registry.data, registry.model, registry.now_us)
    renewal.lease = lease.id
    while not stop.wait(seconds / 3):
        try:
            renewal.commit(lambda state: _lease_delta(lease, renewal.now_us() + round(seconds * 1e6)))
        except LostLeaseError:
            return  # the trainer's next write fails, too
        except CimlError as error:
            _LOG.warning("model %s: its lease was not renewed: %s", registry.model, error)


def _end(state: RegistryState, lease: Lease) -> Delta | None:
    is_held = state.lease is not None and state.lease.id == lease.id
    return {"kind": "lease", "lease": None} if is_held else None


def _start_time(pid: int) -> float:
    """Return the start time of a process of this machine, epoch seconds; 0 if there is none."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0.0


def _has_ended(lease: Lease) -> bool:
    """Return whether the holder was a process of this machine that has ended."""
    is_of_this_machine = lease.host == socket.gethostname()
    return is_of_this_machine and abs(_start_time(lease.pid) - lease.started) > _SAME_START_S
