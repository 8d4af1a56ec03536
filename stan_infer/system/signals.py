"""Ctrl-C, SIGTERM and SIGHUP end the program, even while a runtime occupies the main thread."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from stan_infer.errors import MissingError, one_line
from stan_infer.system import kept

GRACE_S = 3.0  # for the main thread to notice; a library's code may occupy it for hours
_handled: list[signal.Signals] = []  # those that have our handler
_raised: list[BaseException] = []  # by our handler, the last one
_over = threading.Event()  # set when the program ends anyway


class EndedBySignal(BaseException):
    """A signal ends the program. Not a SystemExit, which is caught where packages are imported."""

    def __init__(self, number: int) -> None:
        """number: of the signal."""
        super().__init__(f"ended by signal {number}")
        self.number = number


def end_in_words(number: int) -> str:
    """The line that the program ends with: that it was stopped, and what it has written."""
    how = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    return one_line(f"{how}: {kept.in_words()}")


@contextmanager
def ended_at_once() -> Iterator[None]:
    """Let signals end the process at once while a call holds the GIL, so that no thread can watch.

    Does nothing unless end_on_signals was called: a program that imports the package keeps its
    handlers.
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
    """Install the handlers; a signal that is ignored, as under nohup, stays ignored.

    Ctrl-C raises KeyboardInterrupt in the main thread, the other signals raise EndedBySignal there.
    Python runs a handler only when the main thread runs Python again, that is after a call into a
    runtime has returned. So a second thread waits for signals, too: if the handler has not run
    after GRACE_S, that thread ends the process. Temporary folders that are left behind then are
    cleared by the next start. Raises MissingError where the system grants no thread.
    """
    _over.clear()
    if _handled:
        return
    wanted = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
    wanted = [s for s in wanted if signal.getsignal(s) is not signal.SIG_IGN]
    taken_up = threading.Event()
    last = _raised

    def handle(number: int, frame: FrameType | None) -> None:
        last[:] = [KeyboardInterrupt() if number == signal.SIGINT else EndedBySignal(number)]
        taken_up.set()
        raise last[0]

    for number in wanted:
        signal.signal(number, handle)
    _handled.extend(wanted)
    if os.name != "posix" or not wanted:
        return  # on Windows set_wakeup_fd takes no pipe
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while True:
            for number in os.read(reader, 64):
                if number not in wanted:
                    continue
                if not taken_up.wait(GRACE_S):
                    # Show the cursor, which a progress bar may have hidden.
                    show = "\x1b[?25h" if sys.stderr.isatty() else ""
                    end = "the next start removes temporary files"
                    os.write(2, f"{show}{end_in_words(number)}; {end}\n".encode())
                    os._exit(128 + number)
                taken_up.clear()
                if _is_lost(last[0]):
                    os.kill(os.getpid(), number)

    try:
        threading.Thread(target=watch, name="signals", daemon=True).start()
    except RuntimeError as e:
        raise MissingError(f"{e}: give the process more memory, or more threads") from e


def ended_by() -> int | None:
    """The number of the signal that came, None without one.

    Code of a library may catch what the handler raises and report an error of its own instead.
    """
    if not _raised:
        return None
    raised = _raised[0]
    return raised.number if isinstance(raised, EndedBySignal) else int(signal.SIGINT)


def ending() -> None:
    """Note that the program ends, so that the thread does not send a signal again."""
    _over.set()


def _is_lost(raised: BaseException) -> bool:
    """Whether the main thread goes on as if the exception had not been raised.

    Python drops an exception that a handler raises inside a destructor or a weak reference's
    callback, and such callbacks often run during imports.
    """
    for wait in (0.5, 0.1):  # twice: it may just be between two `except` blocks that handle it
        time.sleep(wait)
        if _over.is_set() or _is_handling(raised):
            return False
    return True


def _is_handling(raised: BaseException) -> bool:
    found = sys._current_exceptions().get(threading.main_thread().ident or 0)
    error = found[1] if isinstance(found, tuple) else found  # a tuple before Python 3.12
    while error is not None and error is not raised:
        error = error.__context__
    return error is raised
