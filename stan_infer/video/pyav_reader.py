"""Decode chosen frames of one video file with PyAV; `clip.read_clip` calls it.

There are two passes over the file. The first reads packets only (`packet_index`): it counts the
frames (the numbers in containers are wrong or absent too often) and finds which packet holds which
frame and where decoding can start. The second decodes the groups of pictures that hold a chosen
frame (`pictures`) and passes over the others; where that fails, it starts earlier.
A file may come from a stranger: only known containers are opened, and damage in a picture that is
needed is an error, never a concealed picture.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from stan_infer.errors import InputError
from stan_infer.system.outside_file import kind_of_file
from stan_infer.system.packages import require
from stan_infer.video.packet_index import Index, Indices, Stated, scan, stated
from stan_infer.video.pictures import Damaged, Misordered, Pictures
from stan_infer.video.rgb import Image, upright_rgb

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

MAX_PIXELS = 2**26
_ROOM = 2**23  # bytes
# FFmpeg's names. Playlists, image sequences and edit scripts (hls, dash, concat, image2) are left
# out on purpose: they name other files, so a stranger's file could read any path of this machine.
FORMATS = (
    "mov,matroska,webm,avi,flv,mpegts,mpeg,mpegvideo,asf,gif,h264,hevc,m4v,obu,ivf,ogg,mxf,nut"
)

Sample: TypeAlias = Callable[[int], Indices]  # count of frames -> the chosen ones
Shrink: TypeAlias = Callable[[Image], Image]  # a full picture -> what is kept of it


@dataclass(frozen=True)
class Found:
    """The chosen frames. images: by frame number, after Shrink. size: (height, width) before it.

    stated: what the file's header says.
    """

    images: dict[int, Image]
    indices: Indices
    total_frames: int
    size: tuple[int, int]
    stated: Stated


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


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file of a known container and its main video stream, decoder ready to start.

    Raises InputError, with the reason, for a file that is not a video, or one of too large frames.
    """
    av = package("av")
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
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
        context.options = {"max_pixels": str(MAX_PIXELS)}
        yield container, stream


def _any_metadata(av: Any) -> dict[str, str]:
    """Options of av.open with which it takes tags that are not UTF-8, such as a title in Latin-1.

    PyAV before 19 refuses such a file without the option; PyAV 19 takes it and has no such option.
    """
    has_option = hasattr(av.container.Container, "metadata_errors")
    return {"metadata_errors": "replace"} if has_option else {}


def read_pyav(path: Path, sample: Sample, shrink: Shrink) -> Found:
    """Decode the frames that `sample` chooses with PyAV; each is rotated, then given to `shrink`.

    Frames are numbered as they are shown. Raises InputError for a file that cannot be read or is
    damaged.
    """
    return read_indexed(path, index_of(path), sample, shrink)


@dataclass(frozen=True)
class Indexed:
    """What is known of a file before a frame of it is decoded. stated: see Found."""

    index: Index
    stated: Stated


def index_of(path: Path) -> Indexed:
    """Read the packets of a file, as the first of the two passes. Raises InputError."""
    with open_video(path) as (container, stream):
        index = scan(path, container, stream)
        says = stated(container, stream, len(index.order))
    with _damage_named(path):
        try:
            return Indexed(_from_first_picture(path, index) if index.ordered else index, says)
        except Misordered:
            return Indexed(_as_decoded(index), says)


def read_indexed(path: Path, indexed: Indexed, sample: Sample, shrink: Shrink) -> Found:
    """As `read_pyav`, of a file whose packets were read by `index_of`."""
    index, says = indexed.index, indexed.stated
    with _damage_named(path):
        if index.ordered:
            try:
                return _by_time(path, index, sample(len(index.order)), shrink, says)
            except Misordered:
                index = _as_decoded(index)
        return _by_count(path, index, sample, shrink, says)


def _as_decoded(index: Index) -> Index:
    """The same frames in the order of decoding, for times that turned out to be wrong."""
    return replace(index, ordered=False, order=np.sort(index.order), lead=0, unit=None)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except Damaged as e:
        raise InputError(f"{path}: {e}; fetch it again or re-encode it") from e


@contextmanager
def _pictures(path: Path, index: Index, known: dict[int, str] | None) -> Iterator[Pictures]:
    with open_video(path) as (container, stream):
        yield Pictures(container, stream, index, known)


def _from_first_picture(path: Path, index: Index) -> Index:
    """Drop the frames at the start that build on pictures that were cut away."""
    if index.anew and not index.lead:
        return index
    with _pictures(path, index, {}) as pictures:
        shown = pictures.decode(index.first, len(index.key) - 1)
        first = next(((packet, wrong) for packet, _, wrong in shown), None)
    if first is None:
        raise Damaged(index.first, "no frame of it can be decoded")
    packet, wrong = first
    time = index.time[index.first if wrong else packet]
    order = index.order[index.time[index.order] >= time]
    if not len(order):
        raise Damaged(index.first, "no frame of it can be decoded")
    lead = int((index.time[order] < index.time[index.first]).sum())
    return replace(index, order=order, lead=lead)


def _by_time(path: Path, index: Index, indices: Indices, shrink: Shrink, says: Stated) -> Found:
    taken = _Taken(path, index, shrink)
    missing = np.unique(indices).tolist()
    failures = taken.take(missing, 0, strict=True)
    seen: list[Damaged | Misordered] = []
    back = 0  # key frames to go back from the nearest
    while missing := [number for number in missing if number not in taken.images]:
        failures = taken.take(missing, back, strict=False)
        if failures:
            start, failure = min(failures.items(), key=lambda item: item[0])
            # What fails from the first packet fails for good, and so does what is damaged at the
            # same packet wherever decoding starts.
            seen = [*seen[-2:], failure]
            if start == index.first or (len(seen) == 3 and _same(seen)):
                raise failure
        back = max(1, 2 * back)
    size = taken.sizes[min(taken.sizes)]
    return Found(taken.images, indices, len(index.order), size, says)


def _same(failures: list[Damaged | Misordered]) -> bool:
    return len({str(e) for e in failures}) == 1 and type(failures[0]) is Damaged


class _Taken:
    """The frames found so far. images, sizes: by frame number."""

    def __init__(self, path: Path, index: Index, shrink: Shrink) -> None:
        self._path, self._index, self._shrink = path, index, shrink
        self._known: dict[int, str] = {}
        self._room: list[Image] = []
        self.images: dict[int, Image] = {}
        self.sizes: dict[int, tuple[int, int]] = {}

    def take(
        self, missing: list[int], back: int, *, strict: bool
    ) -> dict[int, Damaged | Misordered]:
        """Decode frames by number; return what failed, by the packet from which it was decoded."""
        index = self._index
        failures: dict[int, Damaged | Misordered] = {}
        packets = index.order[missing]
        wanted = dict(zip(packets.tolist(), missing, strict=True))
        known = None if strict else {} if back else self._known
        with _pictures(self._path, index, known) as pictures:
            for start, end in index.ranges(packets, back):
                try:
                    for packet, frame, wrong in pictures.decode(start, end, wanted):
                        if packet not in wanted:
                            continue
                        if wrong:
                            failures.setdefault(start, wrong)
                        else:
                            self._keep(wanted[packet], frame)
                except (Damaged, Misordered) as e:
                    failures.setdefault(start, e)
                    if strict and isinstance(e, Damaged):
                        self._known[e.packet] = e.reason
                for packet, number in wanted.items():
                    if start <= packet <= end and number not in self.images:
                        failures.setdefault(start, pictures.missing(packet))
        return failures

    def _keep(self, number: int, frame: VideoFrame) -> None:
        image = _rgb(self._path, frame)
        self.sizes[number] = image.shape[:2]
        small = self._shrink(image)
        # Side by side: one by one they would lie between the large frames of the decoder, whose
        # memory could then not be used again (1 MB for each frame of 720p).
        if not self._room or self._room[-1].shape != small.shape:
            count = max(1, _ROOM // small.nbytes)
            self._room = [*np.empty((count, *small.shape), np.uint8)]
        self.images[number] = self._room.pop()
        self.images[number][...] = small


def _by_count(path: Path, index: Index, sample: Sample, shrink: Shrink, says: Stated) -> Found:
    """Decode everything in order: the only way to number frames whose order is not known."""
    total, known = len(index.order), None
    while True:
        indices = sample(total)
        wanted, count, failure = set(indices.tolist()), 0, None
        images: dict[int, Image] = {}
        sizes: list[tuple[int, int]] = []
        with _pictures(path, index, known) as pictures:
            try:
                for _, frame, wrong in pictures.decode(index.first, len(index.key) - 1):
                    if count in wanted and not wrong:
                        image = _rgb(path, frame)
                        sizes.append(image.shape[:2])
                        images[count] = shrink(image)
                    elif count in wanted:
                        failure = failure or wrong
                    count += 1
            except Damaged as e:  # of the strict decoder
                known = {e.packet: e.reason}
                continue
        if not count:
            raise Damaged(index.first, "no frame of it can be decoded")
        # Packets and pictures may differ in number (fields, placeholders): count what decodes.
        if count != total:
            total = count
        elif failure:
            raise failure
        else:
            return Found(images, indices, total, sizes[0], says)


def _rgb(path: Path, frame: VideoFrame) -> Image:
    if frame.width * frame.height > MAX_PIXELS:
        raise InputError(
            f"{path}: a frame of {frame.width}x{frame.height} is too large; at most {MAX_PIXELS} "
            "pixels are allowed: make it smaller"
        )
    return upright_rgb(frame, path)
