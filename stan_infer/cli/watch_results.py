"""What `stan-infer watch` prints, writes and shows on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stan_infer.cli.report import RowPrinter, print_json, say, width_of
from stan_infer.errors import InputError, printable
from stan_infer.watch.event_file import EventFile
from stan_infer.watch.events import Event
from stan_infer.watch.plot import check_plot, write_plot
from stan_infer.watch.watch import ScoredWindow, Watch

_TEXT_WIDTH, _NUMBER_WIDTH, _DATE_WIDTH = 60, 8, 19
_SHOWN = 12  # texts in the view of a terminal
_BAR = 24  # cells
# What is said of frames at the end, if there were any.
_COUNTS = {
    "dropped": "dropped, as the network was too slow",
    "corrupt": "damaged, or built on one that is",
    "late": "not after the one before",
    "repeated": "filled in where none came",
    "jumps": "with a time that was set back or far off",
    "resized": "of another size than the one before",
}


class WatchResults:
    """Takes windows and events; a context manager. events: how many ended."""

    def __init__(
        self, json: bool, out: Path | None, plot: Path | None, sources: Sequence[str | Path]
    ) -> None:
        """Refuse files that cannot be written. sources: files that are read."""
        self._json, self._plot, self._sources = json, plot, sources
        if plot is not None:
            check_plot(plot, sources=sources)
        if out is not None and plot is not None and out.resolve() == plot.resolve():
            raise InputError(f"{out} is given as -o and as --plot: give each a file of its own")
        self._file = None if out is None else EventFile(out, sources=sources)
        self.events = 0
        self._table: RowPrinter | None = None

    def __enter__(self) -> WatchResults:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.__exit__()

    def add(self, watch: Watch, item: ScoredWindow | Event) -> None:
        """Print what happened; windows are not printed."""
        if isinstance(item, ScoredWindow):
            return
        record = _record(watch, item)
        if self._file is not None:
            self._file.add("watch-event", record)
        if self._json:
            print_json("watch-event", record)
        else:
            self._print(watch, item, record)
        self.events += item.end_s is not None

    def finish(self, watch: Watch) -> None:
        """End what goes on, say the summary, and draw the plot."""
        for event in watch.finish():
            self.add(watch, event)
        summary = watch.summary()
        if self._file is not None:
            self._file.add("watch-summary", summary)
        if self._json:
            print_json("watch-summary", summary)
        for line in summary_lines(summary):
            say(line)
        if self._plot is not None and watch.windows:
            write_plot(self._plot, watch, sources=self._sources)
        elif self._plot is not None:
            say(f"no window was full, so that there is nothing to draw: no {self._plot}")

    def _print(self, watch: Watch, event: Event, record: dict[str, Any]) -> None:
        """Of a file a row when an event has ended, else also one when it begins."""
        if not watch.live and event.end_s is None:
            return
        if self._table is None:
            widths = {"text": min(_TEXT_WIDTH, max(map(width_of, watch.texts)))}
            if watch.live:
                widths = {"state": 6} | widths | {"start": _DATE_WIDTH, "end": _DATE_WIDTH}
            else:
                widths |= {"start_s": _NUMBER_WIDTH, "end_s": _NUMBER_WIDTH}
            widths["peak"] = _NUMBER_WIDTH
            self._table = RowPrinter(widths, {"start_s", "end_s", "peak"})
        row = dict(record)
        for name in ("start", "end") if watch.live else ():
            at = watch.clock(record[f"{name}_s"])
            row[name] = f"{at:%Y-%m-%d %H:%M:%S}" if at else None
        self._table.print([row])


def _record(watch: Watch, event: Event) -> dict[str, Any]:
    """An event as JSON types."""
    dates = {name: watch.clock(getattr(event, f"{name}_s")) for name in ("start", "end")}
    return {
        "state": "begins" if event.end_s is None else "ended",
        "number": event.number,
        "source": watch.source,
        "text": event.text,
        "start_s": event.start_s,
        "end_s": event.end_s,
        **{name: date and date.isoformat(timespec="milliseconds") for name, date in dates.items()},
        "measure": watch.measure,
        "peak": event.peak,
        "peak_s": event.peak_s,
        "windows": event.windows,
    }


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The summary in words: what was seen, then what became of frames."""
    events, frames = summary["events"], summary["frames"]
    lines = [
        f"{summary['source']}: {_many(events, 'event')} in {_many(summary['windows'], 'window')} "
        f"up to {summary['seconds']:.1f} s, of {frames['decoded']} frames"
    ]
    if summary["short"]:
        lines[0] += f"; {summary['short']} more lasted less than {summary['hold_s']:g} s"
    found = [f"{frames[name]} {words}" for name, words in _COUNTS.items() if frames[name]]
    if found:
        lines.append(f"frames: {'; '.join(found)}")
    if frames["lost"]:
        lines.append(
            f"lost {_many(frames['lost'], 'time')} ({frames['stalls']} stalled), there again "
            f"{_many(frames['reconnects'], 'time')}"
        )
    if frames["gaps"]:
        lines.append(f"windows began anew {_many(frames['gaps'], 'time')}, behind a gap")
    return lines


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'s' * (count != 1)}"


@contextmanager
def watch_view(watch: Watch) -> Iterator[None]:
    """Show the current values on standard error, if that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, soft_wrap=True)
    # rich writes what is printed meanwhile above the view, as `progress` says.
    with Live(
        console=console,
        get_renderable=lambda: view(watch),
        refresh_per_second=4,
        redirect_stdout=sys.stdout.isatty(),
        transient=True,
    ):
        yield


def view(watch: Watch) -> Any:
    """The current values as something that rich draws: a bar for each text, and counts."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    latest = watch.latest
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(max_width=40, no_wrap=True, overflow="ellipsis")
    for _ in range(3):
        table.add_column(no_wrap=True)
    if latest is not None:
        values, on = latest.values.tolist(), watch.is_on
        order = sorted(range(len(values)), key=lambda i: -values[i])[:_SHOWN]
        for i in sorted(order):
            is_on = i < watch.watched and on[i]
            bar = "\u2588" * round(_BAR * min(max(values[i], 0.0), 1.0))
            style = "bold green" if is_on else "dim" if i >= watch.watched else ""
            name = Text(printable(watch.texts[i]), style=style)
            state = "event" if is_on else ""
            table.add_row(name, Text(bar.ljust(_BAR), style), f"{values[i]:.3f}", state)
    counts = watch.counts
    at = watch.clock(watch.end_s)
    when = f"{at:%H:%M:%S}" if at else f"{watch.end_s:.1f} s"
    of = f" of {watch.length_s:.1f} s" if watch.length_s else ""
    line = f"{watch.source}  {when}{of}  {watch.windows} windows  {watch.events} events"
    line += "".join(
        f"  {n} {w}" for w in ("dropped", "corrupt", "lost") if (n := getattr(counts, w))
    )
    return Group(table, Text(printable(line), style="dim", no_wrap=True, overflow="ellipsis"))
