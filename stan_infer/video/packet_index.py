"""Which packet of a video stream holds which frame, and where decoding can start.

Only packets are read, nothing is decoded. Packets are identified by their number, so that no
container has to seek. Times in containers are not trusted: where they cannot be those of one
recording in order, frames are ordered by what the pictures themselves say (`coded_order`) or, if
that is not known either, left in the order of decoding.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError
from stan_infer.video.coded_order import KINDS, UNKNOWN, begins_anew, places
from stan_infer.video.hdr import TRANSFERS

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.stream import VideoStream

MAX_PACKETS = 10_000_000
# These hold no presentation times; FFmpeg reports guesses that follow the order of decoding.
_UNTIMED = {"avi", "h264", "hevc", "m4v", "mpegvideo", "obu"}
_RATE_GUESSED = _UNTIMED - {"avi"}  # bare streams, whose rate FFmpeg makes up

Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Index:
    """What is known from the packets of the video stream before anything is decoded."""

    time: Indices  # [packets], rises with presentation: the container's times, or places
    key: NDArray[np.bool_]  # [packets]
    order: Indices  # [frames], the packet of every frame
    ordered: bool  # True: in order of presentation, and time identifies a frame; else of decoding
    first: int  # the first key packet; those before it cannot be decoded
    lead: int  # frames shown before the first key frame
    anew: bool  # the first key packet says that no later one builds on an earlier one
    unit: float | None  # seconds of a unit of time; None: time is not the container's
    period: float | None  # seconds between two frames by the container's rate; None: not known

    @property
    def seconds(self) -> NDArray[np.float64] | None:
        """When each frame is shown, in seconds from the first [frames]; None: nothing says it.

        Where the container has no times that can be right, frames follow each other at its rate.
        """
        if len(self.order) == 1:
            return np.zeros(1)  # time begins with it
        if self.ordered and self.unit is not None:
            units = self.time[self.order] - self.time[self.order[0]]
            return np.asarray(units * self.unit, np.float64)
        if self.period is None:
            return None
        return np.asarray(np.arange(len(self.order)) * self.period, np.float64)

    def named(self, packet: int) -> str:
        """Return the name of a packet's picture for a message: its frame number, if it has one."""
        place = np.flatnonzero(self.order == packet)
        if not self.ordered or not len(place):
            return f"the picture in packet {packet}"
        return f"frame {place[0]} of {len(self.order)}"

    def ranges(self, packets: Indices, back: int = 0) -> list[tuple[int, int]]:
        """Return (first, last) of runs of packets that hold the given ones and begin with a key.

        back: begin so many key packets earlier.
        """
        keys = np.flatnonzero(self.key[self.first :]) + self.first
        ranges: list[tuple[int, int]] = []
        for packet in np.sort(packets).tolist():
            before = keys[: np.searchsorted(keys, packet, side="right")]
            # Frames shown before a key frame may build on the group before it.
            place = len(before) - 1
            while place >= 0 and self.time[before[place]] > self.time[packet]:
                place -= 1
            start = int(before[place - back]) if place >= back else self.first
            while ranges and start <= ranges[-1][1] + 1:
                start = min(start, ranges.pop()[0])
            ranges.append((start, packet))
        return ranges


@dataclass
class _Packets:
    """What `scan` notes of every packet."""

    pts: array[int] = field(default_factory=lambda: array("q"))
    key: bytearray = field(default_factory=bytearray)
    shown: bytearray = field(default_factory=bytearray)
    kinds: bytearray = field(default_factory=bytearray)
    latest: int | None = None  # decode time
    broken: bool = False  # a time is missing, or decode times fall: parts that were joined
    anew: bool | None = None

    def add(self, packet: Packet[Stream], codec: str, extradata: bytes | None) -> None:
        # VP8 stores pictures that are only references as packets of their own (RFC 6386, 9.1).
        hidden = codec == "vp8" and not memoryview(packet)[0] & 0x10
        visible = not (packet.is_discard or hidden)
        self.broken |= visible and packet.pts is None
        if packet.dts is not None:
            self.broken |= self.latest is not None and packet.dts < self.latest
            self.latest = packet.dts
        self.pts.append(packet.pts if packet.pts is not None else 0)
        self.key.append(packet.is_keyframe)
        self.shown.append(visible)
        kind = KINDS.get(codec)
        self.kinds.append(kind(bytes(packet)) if kind else UNKNOWN)
        if self.anew is None and packet.is_keyframe:
            self.anew = begins_anew(codec, bytes(packet), extradata)


def scan(path: Path, container: InputContainer, stream: VideoStream) -> Index:
    """Read all packets of an open file.

    Raises InputError for a file without frames, with too many, or one that is cut off.
    """
    context, packets, partial = stream.codec_context, _Packets(), False
    codec, extradata = context.name, context.extradata
    for packet in container.demux():
        if not packet.size:
            continue
        partial = packet.is_corrupt
        if packet.stream_index != stream.index:
            continue
        packets.add(packet, codec, extradata)
        if len(packets.pts) > MAX_PACKETS:
            raise InputError(f"{path} has more than {MAX_PACKETS} frames; cut it into parts")
    time = np.frombuffer(packets.pts, np.int64)
    if partial:
        _check_end(path, container, stream, time)
    intra = bool(context.codec.intra_only)
    key = np.ones(len(time), np.bool_) if intra else np.frombuffer(packets.key, np.bool_)
    shown = np.frombuffer(packets.shown, np.bool_)
    first = int(key.argmax()) if key.any() else 0
    order = first + np.flatnonzero(shown[first:])
    if not len(order):
        raise InputError(f"{path} holds no frame: its video stream is empty; fetch it again")
    anew = bool(packets.anew)
    rate = 0 if container.format.name in _RATE_GUESSED else stream.average_rate or 0
    unit, period = float(stream.time_base or 0) or None, 1 / float(rate) if rate else None
    if packets.broken or container.format.name in _UNTIMED or not _told_by(time, order, stream):
        known = places(codec, intra=intra, kinds=bytes(packets.kinds), shown=shown)
        if known is None:
            return Index(time, key, order, False, first, 0, anew, None, period)
        time, unit = known, None
    order = order[np.argsort(time[order])]
    lead = int((time[order] < time[first]).sum())
    return Index(time, key, order, True, first, lead, anew, unit, period)


@dataclass(frozen=True)
class Stated:
    """What a file's header says. seconds: how long the video lasts, None: it does not say.

    hdr: "PQ" or "HLG", the transfer of a video in HDR; None: another one, or none is named.
    """

    seconds: float | None
    hdr: str | None


def stated(container: InputContainer, stream: VideoStream, frames: int) -> Stated:
    """What the header of a video of so many frames says."""
    transfer = TRANSFERS.get(int(stream.codec_context.color_trc or 0))
    return Stated(_seconds(container, stream, frames), transfer)


def _seconds(container: InputContainer, stream: VideoStream, frames: int) -> float | None:
    if container.format.name in _RATE_GUESSED:
        return None
    seconds = 0.0
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration:
        seconds = container.duration / 1e6
    elif stream.average_rate:
        seconds = frames / float(stream.average_rate)
    return seconds if seconds > 0 else None


def _check_end(path: Path, container: InputContainer, stream: VideoStream, time: Indices) -> None:
    """Refuse a file that ends within a packet, if it says how much more there was."""
    if stream.frames > len(time):
        raise InputError(
            f"{path} is cut off: {len(time)} of the {stream.frames} frames that it lists are "
            "there; fetch it again"
        )
    there = float(np.ptp(time)) * float(stream.time_base or 0) if len(time) else 0.0
    stated = (container.duration or 0) / 1e6
    if container.format.name not in _UNTIMED and there + 1 < stated:
        raise InputError(
            f"{path} is cut off: it ends within a packet after {there:.1f} of {stated:.1f} s; "
            "fetch it again"
        )


def _told_by(time: Indices, order: Indices, stream: VideoStream) -> bool:
    """Whether the container's times tell the order of presentation."""
    shown = time[order]
    # Some programs store the time of decoding: then times rise although the codec reorders.
    if stream.codec_context.has_b_frames and (np.diff(shown) > 0).all():
        return False
    return len(np.unique(shown)) == len(shown)
