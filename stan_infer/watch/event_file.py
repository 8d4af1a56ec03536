"""A file of JSON lines to which events are appended as they come, whole lines only."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stan_infer.errors import InputError
from stan_infer.system import earlier_result, kept
from stan_infer.system.atomic import check_file
from stan_infer.system.json_file import json_line

SCHEMAS = ("watch-event", "watch-summary")
_KEEP = earlier_result.json_lines(SCHEMAS, "stan-infer watch -o")


class EventFile:
    """Appends lines to a file of earlier lines, or makes it.

    A line that cannot be written whole is taken back; one that another program left without its end
    is ended. While it is open, no other watch appends to it (where the system has locks of files).
    Use as a context manager.
    """

    def __init__(self, path: Path, *, sources: Iterable[str | Path] = ()) -> None:
        """Open it. Raises InputError for a file of another kind, or one that cannot be written."""
        check_file(path, _KEEP, sources=sources)
        self.path, self.lines = path, 0
        try:
            # A pipe that was removed meanwhile must not come back as a regular file.
            is_stream = path.exists() and not path.is_file()
            flags = os.O_WRONLY if is_stream else os.O_RDWR | os.O_CREAT
            flags |= os.O_APPEND | getattr(os, "O_BINARY", 0)
            self._is_new = not path.exists()
            self._file = os.open(path, flags, 0o666)
        except OSError as e:
            raise self._failed(e) from e
        self._is_regular = stat.S_ISREG(os.fstat(self._file).st_mode)
        try:
            if self._is_regular:
                self._lock()
                size = os.fstat(self._file).st_size
                if size:
                    os.lseek(self._file, size - 1, os.SEEK_SET)
                    if os.read(self._file, 1) != b"\n":
                        os.write(self._file, b"\n")
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> EventFile:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it; a new one without a line is removed."""
        os.close(self._file)
        if self._is_new and not self.lines:
            with suppress(OSError):
                self.path.unlink()

    def add(self, schema: str, record: Mapping[str, Any]) -> None:
        """Append one line. Raises InputError where it cannot be written; no part of it is left."""
        data = (json_line({"schema": f"stan-infer/{schema}/1", **record}) + "\n").encode()
        before = os.fstat(self._file).st_size
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError as e:
            if self._is_regular:
                os.ftruncate(self._file, before)
            raise self._failed(e) from e
        self.lines += 1
        kept.note(self.path, f"has {self.lines} more line{'s' * (self.lines > 1)}")

    def _lock(self) -> None:
        if sys.platform == "win32":
            return
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise InputError(
                f"another watch appends to {self.path}: give each a file of its own"
            ) from e
        except OSError:
            pass  # a file system without locks

    def _failed(self, e: OSError) -> InputError:
        return InputError(f"cannot write {self.path}: {e.strerror or e}; give another place")
