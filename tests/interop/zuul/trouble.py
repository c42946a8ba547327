"""What happens to the machine of a job: other work, a kill, a full disk, or a mirror that does not answer."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, TypeAlias

#: ``mirror``: it closes each connection without an answer; ``busy mirror``: it answers 503.
Trouble: TypeAlias = Literal["none", "starved", "killed", "full", "mirror", "busy mirror"]
MIRROR = ("127.0.0.1", 19002)
#: Takes nearly all of a processor's time from processes of usual priority, for some seconds.
_HOG = (sys.executable, "-c", "import time\nuntil = time.monotonic() + 10\nwhile time.monotonic() < until: pass")
_SCRATCH_MB = 8
_WHEEL = "ledger_format-1.2-py3-none-any.whl"


class Hogs:
    """Other work: two processes for each processor. Each ends after some seconds by itself."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def keep(self, wanted: bool) -> None:
        """Start them, start them again, or end them."""
        if not wanted or any(process.poll() is not None for process in self._processes):
            while self._processes:
                process = self._processes.pop()
                process.kill()
                process.wait()
        if wanted and not self._processes:
            self._processes = [_hog() for _ in range(2 * (os.cpu_count() or 1))]


def _hog() -> subprocess.Popen[bytes]:
    process = subprocess.Popen(_HOG, start_new_session=True)
    with contextlib.suppress(OSError):  # where Linux shares processors among sessions, priority is the session's
        Path(f"/proc/{process.pid}/autogroup").write_text("-16")
    os.setpriority(os.PRIO_PROCESS, process.pid, -16)
    return process


def kill(pid: int) -> None:
    """SIGKILL a process."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[bool], None]]:
    """Mount a file system of some megabytes at a folder. Yields a function that fills it, or empties it."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SCRATCH_MB}m,mode=1777", "tmpfs", folder], check=True)
    filler = folder / "filler"

    def fill(is_full: bool) -> None:
        if is_full == filler.exists():
            return
        if not is_full:
            filler.unlink()
            return
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))

    try:
        yield fill
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def mirror(trouble_of: Callable[[str], str]) -> Iterator[None]:
    """Serve the package ledger-format at `MIRROR`, as ``/BUILD/simple/``.

    Args:
      trouble_of: returns the trouble of a build.
    """
    wheel = _wheel()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _, build, *path = self.path.split("/")
            trouble = trouble_of(build)
            if trouble == "mirror":
                return  # and so the connection is closed
            if trouble == "busy mirror":
                self._answer(503, b"")
            elif path == ["simple", "ledger-format", ""]:
                self._answer(200, f'<a href="/{build}/{_WHEEL}">{_WHEEL}</a>'.encode())
            elif path == [_WHEEL]:
                self._answer(200, wheel, "application/zip")
            else:
                self._answer(404, b"")

        def _answer(self, status: int, body: bytes, kind: str = "text/html") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(MIRROR, Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def _wheel() -> bytes:
    files = {
        "ledger_format.py": 'def shown(amount):\n    return f"{amount:,}"\n',
        "ledger_format-1.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: ledger-format\nVersion: 1.2\n",
        "ledger_format-1.2.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "ledger_format-1.2.dist-info/RECORD"
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr(record, "".join(f"{name},,\n" for name in (*files, record)))
    return data.getvalue()
