"""Decode ranges of packets, and tell damaged pictures from good ones.

FFmpeg conceals damage and says so in its log only; with "explode" it makes an error of every
complaint, also of those that concern no picture. So files are decoded with "explode" first, and
what fails is decoded again without it and judged by what the decoder says of each picture.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from contextlib import contextmanager
from logging import NullHandler, getLogger
from threading import Lock
from typing import TYPE_CHECKING

from stan_infer.video.packet_index import Index

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

# Complaints of FFmpeg that leave all pictures right: on what the decoder may forget, on what is
# written beside the pictures. Where a picture builds on one that is missing, others follow.
_HARMLESS = re.compile(
    r"mmco: unref short failure|number of reference frames .* exceeds max|Invalid SEI|"
    r"SEI type \d+ size \d+ truncated|unable to decode APP fields|\(repeated"
)
# The packet gives no picture, but those that do not build on it are right.
_LOST = re.compile(
    r"A non-intra slice in an IDR NAL unit|Invalid inter IDR frame|decode_slice_header error|"
    r"no frame!"
)

_LISTENING = Lock()


class Damaged(Exception):
    """A picture that is needed did not decode, or is not what was encoded."""

    def __init__(self, packet: int, message: str, reason: str = "") -> None:
        """packet: where the damage is. message: of the user's error. reason: the decoder's."""
        super().__init__(message)
        self.packet, self.reason = packet, reason or message


class NoPicture(Damaged):
    """A picture that is needed does not come; it may if decoding starts earlier."""


class Misordered(Exception):
    """Pictures do not come in the order of their times."""


@contextmanager
def _complaints(level: int) -> Iterator[list[tuple[int, str, str]]]:
    """Collect what FFmpeg says in this thread; it is a setting of the whole process meanwhile."""
    from av import logging

    with _LISTENING:
        before, skips = logging.get_level(), logging.get_skip_repeated()
        # What FFmpeg says meanwhile in other threads would be printed, unescaped.
        others, nowhere = getLogger("libav"), NullHandler()
        others.addHandler(nowhere)
        propagate, others.propagate = others.propagate, False
        logging.set_level(level)
        logging.set_skip_repeated(False)
        try:
            with logging.Capture() as log:
                yield log
        finally:
            logging.set_skip_repeated(skips)
            logging.set_level(before)
            others.propagate = propagate
            others.removeHandler(nowhere)


class Pictures:
    """The pictures of an open file, range by range.

    strict: every complaint of the decoder raises Damaged. Otherwise damaged pictures are yielded
    with what is wrong; known: packets of which the strict decoder complained in the same ranges.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        index: Index,
        known: dict[int, str] | None = None,
    ) -> None:
        """known: None for strict."""
        self._context, self._index, self._known = stream.codec_context, index, known
        options = dict(self._context.options)
        options.pop("err_detect", None)
        if known is None:
            options["err_detect"] = "explode"
        self._context.options = options
        # In H.264, and reliably only there, a picture is marked if no other refers to it.
        self._thin = known is None and self._context.name == "h264"
        # Packets of size 0 hold no picture; PyAV appends one, which would flush the decoder.
        self._packets = enumerate(p for p in container.demux(stream) if p.size)
        self._damage: dict[int, str] = {}
        self._lost: dict[int, str] = {}

    def decode(
        self, start: int, end: int, needed: Container[int] | None = None
    ) -> Iterator[tuple[int, VideoFrame, Damaged | None]]:
        """Yield (packet, picture, what is wrong with it) of a range, in order of presentation.

        Ranges follow each other; a new one may begin where another was given up.
        needed: packets whose pictures are wanted; others may be missing from what is yielded.
        Raises Damaged, and Misordered where times do not rise.
        """
        index, last, group = self._index, -1, start
        if self._context.is_open:
            self._context.flush_buffers()
        self._damage, self._lost = {}, {}
        for number, packet in self._packets:
            if number < start:
                continue
            for fed in self._fed(number, packet, start, end):
                if fed is not None and needed is not None and self._thin:
                    self._context.skip_frame = "DEFAULT" if number in needed else "NONREF"
                for frame in self._pictures(fed, number):
                    which = self._packet_of(frame, number)
                    if index.ordered:
                        self._check(frame, which, last, start)
                        last = which
                    if index.key[which] and frame.key_frame:
                        group = which
                    yield which, frame, self._wrong(which, group)
            if number >= end:
                return

    def _check(self, frame: VideoFrame, which: int, last: int, start: int) -> None:
        index = self._index
        if frame.pts != which or (last >= 0 and index.time[which] <= index.time[last]):
            raise self._disorder()
        # In a stream without key frames, marks say where pictures are nearly right again.
        if last < 0 and start != index.first and not (which == start and frame.key_frame):
            raise Damaged(start, f"{index.named(start)} is marked as key, but is not")

    def _fed(
        self, number: int, packet: Packet[VideoStream], start: int, end: int
    ) -> Iterator[Packet[VideoStream] | None]:
        index = self._index
        # Frames shown before a key frame may need the group before it, which was passed over.
        early = index.ordered and bool(index.time[number] < index.time[start])
        if not early or (start == index.first and index.lead):
            packet.pts = number  # the decoder hands it to the picture
            yield packet
        if number == end:
            yield None

    def _pictures(self, packet: Packet[VideoStream] | None, number: int) -> list[VideoFrame]:
        import av

        frames: list[VideoFrame] = []
        try:
            if self._known is None:
                frames = self._context.decode(packet)
            else:
                # What a strict decoder takes for an error may be said as DEBUG only.
                strange = packet is not None and number in self._known
                level = av.logging.DEBUG if strange else av.logging.INFO
                with _complaints(level) as log:
                    frames = self._context.decode(packet)
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError as e:
            if self._known is None:
                raise self._damaged(number, str(e.strerror)) from e
            if all(level > av.logging.ERROR for level, _, _ in log):  # else it has the reason
                log.append((av.logging.ERROR, "", str(e.strerror)))
        if self._known is not None:
            self._judge(number, log, self._known[number] if strange else "")
        for frame in frames:
            if frame.is_corrupt:
                which = self._packet_of(frame, number)
                text = "its data is marked as corrupt"
                if self._known is None:
                    raise self._damaged(which, text)
                self._damage.setdefault(which, text)
        return frames

    def _packet_of(self, frame: VideoFrame, number: int) -> int:
        """Return the packet of a picture; packet `number` if the decoder does not tell."""
        told = frame.pts
        return number if told is None or not 0 <= told < len(self._index.key) else told

    def _judge(self, number: int, log: list[tuple[int, str, str]], known: str) -> None:
        import av

        harmless = False
        for level, _, text in log:
            if _HARMLESS.search(text):
                harmless = True
            elif level > av.logging.ERROR and not text.startswith("concealing"):
                continue
            elif _LOST.search(text):
                self._lost.setdefault(number, text.strip())
            else:
                self._damage.setdefault(number, text.strip())
        if known and not harmless and number not in self._lost:
            self._damage.setdefault(number, known)

    def _disorder(self) -> Damaged | Misordered:
        for packet, text in {**self._lost, **self._damage}.items():
            return self._damaged(packet, text)  # damage puts pictures in a wrong order, too
        return Misordered()

    def _damaged(self, packet: int, text: str) -> Damaged:
        return Damaged(packet, f"{self._index.named(packet)} is damaged: {text}", text)

    def missing(self, packet: int) -> Damaged:
        """Return why a packet of the last range gave no picture."""
        text = self._damage.get(packet) or self._lost.get(packet)
        if text:
            return self._damaged(packet, text)
        return NoPicture(packet, f"{self._index.named(packet)} gives no picture")

    def _wrong(self, which: int, group: int) -> Damaged | None:
        """Return the damage of a picture: its own, or that of one on which it may build."""
        if which in self._lost:
            self._damage.setdefault(which, self._lost[which])
        for packet, text in self._damage.items():
            if group <= packet <= which:
                return self._damaged(packet, text)
        return None
