"""Child processes for work that may crash, hang or take too much memory.

Both sides send JSON objects, one a line, and may send plain bytes after one. Nothing is unpickled:
the child may have read a stranger's file.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from typing import IO, Any, cast

from stan_infer.system.temporary import temporary_file

MAX_LINE = 2**24  # bytes of one JSON object
_PIPE = 2**20  # bytes that a child writes before it waits: a clip, where Linux lets it
_TAIL = 2000  # bytes of standard error that are kept


def python(module: str) -> tuple[str, ...]:
    """Return the command that runs a module; -P: no file in the current folder can shadow it."""
    return (sys.executable, "-P", "-m", module)


def send(pipe: IO[bytes], message: Mapping[str, Any], data: bytes | memoryview = b"") -> None:
    """Write one message, and bytes whose size the reader knows. Raises OSError."""
    pipe.write(json.dumps(message).encode() + b"\n")
    pipe.write(data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> dict[str, Any]:
    """Read one message; EOFError at the end, ValueError for a line that is not a message."""
    line = pipe.readline(MAX_LINE)
    if not line:
        raise EOFError
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")
    return message


def receive_bytes(pipe: BufferedReader, size: int) -> bytearray:
    """Read exactly `size` bytes; EOFError where there are fewer."""
    data = bytearray(size)
    if pipe.readinto(data) < size:
        raise EOFError
    return data


def how_it_ended(code: int) -> str:
    """An exit code as subprocess gives it, in words: "signal 9" or "exit code 1"."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


class Child:
    """A running child with pipes to its standard input and output.

    It runs in a session of its own, so that a Ctrl-C on the terminal reaches only this process,
    which then ends the child.
    """

    def __init__(
        self,
        command: tuple[str, ...],
        *,
        errors: IO[bytes] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """errors: file for its standard error; None: ours. env: variables; None: ours."""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=env,
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self.input: IO[bytes] = self._process.stdin
        self.output = cast(BufferedReader, self._process.stdout)
        with suppress(ImportError, AttributeError, OSError):  # Linux, and a user with few pipes
            import fcntl

            fcntl.fcntl(self.output, fcntl.F_SETPIPE_SZ, _PIPE)
        self._watchdog = _Watchdog(self._process.kill)

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    @contextmanager
    def deadline(self, seconds: float) -> Iterator[threading.Event]:
        """Kill the child after `seconds` unless the block ends before; the event is set then."""
        expired = self._watchdog.begin(seconds)
        try:
            yield expired
        finally:
            self._watchdog.stop()

    def wait(self) -> int:
        """Wait until it ends by itself; return its exit code, negative for a signal."""
        code = self._process.wait()
        self._watchdog.end()
        for pipe in (self.input, self.output):
            with suppress(OSError):
                pipe.close()
        return code

    def end(self, grace_s: float = 0.0) -> int:
        """Kill the child and return how it ended, as `wait` does; one that ended keeps its code.

        grace_s: send SIGINT first and leave it so many seconds to end by itself.
        """
        if grace_s and self.runs:
            self._process.send_signal(signal.SIGINT)
            with suppress(OSError):
                self.input.close()
            self._process.stdin = None  # else communicate would flush it again
            with suppress(subprocess.TimeoutExpired):
                # Reads its output, so that a full pipe does not keep it from ending.
                self._process.communicate(timeout=grace_s)
        self._process.kill()
        return self.wait()


class _Watchdog:
    """Kills after a time. One thread for all times: one for each made small clips 6 % slower.

    The thread sleeps until the time that it knows. A later one needs no word to it, so that it is
    not woken while a child answers in time.
    """

    def __init__(self, kill: Callable[[], None]) -> None:
        self._kill = kill
        self._changed = threading.Condition()
        self._until: float | None = None
        self._wakes = 0.0
        self._expired = threading.Event()
        self._thread: threading.Thread | None = None
        self._ended = False

    def begin(self, seconds: float) -> threading.Event:
        """Kill after so many seconds; the event is set then."""
        with self._changed:
            self._until, self._expired = time.monotonic() + seconds, threading.Event()
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
                self._thread.start()
            elif self._until < self._wakes:
                self._changed.notify()
            return self._expired

    def stop(self) -> None:
        """Do not kill any more."""
        with self._changed:
            self._until = None

    def end(self) -> None:
        """End the thread."""
        with self._changed:
            self._until, self._ended = None, True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(1.0)  # at the end of the interpreter it does not run any more

    def _watch(self) -> None:
        with self._changed:
            while not self._ended:
                if self._until is not None and self._until <= time.monotonic():
                    self._until = None
                    self._expired.set()
                    self._kill()
                self._wakes = math.inf if self._until is None else self._until
                left = max(0.0, self._wakes - time.monotonic())
                self._changed.wait(min(left, threading.TIMEOUT_MAX))


@dataclass(frozen=True)
class Ended:
    """How a child ended: its exit code, negative for a signal, and the end of its stderr."""

    code: int
    errors: str


def run_child(
    command: tuple[str, ...],
    request: Mapping[str, Any],
    on_message: Callable[[dict[str, Any]], None],
    *,
    env: Mapping[str, str] | None = None,
    grace_s: float = 0.0,
) -> Ended:
    """Send one request to a child and wait until it ends; on_message gets each of its messages.

    Other lines of its output are passed over. If an exception comes meanwhile, as by Ctrl-C, the
    child is ended first; see Child.end for grace_s.
    """
    with temporary_file() as errors:
        child = Child(command, errors=errors, env=env)
        try:
            with suppress(OSError):  # the child has ended; its exit code is returned below
                send(child.input, request)
                child.input.close()
            while True:
                try:
                    message = receive(child.output)
                except ValueError:
                    continue  # a library printed it, or the child was killed within a line
                except EOFError:
                    break
                on_message(message)
            code = child.wait()
        except BaseException:
            child.end(grace_s)
            raise
        errors.seek(max(0, errors.seek(0, os.SEEK_END) - _TAIL))
        return Ended(code, errors.read().decode("utf-8", "replace"))
