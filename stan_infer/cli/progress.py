"""How far the work is, on standard error: a bar on a terminal, else a line every 30 seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from stan_infer.cli.report import say

LINE_S = 30.0  # between two lines; work that ends before has none


@contextmanager
def progress_bar(title: str, total: float) -> Iterator[Callable[..., None]]:
    """Yield a function that moves the bar by its argument, by default 1."""
    if not sys.stderr.isatty():
        with _lines(title, total) as step:
            yield step
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # rich writes what is printed meanwhile above the bar, which is the terminal: results that go
    # elsewhere are left alone.
    shown = Progress(
        *columns,
        TimeRemainingColumn(),
        console=Console(stderr=True, soft_wrap=True),
        redirect_stdout=sys.stdout.isatty(),
    )
    with shown as progress:
        task = progress.add_task(title, total=total)
        yield lambda amount=1.0: progress.advance(task, amount)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, float], Callable[..., None]]]:
    """Yield a function that says a title, starts its bar and returns what moves the bar.

    It is called with title and total, and ends the bar before, as rich shows one at a time.
    """
    with ExitStack() as stack:

        def start(title: str, total: float) -> Callable[..., None]:
            stack.close()
            say(title)
            return stack.enter_context(progress_bar(title, total))

        yield start


@contextmanager
def _lines(title: str, total: float) -> Iterator[Callable[..., None]]:
    """As progress_bar, in lines: one every LINE_S, also while a single step takes longer."""
    start, done = time.monotonic(), 0.0
    ended = threading.Event()

    def step(amount: float = 1.0) -> None:
        nonlocal done
        done += amount

    def tell() -> None:
        while not ended.wait(LINE_S):
            say(progress_line(title, done, total, time.monotonic() - start))

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield step
    finally:
        ended.set()
        teller.join()
    if time.monotonic() - start >= LINE_S:
        say(progress_line(title, done, total, time.monotonic() - start))


def progress_line(title: str, done: float, total: float, seconds: float) -> str:
    """As in "embedding: 120 of 1000, 4 per second, 3 min 40 s left"."""
    head = f"{title}: {done:.0f} of {total:.0f}"
    if done <= 0:
        return f"{head} after {_duration(seconds)}"
    rate = done / seconds
    speed = f"{rate:.3g} per second" if rate >= 1 else f"{1 / rate:.3g} s each"
    if done >= total:
        return f"{head} in {_duration(seconds)}, {speed}"
    return f"{head}, {speed}, {_duration((total - done) / rate)} left"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
