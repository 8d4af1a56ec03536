"""Read the video of a row again, as it was read when it was embedded.

Paths come from a library, which may be a stranger's: only a file that is still what was embedded is
opened, and in a process of its own.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from stan_infer.errors import InputError
from stan_infer.library.database import connect, errors_named
from stan_infer.library.files import hashed, seen
from stan_infer.library.passport import read_passport, windows_of
from stan_infer.system.outside_file import address_of
from stan_infer.video.clip import Clip
from stan_infer.video.decode_worker import DecodeWorker
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Windows


class RowReader:
    """Reads the videos of a library's rows, with one process; in a `with` block."""

    def __init__(self, library: Path, spec: ClipSpec, timeout_s: float) -> None:
        """spec: frames and decoder as the library's, sizes as they are wanted."""
        self._library, self._spec, self._timeout_s = library, spec, timeout_s
        self._worker = DecodeWorker()

    def __enter__(self) -> RowReader:
        """This reader."""
        return self

    def __exit__(self, *raised: object) -> None:
        """End the process."""
        self._worker.close()

    def read(self, path: Path, start_s: float | None, end_s: float | None) -> Clip:
        """The clip of a video, or of a part of it.

        Raises InputError where the file is gone, is not what was embedded, or cannot be read, and
        MissingError without the library's decoder.
        """
        check_same(self._library, path)
        if start_s is None or end_s is None:
            return self._worker.read(path, self._spec, timeout_s=self._timeout_s)
        made = windows_of(read_passport(self._library))  # now: a migration may have changed them
        if made is not None and made.grid:
            return self._of_grid(path, made, start_s)
        # Of a video of one frame, which lasts no time, a stretch cannot be asked for.
        windows = made or Windows(start=start_s, end=end_s)
        plan = self._worker.plan(path, windows, timeout_s=self._timeout_s)
        window = min(plan.windows, key=lambda w: abs(w.start_s - start_s))
        (clip,) = self._worker.read_windows(
            path, self._spec, plan.total_frames, [window], timeout_s=self._timeout_s
        )
        if isinstance(clip, InputError):
            raise clip
        return clip

    def _of_grid(self, path: Path, windows: Windows, start_s: float) -> Clip:
        spec, timeout_s = self._spec, self._timeout_s
        plan = self._worker.plan_grid(path, windows, spec, timeout_s=timeout_s)
        window = min(plan.windows, key=lambda w: abs(w.start_s - start_s))
        frames = plan.frames[window.first : window.first + window.frames]
        found = self._worker.read_frames(path, spec, plan.total_frames, frames, timeout_s=timeout_s)
        for error in found.errors.values():
            raise InputError(error)
        return plan.clip(window, found, found.pixels)


def check_same(library: Path, path: Path) -> None:
    """Raise InputError for a file that is not what was embedded: by size and time, or its hash."""
    if address := address_of(path):
        raise InputError(f"It lies at {address}, and nothing is fetched from there.")
    now = seen(path)
    if now is None:
        raise InputError("The file is not there any more.")
    asked = "SELECT size, mtime_ns, sha256 FROM files WHERE path = ?"
    with errors_named(library), closing(connect(library)) as db:
        known = db.execute(asked, (bytes(path),)).fetchone()
    if known is not None and now == tuple(known[:2]):
        return
    if known is not None and now[0] == known[0]:
        with ThreadPoolExecutor(1) as thread:
            ((_, file),) = hashed([path], thread)
        if file.sha256 is not None and file.sha256 == known[2]:
            return
    raise InputError("The file has changed since it was embedded.")
