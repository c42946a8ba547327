"""A small file system of a trial's own, which fills up and turns read-only; and system calls that fail."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class Disk:
    """A tmpfs. Making one needs root.

    Attributes:
      folder: where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, left: int = 0) -> None:
        """Takes all space but ``left`` bytes."""
        free = shutil.disk_usage(self.folder).free
        with self._ballast.open("wb") as out:
            out.truncate(0)
            piece = b"\0" * 4096
            for _ in range(max(0, free - left) // len(piece)):
                out.write(piece)

    def free(self) -> None:
        """Gives the space back."""
        self._ballast.unlink(missing_ok=True)

    def read_only(self, yes: bool, most_s: float = 30.0) -> None:
        """Remounts it. It turns read-only when nobody has a file open to write in that moment."""
        deadline = time.monotonic() + most_s
        while (done := _run("mount", "-o", f"remount,{'ro' if yes else 'rw'}", str(self.folder))).returncode:
            if time.monotonic() > deadline:
                raise RuntimeError(f"cannot remount: {done.stderr}")
            time.sleep(0.005)


@contextmanager
def disk(folder: Path, size_mb: int) -> Iterator[Disk | None]:
    """Mounts a disk and unmounts it; None where that is not allowed here."""
    folder.mkdir(parents=True)
    if _run("mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=755", "tmpfs", str(folder)).returncode:
        yield None
        return
    try:
        yield Disk(folder)
    finally:
        if _run("umount", str(folder)).returncode:
            _run("umount", "--lazy", str(folder))


def failing(calls: Sequence[str], error: str, when: str) -> list[str] | None:
    """The start of a command whose system calls fail: ``when`` is ``5`` (the fifth) or ``5+`` (from the fifth on).

    Returns:
      The words before the command; None where processes cannot be traced here.
    """
    if shutil.which("strace") is None or _run("strace", "-o", "/dev/null", "true").returncode:
        return None
    names = ",".join(calls)
    inject = f"inject={names}:error={error}:when={when}"
    return ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={names}", "-e", inject]


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
