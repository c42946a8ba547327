"""The output of a recorded command: passed on unchanged as it comes, and kept in a file of bounded size.

A *copier* is a process for each stream: standard output, standard error, or both if they are one. It reads what the
command prints from a pipe, or from a pseudo-terminal if the stream is a terminal, writes it to the stream, and then to
the file. The process that runs the command holds the pipe open, too, and replaces a copier that was killed: its piece
is in memory that both share, so the next one continues within it.

The file has a head and a ring: beyond its size, the ring has the latest bytes, and the number of all bytes follows it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import select
import stat
import struct
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

from ciml.limits import MAX_OUTPUT_BYTES
from ciml.recorder import report
from ciml.recorder.command import close_descriptors

_PIECE_BYTES = 64 << 10
_COUNT = struct.Struct("<Q")
#: Bytes of the file of an output, with the number of all bytes.
MAX_FILE_BYTES = MAX_OUTPUT_BYTES + _COUNT.size
_STREAMS = (1, 2)
#: Bytes that a pipe or a terminal holds at most: Linux allows users pipes of 1 MiB.
_MAX_HELD_BYTES = 1 << 20
_FORK_PAUSE_S = 0.1
#: Numbers in the shared memory, of 8 bytes: those of the file, then those of each stream.
_TOTAL, _IS_CLOSED, _IS_FAILED, _OF_STREAMS = range(4)
_IS_BUSY, _SIZE, _DONE, _PASSED, _NUMBERS = range(5)


class Output:
    """The output of a command, as seen by the process that runs it. No method but the first raises.

    Args:
      file: descriptor of the file, open for reading and writing; None to leave the output as it is.
      limit: bytes of the file: a half for the head.

    Raises:
      OSError: there are no pipes or pseudo-terminals.
    """

    def __init__(self, file: int | None = None, limit: int = MAX_OUTPUT_BYTES) -> None:
        self._streams: list[_Stream] = []
        if file is None:
            return
        memory = mmap.mmap(-1, mmap.PAGESIZE + len(_STREAMS) * _PIECE_BYTES)
        self._numbers = memoryview(memory)[: mmap.PAGESIZE].cast("Q")
        kept_text = _Kept(file, limit, self._numbers)
        statuses: list[os.stat_result] = []
        for number in _STREAMS:
            try:
                status = os.fstat(number)
            except OSError:
                continue  # closed, and so it stays
            same = next((index for index, earlier in enumerate(statuses) if os.path.samestat(status, earlier)), None)
            if same is not None:
                self._streams[same].descriptors.append(number)
                continue
            begin = _OF_STREAMS + len(statuses) * _NUMBERS
            piece = memoryview(memory)[mmap.PAGESIZE + len(statuses) * _PIECE_BYTES :][:_PIECE_BYTES]
            self._streams.append(_Stream(number, status, self._numbers[begin : begin + _NUMBERS], piece, kept_text))
            statuses.append(status)

    @property
    def descriptors(self) -> Mapping[int, int]:
        """The descriptors of the command, and those that it gets in their place."""
        return {number: stream.writing for stream in self._streams for number in stream.descriptors}

    def start(self) -> None:
        """Start to pass on what the command prints. The command must have started, or have failed to."""
        for stream in self._streams:
            os.close(stream.writing)
            stream.start()

    def handle_child_end(self, pid: int, status: int) -> None:
        """Replace a copier that did not end by itself."""
        for stream in self._streams:
            if pid == stream.pid:
                stream.handle_end(status)

    def resize(self) -> None:
        """Give the pseudo-terminals the size of their terminals."""
        for stream in self._streams:
            stream.resize()

    def mark_end(self) -> None:
        """Note that the command has ended: `is_passed_on` waits for what it printed, not for its children."""
        for stream in self._streams:
            stream.mark_end()

    def is_passed_on(self) -> bool:
        """Return whether all that was printed before `mark_end` is in the streams."""
        return all(stream.is_passed_on() for stream in self._streams)

    def close(self) -> None:
        """End the file. What the command's children print later is passed on all the same."""
        if not self._streams:
            return
        self._numbers[_IS_CLOSED] = 1
        if self._numbers[_IS_FAILED]:
            report("the output was not recorded to its end: its file cannot be written")


class _Stream:
    """A stream of the command.

    Attributes:
      descriptors: the descriptors of the command that are this stream.
      writing: the descriptor that the command gets.
      pid: of its copier; 0 without one.
    """

    def __init__(
        self, number: int, status: os.stat_result, numbers: memoryview, piece: memoryview, kept: _Kept
    ) -> None:
        self.descriptors = [number]
        self.pid = 0
        self._real = number
        self._numbers = numbers
        self._piece = piece
        self._kept = kept
        self._end = 0
        self._is_terminal = stat.S_ISCHR(status.st_mode) and os.isatty(number)
        self._reading, self.writing = os.openpty() if self._is_terminal else os.pipe()
        if self._is_terminal:
            with contextlib.suppress(termios.error):
                modes = termios.tcgetattr(number)
                modes[1] &= ~termios.OPOST  # the terminal itself processes what is passed on
                termios.tcsetattr(self.writing, termios.TCSANOW, modes)
            self.resize()

    def start(self) -> None:
        """Start a copier; wait while there can be no process."""
        while True:
            with contextlib.suppress(OSError):
                self.pid = os.fork()
                break
            time.sleep(_FORK_PAUSE_S)
        if self.pid == 0:
            _copy_and_exit(self._reading, self._real, self._numbers, self._piece, self._kept)

    def handle_end(self, status: int) -> None:
        """Replace the copier if it was killed. Otherwise it has no writer or no reader left."""
        self.pid = 0
        if status:
            self.start()
        else:
            os.close(self._reading)

    def resize(self) -> None:
        if self._is_terminal:
            with contextlib.suppress(OSError):
                size = fcntl.ioctl(self._real, termios.TIOCGWINSZ, bytes(8))
                fcntl.ioctl(self._reading, termios.TIOCSWINSZ, size)

    def mark_end(self) -> None:
        self._end = self._numbers[_PASSED] + _MAX_HELD_BYTES + _PIECE_BYTES

    def is_passed_on(self) -> bool:
        if not self.pid or self._numbers[_PASSED] >= self._end:
            return True
        poll = select.poll()
        poll.register(self._reading, select.POLLIN)
        is_empty = not any(events & select.POLLIN for _, events in poll.poll(0))
        return is_empty and not self._numbers[_IS_BUSY]  # in this order: a copier is busy before it reads


class _Kept:
    """The file of an output. Any copier may be killed while it writes.

    Args:
      file: its descriptor.
      limit: its bytes.
      numbers: shared by all copiers.
    """

    def __init__(self, file: int, limit: int, numbers: memoryview) -> None:
        self.file = file
        self._limit = limit
        self._numbers = numbers

    def add(self, data: memoryview) -> None:
        """Add bytes, unless the file is closed or an earlier write has failed."""
        if self._numbers[_IS_CLOSED] or self._numbers[_IS_FAILED]:
            return
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX)  # of a process that is killed, the kernel removes the lock
            try:
                self._write(data)
            finally:
                fcntl.lockf(self.file, fcntl.LOCK_UN)
        except OSError:
            self._numbers[_IS_FAILED] = 1

    def _write(self, data: memoryview) -> None:
        total = self._numbers[_TOTAL]
        while data:
            position = total if total < self._limit else _position(total, self._limit)
            written = os.pwrite(self.file, data[: self._limit - position], position)
            total += written
            data = data[written:]
        if total > self._limit:
            os.pwrite(self.file, _COUNT.pack(total), self._limit)
        self._numbers[_TOTAL] = total


def _position(total: int, limit: int) -> int:
    """Return the position of the next byte in the ring, which is the oldest one there."""
    head = limit // 2
    return head + (total - head) % (limit - head)


def _copy_and_exit(reading: int, real: int, numbers: memoryview, piece: memoryview, kept: _Kept) -> NoReturn:
    """Be the copier of a stream until it has no writer or no reader."""
    code = 1
    try:
        os.setsid()  # a signal to the command's group does not reach it, and it may write to any terminal
        close_descriptors(reading, real, kept.file)
        _copy(reading, real, numbers, piece, kept)
        code = 0
    finally:
        os._exit(code)


def _copy(reading: int, real: int, numbers: memoryview, piece: memoryview, kept: _Kept) -> None:
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    while True:
        if not numbers[_SIZE]:  # else another copier was killed within a piece
            numbers[_IS_BUSY] = 0
            poll.poll()
            numbers[_IS_BUSY] = 1
            size = _read(reading, piece)
            if not size:
                return
            numbers[_DONE] = 0
            numbers[_SIZE] = size
        size = numbers[_SIZE]
        while numbers[_DONE] < size:
            # A writer that waits within a large piece, and is killed, has written a part that nobody has counted.
            select.select([], [real], [])
            end = min(size, numbers[_DONE] + select.PIPE_BUF)
            try:
                numbers[_DONE] += os.write(real, piece[numbers[_DONE] : end])
            except BlockingIOError:
                continue  # somebody else filled the pipe
            except BrokenPipeError:
                return
            except OSError:  # a full disk, or a terminal that is gone: as most commands, go on
                break
        kept.add(piece[:size])
        numbers[_PASSED] += size
        numbers[_SIZE] = 0


def _read(reading: int, piece: memoryview) -> int:
    """Return the number of bytes read; 0 at the end, which a pseudo-terminal reports as an error."""
    try:
        return os.readv(reading, [piece])
    except OSError:
        return 0


def kept_pieces(read: Callable[[int, int], bytes], size: int, limit: int = MAX_OUTPUT_BYTES) -> Iterator[bytes]:
    """Yield what the file of an output holds, in the order in which it was printed, with a line for the gap.

    Args:
      read: called with (offset, count); returns at most count bytes.
      size: of the file.
      limit: see `Output`.
    """
    if size <= limit:
        yield from _pieces(read, 0, size)
        return
    (total,) = _COUNT.unpack(read(limit, _COUNT.size).ljust(_COUNT.size, b"\0"))
    head = limit // 2
    begin = _position(max(total, limit), limit)
    yield from _pieces(read, 0, head)
    yield f"\n[ciml record: {max(total - limit, 0):,} bytes are left out]\n".encode()
    yield from _pieces(read, begin, limit)
    yield from _pieces(read, head, begin)


def _pieces(read: Callable[[int, int], bytes], begin: int, end: int) -> Iterator[bytes]:
    while begin < end and (piece := read(begin, min(end - begin, 1 << 20))):
        yield piece
        begin += len(piece)
