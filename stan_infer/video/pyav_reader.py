"""Decode chosen frames of one video file with PyAV; `clip.read_clip` calls it.

There are two passes over the file. The first reads packets only: it counts the frames (the numbers
in containers are wrong or absent too often) and finds which packet holds which frame and where
decoding can start. The second decodes the groups of pictures that hold a chosen frame and passes
over the others. Packets are identified by their number, so that no container has to seek.
A file may come from a stranger: only known containers are opened, and damage in a picture that is
needed is an error, never a concealed picture.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stan_infer.errors import InputError
from stan_infer.system.file_kind import kind_of_file
from stan_infer.system.packages import require
from stan_infer.video.picture import Image, upright_rgb

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

MAX_PIXELS = 2**26
MAX_PACKETS = 10_000_000
# FFmpeg's names. Playlists, image sequences and edit scripts (hls, dash, concat, image2) are left
# out on purpose: they name other files, so a stranger's file could read any path of this machine.
_FORMATS = (
    "mov,matroska,webm,avi,flv,mpegts,mpeg,mpegvideo,asf,gif,h264,hevc,m4v,obu,ivf,ogg,mxf,nut"
)
# These hold no presentation times; FFmpeg reports guesses that follow the order of decoding.
_UNTIMED = {"avi", "h264", "hevc", "m4v", "mpegvideo", "obu"}

Indices: TypeAlias = NDArray[np.int64]
Sample: TypeAlias = Callable[[int], Indices]  # count of frames -> the chosen ones
Shrink: TypeAlias = Callable[[Image], Image]  # a full picture -> what is kept of it


@dataclass(frozen=True)
class Found:
    """The chosen frames. images: by frame number, after Shrink. size: (height, width) before it."""

    images: dict[int, Image]
    indices: Indices
    total_frames: int
    size: tuple[int, int]


def package(module: Literal["av", "decord"]) -> Any:
    """Import an optional package, or raise MissingError with the command that installs it."""
    return require(module, "reading videos", "decord" if module == "decord" else "runtime")


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into an InputError that names the file."""
    av = package("av")
    try:
        yield
    except MemoryError as e:
        raise InputError(f"decoding {path} takes too much memory; make its frames smaller") from e
    except (av.error.FFmpegError, OSError, ValueError) as e:
        raise InputError(
            f"cannot decode {path}: {_reason(e)}; fetch the file again or re-encode it"
        ) from e


def _reason(e: BaseException) -> str:
    text = str(getattr(e, "strerror", None) or e)
    log = getattr(e, "log", None)  # (level, who, text) of FFmpeg's last message
    return f"{text} ({log[2].strip()})" if log else text[:300]


class _Damaged(Exception):
    """A picture that is needed did not decode."""


class _Untimed(Exception):
    """Pictures do not come in the order of their times."""


@dataclass(frozen=True)
class _Index:
    """What is known from the packets of the video stream before anything is decoded."""

    pts: Indices  # [packets], presentation times
    key: NDArray[np.bool_]  # [packets]
    order: Indices  # [frames], the packet of every frame
    timed: bool  # True: in order of presentation, and pts identifies a frame; else of decoding
    first: int  # the first key packet; those before it cannot be decoded
    lead: int  # frames shown before the first key frame


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file of a known container and its main video stream, decoder ready to start.

    Raises InputError, with the reason, for a file that is not a video, or one of too large frames.
    """
    av = package("av")
    options = {"protocol_whitelist": "file", "format_whitelist": _FORMATS}
    try:
        container = av.open(
            f"file:{path.absolute()}", container_options=options, **_any_metadata(av)
        )
    except av.error.FFmpegError as e:
        kind = kind_of_file(path)
        if kind is not None and kind.family != "video":
            raise kind.refused(path) from e
        if e.errno == errno.EINVAL:  # FFmpeg's answer to a format that is not on the list
            raise InputError(
                f"{path} is not a video: its contents are of no kind that is read; allowed are "
                "containers such as MP4, MKV, WebM, AVI, MPEG and GIF"
                if kind is None
                else f"{path} is not a video for FFmpeg: its name looks like something else; "
                "rename it"
            ) from e
        raise InputError(
            f"{path} is not a video, or is cut off or damaged: {_reason(e)}; fetch it again"
        ) from e
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
            kinds = sorted({s.type for s in container.streams if s.type != "video"})
            kinds += ["a cover picture"] if stream is not None else []
            raise InputError(
                f"{path} holds no video stream, only {' and '.join(kinds) or 'nothing'}; give a "
                "file with video"
            )
        context = stream.codec_context
        if context is None:
            raise InputError(f"{path}: FFmpeg has no decoder for its codec; re-encode it as H.264")
        if context.width * context.height > MAX_PIXELS:
            raise InputError(
                f"{path}: frames of {context.width}x{context.height} are too large; at most "
                f"{MAX_PIXELS} pixels are allowed: make it smaller"
            )
        # Several processes decode at the same time; threads in each would only compete.
        context.thread_count, context.thread_type = 1, "NONE"
        context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
        yield container, stream


def _any_metadata(av: Any) -> dict[str, str]:
    """Options of av.open with which it takes tags that are not UTF-8, such as a title in Latin-1.

    PyAV before 19 refuses such a file without the option; PyAV 19 takes it and has no such option.
    """
    has_option = hasattr(av.container.Container, "metadata_errors")
    return {"metadata_errors": "replace"} if has_option else {}


def _scan(path: Path) -> _Index:
    pts, key, shown = array("q"), bytearray(), bytearray()
    missing, partial = False, False
    with open_video(path) as (container, stream):
        vp8 = stream.codec_context.name == "vp8"
        for packet in container.demux():
            if not packet.size:
                continue
            partial = packet.is_corrupt
            if packet.stream_index != stream.index:
                continue
            # VP8 stores pictures that are only references as packets of their own (RFC 6386, 9.1).
            visible = not (packet.is_discard or (vp8 and not memoryview(packet)[0] & 0x10))
            missing |= visible and packet.pts is None
            pts.append(packet.pts if packet.pts is not None else 0)
            key.append(packet.is_keyframe)
            shown.append(visible)
            if len(pts) > MAX_PACKETS:
                raise InputError(f"{path} has more than {MAX_PACKETS} frames; cut it into parts")
        if partial and stream.frames > len(pts):
            raise InputError(
                f"{path} is cut off: {len(pts)} of the {stream.frames} frames that it lists are "
                "there; fetch it again"
            )
        untimed = missing or container.format.name in _UNTIMED
        reorders = bool(stream.codec_context.has_b_frames)
    times = np.frombuffer(pts, np.int64)
    keys = np.frombuffer(key, np.bool_)
    first = int(keys.argmax()) if keys.any() else 0
    order = first + np.flatnonzero(np.frombuffer(shown, np.bool_)[first:])
    if not len(order):
        raise InputError(f"{path} holds no frame: its video stream is empty; fetch it again")
    ascending = bool((np.diff(times[order]) > 0).all())
    # Some programs store the time of decoding: then times rise although the codec reorders.
    untimed |= (ascending and reorders) or len(np.unique(times[order])) < len(order)
    if untimed:
        return _Index(times, keys, order, False, first, 0)
    order = order[np.argsort(times[order])]
    return _Index(times, keys, order, True, first, int((times[order] < times[first]).sum()))


def read_pyav(path: Path, sample: Sample, shrink: Shrink) -> Found:
    """Decode the frames that `sample` chooses with PyAV; each is rotated, then given to `shrink`.

    Frames are numbered as they are shown. Raises InputError for a file that cannot be read or is
    damaged.
    """
    index = _scan(path)
    try:
        if index.timed:
            index = _without_broken_lead(path, index)
            for straight in (False, True):
                try:
                    indices = sample(len(index.order))
                    return _by_time(path, index, indices, shrink, straight=straight)
                except _Untimed:
                    continue
                except _Damaged:
                    # A packet wrongly marked as a key frame looks like damage, too: decode all.
                    if straight:
                        raise
        return _by_count(path, replace(index, timed=False), sample, shrink)
    except _Damaged as e:
        raise InputError(f"{path}: {e}; fetch it again or re-encode it") from e


def _without_broken_lead(path: Path, index: _Index) -> _Index:
    """Drop the frames before the first key frame if they need a group that was cut away."""
    if not index.lead:
        return index
    leading = index.order[: index.lead]
    with open_video(path) as (container, stream):
        try:
            ranges = [(index.first, int(leading.max()))]
            times = {frame.pts for frame in _frames(container, stream, index, ranges)}
        except (_Damaged, _Untimed):
            times = set()
    if times.issuperset(index.pts[leading].tolist()):
        return index
    return replace(index, order=index.order[index.lead :], lead=0)


def _by_time(
    path: Path, index: _Index, indices: Indices, shrink: Shrink, *, straight: bool
) -> Found:
    numbers = np.unique(indices)
    packets = index.order[numbers]
    wanted = dict(zip(index.pts[packets].tolist(), numbers.tolist(), strict=True))
    ranges = [(index.first, int(packets.max()))] if straight else _ranges(index, packets)
    images: dict[int, Image] = {}
    size = (0, 0)
    with open_video(path) as (container, stream):
        # In H.264, and reliably only there, a picture is marked if no other refers to it.
        thin = not straight and stream.codec_context.name == "h264"
        needed = set(packets.tolist()) if thin else None
        for frame in _frames(container, stream, index, ranges, needed=needed):
            number = wanted.get(frame.pts)
            if number is not None:
                image = _rgb(path, frame)
                size = size if images else image.shape[:2]
                images[number] = shrink(image)
    for number in numbers.tolist():
        if number not in images:
            raise _Damaged(f"frame {number} of {len(index.order)} gives no picture")
    return Found(images, indices, len(index.order), size)


def _by_count(path: Path, index: _Index, sample: Sample, shrink: Shrink) -> Found:
    """Decode everything in order: the only way to number frames that carry no time."""
    total = len(index.order)
    for _ in range(2):
        indices = sample(total)
        wanted, count, size = set(indices.tolist()), 0, (0, 0)
        images: dict[int, Image] = {}
        with open_video(path) as (container, stream):
            try:
                for frame in _frames(container, stream, index, [(index.first, len(index.pts) - 1)]):
                    if count in wanted:
                        image = _rgb(path, frame)
                        size = size if images else image.shape[:2]
                        images[count] = shrink(image)
                    count += 1
            except _Damaged:
                if len(images) < len(wanted):
                    raise _Damaged(f"a frame soon after frame {count - 1} is damaged") from None
                count = total
        if count == total:
            return Found(images, indices, total, size)
        # Packets and pictures may differ in number (fields, placeholders): count what decodes.
        total = count
        if not total:
            break
    raise _Damaged("no frame of it can be decoded")


def _ranges(index: _Index, packets: Indices) -> list[tuple[int, int]]:
    """Return (first, last) of runs of packets that hold the wanted ones and begin with a key."""
    keys = np.flatnonzero(index.key)
    ranges: list[tuple[int, int]] = []
    for packet in np.sort(packets).tolist():
        before = keys[(keys <= packet) & (keys >= index.first)]
        before = before[index.pts[before] <= index.pts[packet]]
        start = int(before[-1]) if len(before) else index.first
        while ranges and start <= ranges[-1][1] + 1:
            start = min(start, ranges.pop()[0])
        ranges.append((start, packet))
    return ranges


def _frames(
    container: InputContainer,
    stream: VideoStream,
    index: _Index,
    ranges: Iterable[tuple[int, int]],
    *,
    needed: set[int] | None = None,
) -> Iterator[VideoFrame]:
    """Yield the pictures that the packets of each range decode to, in order of presentation.

    needed: packets whose pictures are wanted; of the others only reference pictures are decoded.
    Raises _Damaged for damage and _Untimed where times do not rise.
    """
    todo = iter(ranges)
    start, end = next(todo)
    last: int | None = None
    # Packets of size 0 hold no picture; PyAV appends one at the end, which would flush the decoder.
    for number, packet in enumerate(p for p in container.demux(stream) if p.size):
        if number < start:
            continue
        # Frames shown before a key frame may need the group before it, which was passed over.
        early = index.timed and bool(index.pts[number] < index.pts[start])
        packets: list[Packet | None] = []
        if not early or (start == index.first and index.lead):
            packets.append(packet)
        if number == end:
            packets.append(None)
        if needed is not None:
            stream.codec_context.skip_frame = "DEFAULT" if number in needed else "NONREF"
        for fed in packets:
            for frame in _decode(stream.codec_context, fed, index, number):
                if index.timed:
                    if frame.pts is None or (last is not None and frame.pts <= last):
                        raise _Untimed
                    last = frame.pts
                    if frame.pts == index.pts[start] and start != index.first:
                        if not frame.key_frame:
                            raise _Damaged(f"{_named(index, start)} is marked as key, but is not")
                yield frame
        if number == end:
            following = next(todo, None)
            if following is None:
                return
            stream.codec_context.flush_buffers()
            start, end = following
            last = None


def _decode(
    context: VideoCodecContext, packet: Packet | None, index: _Index, number: int
) -> list[VideoFrame]:
    import av

    try:
        frames = context.decode(packet)
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError as e:
        raise _Damaged(f"{_named(index, number)} is damaged: {_reason(e)}") from e
    if any(frame.is_corrupt for frame in frames):
        raise _Damaged(f"{_named(index, number)} or one just before it is damaged")
    return frames


def _named(index: _Index, packet: int) -> str:
    place = np.flatnonzero(index.order == packet)
    if not index.timed or not len(place):
        return f"the picture in packet {packet}"
    return f"frame {place[0]} of {len(index.order)}"


def _rgb(path: Path, frame: VideoFrame) -> Image:
    if frame.width * frame.height > MAX_PIXELS:
        raise InputError(
            f"{path}: a frame of {frame.width}x{frame.height} is too large; at most {MAX_PIXELS} "
            "pixels are allowed: make it smaller"
        )
    return upright_rgb(frame, path)
