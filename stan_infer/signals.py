"""Ctrl-C, SIGTERM and SIGHUP end the program, even while a runtime keeps the main thread."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from stan_infer.errors import MissingError

GRACE_S = 3.0  # for the main thread to notice; code of a library may keep it for hours
_handled: list[signal.Signals] = []  # by our handlers


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Let signals end the process while a call keeps Python's lock, so that no thread can watch.

    Only where end_on_signals was called; a program that imports the package keeps its handlers.
    """
    if not _handled or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.signal(number, signal.SIG_DFL)) for number in _handled]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def end_on_signals() -> None:
    """Install the handlers; a signal that is ignored, as nohup has it, stays ignored.

    Python runs a handler when its main thread next runs Python, which is not before a call into a
    runtime returns. So a thread waits for signals too: where the main thread has not taken one up
    after GRACE_S, that thread ends the process. What such an end leaves behind in temporary folders
    is cleared by the next start. Raises MissingError where the system grants no thread.
    """
    if _handled:
        return
    wanted = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
    wanted = [s for s in wanted if signal.getsignal(s) is not signal.SIG_IGN]
    taken_up = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        taken_up.set()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    for number in wanted:
        signal.signal(number, handle)
    _handled.extend(wanted)
    if os.name != "posix" or not wanted:
        return  # elsewhere a pipe takes no bytes of signals
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while True:
            for number in os.read(reader, 64):
                if number not in wanted:
                    continue
                if not taken_up.wait(GRACE_S):
                    # The cursor that a progress bar has hidden.
                    show = "\x1b[?25h" if sys.stderr.isatty() else ""
                    os.write(2, f"{show}ended by signal {number}\n".encode())
                    os._exit(128 + number)
            taken_up.clear()

    try:
        threading.Thread(target=watch, name="signals", daemon=True).start()
    except RuntimeError as e:
        raise MissingError(f"{e}: give the process more memory, or more threads") from e
