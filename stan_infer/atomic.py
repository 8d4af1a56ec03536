"""Write a file or a folder under a temporary name, then rename: never seen half-written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stan_infer.errors import InputError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is gone.

    Raises InputError when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; give a file name")
    with _told(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            # mkstemp makes private files; a result has the permissions that the user's umask gives.
            temporary.chmod(0o666 & ~_umask())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, marker: str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`, else it is gone.

    An existing `path` is replaced only if it is empty or holds the file `marker` (an earlier
    result); anything else is an InputError, so that no folder of the user's is ever deleted.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise InputError(f"cannot write folder {path}: a file of that name exists")
    if path.is_dir() and any(path.iterdir()) and not (path / marker).is_file():
        raise InputError(
            f"folder {path} is not empty and holds no {marker}; it will not be replaced: "
            "give a new or an empty folder"
        )
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            temporary.chmod(0o777 & ~_umask())
            yield temporary
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
                os.replace(path, old / "old")
                os.replace(temporary, path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise InputError(
            f"cannot write {path}: {e.strerror or e}; free some space or give another place"
        ) from e


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
