"""Frames of a file, a camera or a stream as they come, on a grid of times: see Feed.

`feed_child` reads and decodes in a process of its own, which is killed when it hangs and started
again when it dies. A thread takes its frames into a bounded queue.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from stan_infer.errors import InputError, MissingError, check_number, check_whole
from stan_infer.system.child import (
    Child,
    how_it_ended,
    python,
    receive,
    receive_bytes,
    send,
)
from stan_infer.video.address import Source, parse_source
from stan_infer.video.decode_worker import START_S
from stan_infer.video.rgb import Image

QUEUE, QUEUE_BYTES = 8, 64 * 2**20  # frames that wait at most, and their bytes (two may be more)
LONGEST_WAIT_S = 30.0  # between two tries to connect; the first comes after FIRST_WAIT_S
FIRST_WAIT_S = 1.0
_COMMAND = python("stan_infer.video.feed_child")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedOptions:
    """How a source is read.

    stall_s: seconds without anything from the source after which it is lost. reconnect: how often
    in a row it is tried again to reach a camera or stream that was lost; None: for ever. realtime:
    read a file at its own speed, as if it were a camera. Raises InputError for other values.
    """

    stall_s: float = 10.0
    reconnect: int | None = None
    realtime: bool = False

    def __post_init__(self) -> None:
        """Check every value."""
        check_number("stall_s", self.stall_s, 0.1, 86400, " s")
        if self.reconnect is not None:
            check_whole("reconnect", self.reconnect, 0)


@dataclasses.dataclass
class FeedCounts:
    """What became of the frames of a source, over all of its connections.

    decoded: frames that were whole. skipped: lay between two times of the grid. late: not after the
    frame before by their stamps, left out. corrupt: damaged, or built on one that is; left out.
    dropped: waited while newer ones came, because the network was too slow. jumps: stamps that were
    set back or far off. resized: changes of size. stalls: losses because nothing came for stall_s.
    lost: losses in all; reconnects: those after which it came back.
    """

    decoded: int = 0
    skipped: int = 0
    late: int = 0
    jumps: int = 0
    corrupt: int = 0
    resized: int = 0
    dropped: int = 0
    stalls: int = 0
    lost: int = 0
    reconnects: int = 0


class FeedFrame(NamedTuple):
    """A frame uint8 [H, W, 3] RGB, and its time of the grid in seconds.

    From the first frame of a file, or from the first connection on.
    """

    time: float
    pixels: Image


class Lost(NamedTuple):
    """Stands between two frames where the source was lost: what lies between them is not known."""

    reason: str


class FrameQueue:
    """A queue that holds a bounded number of frames, for one thread on each side."""

    def __init__(self) -> None:
        """Begin empty."""
        self._items: deque[FeedFrame | Lost] = deque()
        self._changed = threading.Condition()
        self._over = False
        self._error: Exception | None = None

    def put(self, item: FeedFrame | Lost, *, drops: bool) -> int:
        """Add a frame, and return how many were dropped for it.

        Where there is no room, the oldest are dropped, or (drops False) it waits for some.
        """
        dropped = 0
        with self._changed:
            if isinstance(item, FeedFrame):
                room = max(2, min(QUEUE, QUEUE_BYTES // item.pixels.nbytes))
                while self._frames() >= room and not self._over:
                    if drops:
                        self._items.remove(next(i for i in self._items if isinstance(i, FeedFrame)))
                        dropped += 1
                    else:
                        self._changed.wait()
            elif self._items and isinstance(self._items[-1], Lost):
                self._items.pop()  # a source that is lost again and again says it once
            if not self._over:
                self._items.append(item)
            self._changed.notify_all()
        return dropped

    def take(self) -> list[FeedFrame | Lost]:
        """Wait for frames and return all that are there; [] at the end. Raises what ended it."""
        with self._changed:
            while not self._items and not self._over:
                self._changed.wait(0.5)  # on Windows Ctrl-C does not interrupt a longer wait
            found = list(self._items)
            self._items.clear()
            self._changed.notify_all()
            if not found and self._error is not None:
                raise self._error
            return found

    def end(self, error: Exception | None = None) -> None:
        """Let nothing more in; what is there can still be taken, then the error is raised."""
        with self._changed:
            if not self._over:
                self._over, self._error = True, error
            self._changed.notify_all()

    def _frames(self) -> int:
        return sum(isinstance(item, FeedFrame) for item in self._items)


class Feed:
    """The frames of one source on a grid of times `interval` apart.

    Of a file every frame of the grid comes, as fast as they are taken. Of a live source (a camera,
    an address, a file in real time) the newest come: at most QUEUE wait, and the oldest are dropped
    and counted. An address whose server says how long it lasts is a recording, and read as a file.
    A live source that ends, breaks off or stalls is connected again, after 1, 2, 4 and so on up to
    30 seconds; the first time it must be there.

    Use as a context manager, from one thread. say: gets a line for each loss and return.

    Attributes:
        source: what is read. counts: FeedCounts. live: None until the source is open.
        length_s: of a file whose header says it.
    """

    def __init__(
        self,
        source: str | Source,
        interval: float,
        options: FeedOptions | None = None,
        *,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Start to read. Raises InputError for a source that cannot be one."""
        self.source = source if isinstance(source, Source) else parse_source(str(source))
        check_number("interval", interval, 1e-6, 1e6, " s")
        self._interval, self._options = interval, options or FeedOptions()
        if self._options.realtime and self.source.kind != "file":
            raise InputError(f"{self.source.shown} is live; realtime is about files")
        if self._options.reconnect is not None and self.source.kind == "file":
            raise InputError(f"{self.source.shown} is a file; reconnect is about what is live")
        self.counts = FeedCounts()
        self.live: bool | None = None
        self.length_s: float | None = None
        self._say = say
        self._last: float | None = None  # time of the last frame
        self._zero = time.monotonic()
        self._queue = FrameQueue()
        self._closed = threading.Event()
        self._child: Child | None = None
        self._lock = threading.Lock()
        self._was_there = self._hdr_told = self._expired = False
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def __enter__(self) -> Feed:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End the reading at once; what was not taken is dropped."""
        self._closed.set()
        self._queue.end()
        with self._lock:
            if self._child is not None:
                self._child.end()
        self._thread.join()

    def take(self) -> list[FeedFrame | Lost]:
        """Wait for frames and return those that are there, at most QUEUE; [] at the end.

        Raises:
            InputError: the source cannot be opened, or was lost for good, or is no video.
            MissingError: PyAV is not installed.
        """
        return self._queue.take()

    def _run(self) -> None:
        tries = 0
        try:
            while not self._closed.is_set():
                before = self.counts.decoded
                reason = self._connection()
                if reason is None or self._closed.is_set():
                    break
                tries = 1 if self.counts.decoded > before else tries + 1
                self.counts.lost += tries == 1
                self._queue.put(Lost(reason), drops=True)
                self._wait(reason, tries)
            self._queue.end()
        except Exception as e:
            self._queue.end(e)

    def _wait(self, reason: str, tries: int) -> None:
        """Wait before the next try; InputError where there is none."""
        most, name = self._options.reconnect, self.source.shown
        if most is not None and tries > most:
            after = f" and was not there again after {most} tries" if most else ""
            raise InputError(f"{name} was lost ({reason}){after}; --reconnect allows more")
        seconds = min(FIRST_WAIT_S * 2 ** min(tries - 1, 20), LONGEST_WAIT_S)
        of = "" if most is None else f" of {most}"
        self._say(f"{name} was lost ({reason}); try {tries}{of} in {seconds:g} s")
        self._closed.wait(seconds)

    def _connection(self) -> str | None:
        """Read until the source ends; return why it was lost, None at the end of a recording."""
        with self._lock:
            if self._closed.is_set():
                return None
            child = self._child = Child(_COMMAND)
        before = dataclasses.replace(self.counts)
        try:
            return self._read(child, before)
        except InputError as e:
            # The first time it must be there, and of a file nothing is tried again.
            if not self._was_there or not self.live:
                raise
            return str(e)
        finally:
            child.end()

    def _read(self, child: Child, before: FeedCounts) -> str | None:
        message = self._next(child, START_S)
        if message is None or message.get("status") != "ready":
            if self._closed.is_set():
                return None
            raise MissingError("the process that decodes did not start: is memory left?")
        asked = {
            "source": dataclasses.asdict(self.source),
            "interval": self._interval,
            "last": self._last,
            "start_s": time.monotonic() - self._zero,
            "stall_s": self._options.stall_s,
            "realtime": self._options.realtime,
        }
        with suppress(OSError):  # it ended; the loop below finds that out
            send(child.input, asked)
        came_back = False
        # FFmpeg's own limit is stall_s: this one is for a driver that hangs.
        while (message := self._next(child, self._options.stall_s + 5)) is not None:
            status = message["status"]
            if status == "opened":
                self._opened(message)
            elif status in ("frame", "alive"):
                self._count(before, message["counts"])
                if status == "frame":
                    came_back = came_back or self._came_back()
                    self._take(child, message)
            elif status == "end":
                self._count(before, message["counts"])
                reason: str | None = message["message"]
                self.counts.stalls += reason is not None and reason.startswith("no data")
                return reason
            else:
                raise _error(message)
        if self._closed.is_set():
            return None
        if self._expired:
            self.counts.stalls += 1
            raise InputError(f"{self.source.shown}: nothing came for {self._options.stall_s:g} s")
        raise InputError(f"{self.source.shown}: the decoder crashed ({how_it_ended(child.end())})")

    def _next(self, child: Child, seconds: float) -> dict[str, Any] | None:
        """The next message; None where the child ended, or was ended because none came."""
        self._expired = False
        with child.deadline(seconds) as expired, suppress(OSError, EOFError, ValueError):
            return receive(child.output)
        self._expired = expired.is_set()
        return None

    def _opened(self, message: dict[str, Any]) -> None:
        self.live, self.length_s = bool(message["live"]), message["length_s"]
        self._was_there = True
        if message["hdr"] and not self._hdr_told:
            self._hdr_told = True
            hdr = message["hdr"]
            self._say(f"note: {self.source.shown} is HDR ({hdr}); its values are taken as stored")

    def _came_back(self) -> bool:
        if self.counts.lost > self.counts.reconnects:
            self.counts.reconnects += 1
            self._say(f"{self.source.shown} is there again")
        return True

    def _take(self, child: Child, message: dict[str, Any]) -> None:
        height, width = message["size"]
        try:
            with child.deadline(self._options.stall_s + 5):
                data = receive_bytes(child.output, height * width * 3)
        except (EOFError, OSError, ValueError):
            return  # the next message is missing, too
        at = self._last = float(message["time"])
        pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
        self.counts.dropped += self._queue.put(FeedFrame(at, pixels), drops=bool(self.live))

    def _count(self, before: FeedCounts, own: dict[str, int]) -> None:
        """Set the counts to those before this connection, and its own."""
        for name, count in own.items():
            setattr(self.counts, name, getattr(before, name) + count)


def _error(message: dict[str, Any]) -> Exception:
    text = str(message.get("message"))
    kinds = {"input": InputError, "missing": MissingError}
    if message["status"] in kinds:
        return kinds[message["status"]](text)
    error = RuntimeError(f"the process that decodes failed: {text.strip().splitlines()[-1]}")
    error.add_note(text)  # the child's traceback, shown where ours is
    return error
