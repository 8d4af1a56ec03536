"""Progress bars on standard error, only on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from stan_infer.cli.report import say


@contextmanager
def progress_bar(title: str, total: float) -> Iterator[Callable[..., None]]:
    """Yield a function that moves the bar by its argument, by default 1.

    Nothing is shown if standard error is not a terminal.
    """
    if not sys.stderr.isatty():
        yield lambda amount=1.0: None
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
