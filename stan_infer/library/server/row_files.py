"""The files of rows: the video itself, and a picture of its frames.

A library may be a stranger's, and names paths. Served is only what is still the file that was
embedded, a regular one, and by its first bytes a video.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stan_infer.errors import InputError
from stan_infer.library.contact_sheet import shown_frames
from stan_infer.library.library import Library
from stan_infer.library.row_reader import RowReader, check_same
from stan_infer.library.searched_model import frames_and_decoder
from stan_infer.library.server.held import BusyError
from stan_infer.library.thumbnails import jpeg
from stan_infer.system.file_kind import HEAD, kind_of
from stan_infer.system.machine import usable_cpus
from stan_infer.system.outside_file import open_regular
from stan_infer.video.clip import Clip
from stan_infer.video.spec import ClipSpec

SIDE, COLUMNS = 192, 4  # pixels of a frame, as phones show 96 of theirs; frames beside each other
MAX_BYTES = 64 * 2**20  # of pictures that are kept
MAX_WAITING = 64  # pictures that are waited for
_MAX_KNOWN = 10_000
# What FFmpeg's readers read -> what browsers are told.
_TYPES = {
    "mov": "video/mp4", "matroska": "video/x-matroska", "avi": "video/x-msvideo",
    "flv": "video/x-flv", "asf": "video/x-ms-asf", "mpegts": "video/mp2t", "mpeg": "video/mpeg",
    "mpegvideo": "video/mpeg", "ogg": "video/ogg", "mxf": "application/mxf",
}  # fmt: skip


@dataclass(frozen=True)
class Playable:
    """A video that may be sent. status: of the open file. mime: by its container."""

    path: Path
    status: os.stat_result
    mime: str


class Videos:
    """The videos of rows."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._known: OrderedDict[tuple[Path, Path, int, int], None] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, library: Library, place: int) -> Playable:
        """The first file of a row that can be sent; raises InputError, of the first, for none."""
        first: InputError | None = None
        for path in map(Path, library.videos[place]):
            try:
                return self._checked(library.path, path)
            except InputError as e:
                first = first or e
        raise first or InputError("The row has no file.")

    def _checked(self, library: Path, path: Path) -> Playable:
        try:
            file, _ = open_regular(path)
        except OSError:
            raise InputError("The file is not there any more.") from None
        with file:
            status, head = os.fstat(file.fileno()), file.read(HEAD)
        key = library, path, status.st_size, status.st_mtime_ns
        with self._lock:
            known = key in self._known
        if not known:  # a file whose date has changed is hashed: once, not for each part of it
            check_same(library, path)
            with self._lock:
                self._known[key] = None
                if len(self._known) > _MAX_KNOWN:
                    self._known.popitem(last=False)
        kind = kind_of(head)
        if kind is None or kind.family != "video":
            raise InputError("The file is not a video.")
        is_webm = kind.demuxer == "matroska" and b"webm" in head[:64]
        mime = "video/webm" if is_webm else _TYPES.get(kind.demuxer, "application/octet-stream")
        return Playable(path, status, mime)


class Pictures:
    """Pictures of rows, decoded in processes of their own and kept; in a `with` block."""

    def __init__(self, timeout_s: float) -> None:
        """timeout_s: to decode one video."""
        self._timeout_s = timeout_s
        self._kept: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()
        self._coming: dict[tuple[object, ...], Future[bytes]] = {}
        self._own, self._readers = threading.local(), list[RowReader]()
        self._pool = ThreadPoolExecutor(min(2, usable_cpus()), "pictures")

    def __enter__(self) -> Pictures:
        """This object."""
        return self

    def __exit__(self, *raised: object) -> None:
        """End the processes at once."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for reader in self._readers:
                reader.__exit__()
        self._pool.shutdown()

    def of(self, library: Library, place: int) -> Future[bytes]:
        """A JPEG of the frames that the model saw; InputError where they cannot be read.

        Raises BusyError where MAX_WAITING are waited for.
        """
        times = float(library.start[place]), float(library.end[place])
        key = library.path, library.videos[place], str(times)
        with self._lock:
            if (kept := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                done: Future[bytes] = Future()
                done.set_result(kept)
                return done
            if key in self._coming:
                return self._coming[key]
            if len(self._coming) >= MAX_WAITING:
                raise BusyError
            future = self._coming[key] = self._pool.submit(self._read, library, place)
        future.add_done_callback(lambda found: self._keep(key, found))
        return future

    def _keep(self, key: tuple[object, ...], found: Future[bytes]) -> None:
        with self._lock:
            self._coming.pop(key, None)
            if found.cancelled() or found.exception() is not None:
                return
            self._kept[key] = found.result()
            self._bytes += len(found.result())
            while self._bytes > MAX_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])

    def _read(self, library: Library, place: int) -> bytes:
        count, decoder = frames_and_decoder(library)
        spec = ClipSpec(frames=count, short_side=SIDE, crop=SIDE, decoder=decoder)
        reader = self._reader(library.path, spec)
        start, end = float(library.start[place]), float(library.end[place])
        times = (None, None) if np.isnan(start) else (start, end)
        first: InputError | None = None
        for path in map(Path, library.videos[place]):
            try:
                return jpeg(_grid(reader.read(path, *times)))
            except InputError as e:
                first = first or e
        raise first or InputError("The row has no file.")

    def _reader(self, library: Path, spec: ClipSpec) -> RowReader:
        """This thread's."""
        if getattr(self._own, "spec", None) != spec:
            reader = RowReader(library, spec, self._timeout_s)
            with self._lock:
                self._readers.append(reader)
            self._own.reader, self._own.spec = reader, spec
        found: RowReader = self._own.reader
        return found


def _grid(clip: Clip) -> np.ndarray:
    """Frames in rows of COLUMNS; what is left of the last row is grey."""
    shown = np.concatenate([*shown_frames(clip).values()])  # [n, S, S, 3]
    columns = min(COLUMNS, len(shown))
    missing = -len(shown) % columns
    shown = np.concatenate([shown, np.full((missing, *shown.shape[1:]), 128, np.uint8)])
    rows = [np.concatenate(shown[i : i + columns], 1) for i in range(0, len(shown), columns)]
    return np.concatenate(rows)
