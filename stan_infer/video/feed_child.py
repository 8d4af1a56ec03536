"""The process that reads a camera, a stream or a file for `feed`, which starts and ends it.

It sends the frames of a grid as they come; others are decoded, because later ones build on them,
and neither converted nor sent. A frame that is damaged is counted and left out, and so are those
that may build on it: up to the next key frame, at most RECOVER_S.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.errors import InputError, MissingError
from stan_infer.system.child import receive, send
from stan_infer.video.address import PROTOCOLS, Source, without_secrets
from stan_infer.video.decode_child import limit_memory
from stan_infer.video.hdr import TRANSFERS
from stan_infer.video.pyav_reader import FORMATS, MAX_PIXELS, open_video, package
from stan_infer.video.rgb import Image, upright_rgb
from stan_infer.video.timeline import Grid, Timeline

if TYPE_CHECKING:
    from av import Packet, VideoFrame

RECOVER_S = 10.0  # a stream without key frames is right again after some time, too
ALIVE_S = 0.5  # between two messages while frames come of which none is sent
_LIVE_FORMATS = f"{FORMATS},rtsp,rtp,mpjpeg,mjpeg,live_flv"
_NO_TIMES = 128  # FFmpeg's AVFMT_NOTIMESTAMPS: stamps of such a format are made up
Send = Callable[..., None]


def main() -> None:
    """Answer one request on standard input; end when that is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a C library prints must not come between replies
    limit_memory()
    with suppress(Exception, SystemExit):  # a missing package is reported below
        import av  # noqa: F401
    send(replies, {"status": "ready"})
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    os.dup2(2, 1)
    try:
        asked = receive(sys.stdin.buffer)
    except (EOFError, OSError):
        return
    # A driver may hang in a call; this thread ends the process with its parent all the same.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(OSError):  # the parent is gone
        last = _read(asked, lambda message, data=b"": send(replies, message, data))
        send(replies, last)
    os._exit(0)  # FFmpeg may wait for a server when it closes a stream


def _end_with_parent() -> None:
    with suppress(OSError):
        sys.stdin.buffer.read()
    os._exit(0)


def _read(asked: dict[str, Any], tell: Send) -> dict[str, Any]:
    """Read until the source ends; return the last message."""
    source = Source(**asked["source"])
    reader = _Reader(source, asked, tell)
    try:
        reason = reader.run()
        return {"status": "end", "message": reason, "counts": reader.counts}
    except InputError as e:
        return {"status": "input", "message": without_secrets(str(e), source)}
    except MissingError as e:
        return {"status": "missing", "message": str(e)}
    except BrokenPipeError:
        raise
    except Exception:
        import traceback

        text = without_secrets(traceback.format_exc()[-8000:], source)
        return {"status": "bug", "message": text}


class _Reader:
    """Reads one connection. counts: what became of its frames, see feed.FeedCounts."""

    def __init__(self, source: Source, asked: dict[str, Any], tell: Send) -> None:
        """asked: see feed.Feed. last: time of the grid's last frame so far, None: of none yet."""
        self._source, self._tell, self._realtime = source, tell, bool(asked["realtime"])
        self._stall_s = float(asked["stall_s"])
        self._grid = Grid(asked["interval"], asked["last"])
        self._last = -math.inf if asked["last"] is None else float(asked["last"])
        if asked["last"] is not None:
            self._grid.take(self._last)
        self._zero = time.monotonic() - asked["start_s"]
        self._told = 0.0
        self._first: float | None = None  # from the file's stamps to the clock, for realtime
        self._damaged_at: float | None = None  # when damage was seen behind which no key frame was
        self._size: tuple[int, int] | None = None
        names = ("decoded", "skipped", "late", "jumps", "corrupt", "resized")
        self.counts = dict.fromkeys(names, 0)

    def run(self) -> str | None:
        """Send the frames; return why there are no more, None at the end of a recording."""
        av = package("av")
        if self._source.kind == "file":
            with open_video(Path(self._source.name)) as (container, stream):
                return self._frames(av, container, stream, live=self._realtime)
        try:
            container = av.open(self._source.name, **_options(av, self._source, self._stall_s))
        except av.error.ProtocolNotFoundError as e:
            shown, name = self._source.shown, self._source.scheme
            raise MissingError(
                f"cannot open {shown}: the FFmpeg in this PyAV was built without {name}. Let "
                f"ffmpeg receive it: ffmpeg -i {shown} -c copy -f mpegts udp://127.0.0.1:5000, "
                "and watch udp://127.0.0.1:5000"
            ) from e
        except av.error.FFmpegError as e:
            raise InputError(self._unopened(e)) from e
        with container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None:
                raise InputError(f"{self._source.shown} has no video that FFmpeg can decode")
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            stream.codec_context.thread_count = 1
            is_recorded = self._source.may_be_recorded and bool(container.duration)
            return self._frames(av, container, stream, live=not is_recorded)

    def _unopened(self, e: Any) -> str:
        reason = e.strerror or str(e)
        if e.errno in (errno.EINVAL, errno.EIO) or type(e).__name__ == "InvalidDataError":
            reason = "nothing came that is read as a video (a page, a playlist?)"
        elif type(e).__name__ == "ExitError":
            reason = f"no picture came within {self._stall_s:g} s"
        return f"cannot open {self._source.shown}: {reason}; check the address, or the camera"

    def _frames(self, av: Any, container: Any, stream: Any, *, live: bool) -> str | None:
        timeline = Timeline(live, self._last)
        has_times = not container.format.flags & _NO_TIMES
        if not has_times and not live:
            raise InputError(
                f"{self._source.shown}: this kind of file does not say when its frames are shown; "
                "put it into a container, as in: ffmpeg -r 25 -i FILE -c copy OUT.mkv"
            )
        hdr = TRANSFERS.get(int(stream.codec_context.color_trc))
        length = container.duration / av.time_base if container.duration and not live else None
        self._tell({"status": "opened", "live": live, "hdr": hdr, "length_s": length})
        try:
            for packet in container.demux(stream):
                for frame in self._decoded(av, packet):
                    stamp = frame.time if has_times else None
                    self._frame(frame, stamp, timeline)
                self._alive(timeline)
        except av.error.FFmpegError as e:
            reason = e.strerror or str(e)
            if type(e).__name__ == "ExitError":
                reason = f"no data for {self._stall_s:g} s"
            elif e.errno == errno.EIO:  # FFmpeg's word for an end that was not announced
                reason = "it broke off"
            if not live:
                raise InputError(
                    f"{self._source.shown} cannot be read to its end: {reason}; fetch it again"
                ) from e
            return without_secrets(reason, self._source)
        return "the stream ended" if live and not self._realtime else None

    def _decoded(self, av: Any, packet: Packet[Any]) -> list[VideoFrame]:
        """The frames of a packet, without those that are damaged."""
        now = time.monotonic()
        if packet.is_corrupt:
            self._damaged_at = now
        try:
            frames: list[Any] = packet.decode()
        except av.error.MemoryError:
            raise
        except av.error.InvalidDataError:
            self.counts["corrupt"] += 1
            self._damaged_at = now
            return []
        whole = []
        for frame in frames:
            if frame.is_corrupt:
                self._damaged_at = now
            elif self._damaged_at is not None and (
                (frame.key_frame and not packet.is_corrupt) or now - self._damaged_at > RECOVER_S
            ):
                self._damaged_at = None
            if self._damaged_at is None:
                whole.append(frame)
            else:
                self.counts["corrupt"] += 1
        return whole

    def _frame(self, frame: VideoFrame, stamp: float | None, timeline: Timeline) -> None:
        self.counts["decoded"] += 1
        now = time.monotonic() - self._zero
        if self._realtime and stamp is not None:
            # As a camera would show it: the file's first frame now, the others later.
            self._first = now - stamp if self._first is None else self._first
            time.sleep(max(0.0, stamp + self._first - now))
            now = time.monotonic() - self._zero
        at = timeline.place(stamp, now)
        self.counts["jumps"] = timeline.jumps
        if at is None:
            self.counts["late"] += 1
            return
        taken = self._grid.take(at)
        if taken is None:
            self.counts["skipped"] += 1
            return
        image = self._converted(frame)
        message = {"status": "frame", "time": taken, "size": image.shape[:2], "counts": self.counts}
        self._tell(message, image.data)
        self._told = time.monotonic()

    def _converted(self, frame: VideoFrame) -> Image:
        size = frame.height, frame.width
        if frame.width * frame.height > MAX_PIXELS:
            raise InputError(
                f"{self._source.shown}: a frame of {frame.width}x{frame.height} is too large; at "
                f"most {MAX_PIXELS} pixels are allowed: make it smaller"
            )
        self.counts["resized"] += self._size not in (None, size)
        self._size = size
        return upright_rgb(frame, Path(self._source.shown))

    def _alive(self, timeline: Timeline) -> None:
        """Say that frames come, although none was sent for a while."""
        now = time.monotonic()
        if now - self._told > ALIVE_S:
            self._told = now
            self._tell({"status": "alive", "counts": self.counts})


def _options(av: Any, source: Source, stall_s: float) -> dict[str, Any]:
    """What av.open is given for a camera or an address."""
    if source.kind == "device":
        return {"format": "v4l2", "timeout": stall_s}
    limits = {"protocol_whitelist": PROTOCOLS[source.scheme], "format_whitelist": _LIVE_FORMATS}
    # Over UDP, which is RTSP's first choice, a lost packet is a damaged picture.
    limits |= {"rtsp_flags": "prefer_tcp"} if source.scheme in ("rtsp", "rtsps") else {}
    return {"container_options": limits, "timeout": stall_s}


if __name__ == "__main__":
    main()
