"""Decode chosen frames of one video file with decord, the decoder that the authors use.

decord has an FFmpeg of 2018 inside, follows playlists and returns other frames than those that it
was asked for in some containers. So nothing but a container that its first bytes name reaches it,
and files in which it seeks wrongly are refused (VIDEOS.md has the list, which was measured).
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from stan_infer.errors import InputError, see
from stan_infer.system.file_kind import read_kind
from stan_infer.system.outside_file import open_regular
from stan_infer.video.coded_order import begins_anew
from stan_infer.video.packet_index import MAX_PACKETS, stated
from stan_infer.video.pyav_reader import Found, Sample, Shrink, open_video, package
from stan_infer.video.rgb import display_matrix

if TYPE_CHECKING:
    from av import Packet
    from av.container import InputContainer
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

_PROBED = 2**20 + 2**16  # bytes; FFmpeg looks at the first MiB to find out what a file is
_OPENING = 32  # pictures that are decoded of a codec that reorders them
# What FFmpeg takes for a file that names others. It must stand at the start, where a container's
# own bytes are, except for the third, a line anywhere; none of them is in a video by chance.
_NAMES_FILES = re.compile(
    rb"#EXTM3U|ffconcat version|[\r\n]c=IN IP|# VobSub index|dash:profile|\[InternetShortcut\]"
    rb"|SmoothStreamingMedia",
    re.IGNORECASE,
)
# FFmpeg's readers whose frames decord finds; in AVI only with codecs whose pictures keep their
# order and whose key frames the container lists.
_SEEKS_RIGHT = ("mov", "matroska", "flv")
_RIGHT_IN_AVI = ("mpeg4", "msmpeg4", "msmpeg4v1", "msmpeg4v2", "wmv1", "wmv2", "mjpeg", "dvvideo",
                 "huffyuv", "ffvhuff", "ffv1", "rawvideo", "cinepak", "utvideo")  # fmt: skip


def read_decord(path: Path, sample: Sample, shrink: Shrink, *, as_is: bool = False) -> Found:
    """As `read_pyav`, with decord and the number of frames that it counts.

    as_is: also where decord is known to return other frames than it says. decord conceals damage,
    and may hang or crash if a container gives a wrong number of frames. Raises InputError,
    MissingError.
    """
    decord = package("decord")
    with open_video(path) as (container, stream), _checked(path, container) as name:
        fault, count = (None, None) if as_is else _check(container, stream)
        if fault:
            raise _wrong(path, fault)
        with _errors_named(path, name):
            reader = decord.VideoReader(name, ctx=decord.cpu(0), num_threads=1)
            total = len(reader)
        if total < 1:
            raise InputError(f"{path} holds no frame that decord can read; fetch it again")
        if count is not None and count != total:
            raise _wrong(path, f"it counts {total} frames of {count}")
        indices = sample(total)
        says = stated(container, stream, total)
        numbers = np.unique(indices).tolist()
        with _errors_named(path, name):
            batch = reader.get_batch(numbers).asnumpy()
    images = {number: shrink(image) for number, image in zip(numbers, batch, strict=True)}
    return Found(images, indices, total, (batch.shape[1], batch.shape[2]), says)


def _wrong(path: Path, fault: str) -> InputError:
    return InputError(
        f"decord returns other frames of {path} than those asked for: {fault}; use --decoder pyav, "
        f"or decord-as-is to reproduce what others read with decord{see('VIDEOS')}"
    )


@contextmanager
def _errors_named(path: Path, name: str) -> Iterator[None]:
    """Whatever decord raises is an error of this file, so that a run goes on with the next one."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as e:
        lines = [line for line in str(e).splitlines() if line.strip()] or ["no reason given"]
        reason = lines[-1][-300:].replace(name, path.name)
        raise InputError(f"decord cannot decode {path}: {reason}; try --decoder pyav") from e


@contextmanager
def _checked(path: Path, container: InputContainer) -> Iterator[str]:
    """Yield a name under which decord may open the file, once its first bytes are known ones.

    The name has no suffix or pattern by which FFmpeg chooses a reader, and nothing lies beside it.
    """
    file, _ = open_regular(path)
    with file:
        _check_bytes(path, file, container.format.name.split(","))
        name = f"/proc/self/fd/{file.fileno()}"
        yield name if os.path.exists(name) else os.fspath(path.absolute())


def _check_bytes(path: Path, file: BinaryIO, formats: list[str]) -> None:
    kind = read_kind(file)
    if kind is None or kind.demuxer not in formats:
        reason = f"its first bytes are not those of a container ({formats[0]})"
    elif named := _NAMES_FILES.search(file.read(_PROBED)):
        reason = f"it holds the text {ascii(named[0].strip().decode())}"
    else:
        return
    raise InputError(
        f"{path} is not given to decord, which could take it for a list of other files and open "
        f"those: {reason}; use --decoder pyav"
    )


def _check(container: InputContainer, stream: VideoStream) -> tuple[str | None, int]:
    """Return why decord returns wrong frames, None if it does not, and the number of frames."""
    reader, codec = container.format.name.split(",")[0], stream.codec_context
    if reader not in (*_SEEKS_RIGHT, "avi"):
        return f"it does not seek exactly in this container ({container.format.long_name})", 0
    if reader == "avi" and (codec.has_b_frames or codec.name not in _RIGHT_IN_AVI):
        return f"it does not seek exactly in AVI with {codec.name}", 0
    pts, key = array("q"), bytearray()
    opening: list[Packet] = []
    for packet in container.demux(stream):
        if not packet.size:
            continue
        if packet.is_discard:
            return "it counts frames that the container hides (an edit list)", 0
        if packet.pts is None and reader != "avi":
            return "the container gives no times", 0
        if (
            opening
            and packet.is_keyframe
            and not begins_anew(codec.name, bytes(packet), codec.extradata)
        ):
            return "a key frame does not restart decoding (open GOP)", 0
        if len(opening) < (_OPENING if codec.has_b_frames else 1):
            opening.append(packet)
        pts.append(packet.pts or 0)
        key.append(packet.is_keyframe)
        if len(pts) > MAX_PACKETS:
            return f"it has more than {MAX_PACKETS} frames", 0
    if not key or not key[0]:
        return "it does not begin with a key frame", 0
    fault = None if reader == "avi" else _times_fault(pts, key)
    return fault or _opening_fault(opening, codec, reader), len(pts)


def _times_fault(pts: array[int], key: bytearray) -> str | None:
    times, keys = np.frombuffer(pts, np.int64), np.frombuffer(key, np.bool_)
    if len(np.unique(times)) < len(times):
        return "two frames have the same time"
    before = np.maximum.accumulate(np.where(keys, np.arange(len(keys)), 0))
    if (times < times[before]).any():
        return "frames are shown before the key frame that they follow (open GOP)"
    return None


def _opening_fault(packets: list[Packet], codec: VideoCodecContext, reader: str) -> str | None:
    """What the first pictures show. decord turns pictures as MP4 and MOV say, and does no more."""
    av = package("av")
    times: list[int] = []
    matrix, is_first = None, True
    try:
        for packet in (*packets, None):
            for frame in codec.decode(packet):
                matrix = display_matrix(frame) if is_first else matrix
                is_first = False
                times += [] if frame.pts is None else [frame.pts]
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError:
        return None  # damage, which decord conceals
    if times != sorted(times):
        return "the container stores times of decoding"
    if matrix is None:
        return None
    a, b, c, d = (round(x, 3) for x in matrix)
    turned = a * d - b * c == 1 and max(abs(a), abs(b)) == 1
    if turned and (a == 1 or (reader == "mov" and codec.name != "mjpeg")):  # JPEG turns by EXIF
        return None
    return "it does not turn or mirror pictures as this file asks for"
