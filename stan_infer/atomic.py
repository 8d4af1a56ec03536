"""Write a file or a folder under a temporary name, then rename: never seen half-written."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stan_infer.errors import InputError


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any error it is gone.

    Raises InputError when the folder cannot be written or the disk is full.
    """
    path = Path(path)
    with _told(path):
        if path.is_dir():
            raise InputError(f"cannot write {path}: it is a folder; give a file name")
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
def new_folder(path: Path, why_keep: Callable[[Path], str | None]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`, else it is gone.

    why_keep(path) says why an existing folder that is not empty must stay, or None where it is an
    earlier result and nothing else: only such a folder is replaced, so that no folder of the user's
    is ever deleted. Refusals and anything that cannot be written are InputErrors.
    """
    path = Path(os.path.abspath(path))  # "." has no name and lies in itself
    with _told(path):
        if path == Path.cwd() or path == path.parent:
            raise InputError(f"folder {path} is the current one or the root; give a folder in it")
        if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
            raise InputError(f"cannot write folder {path}: a file of that name exists")
        _check_replaceable(path, why_keep)
        made = _make_parents(path)
        temporary: Path | None = None
        done = False
        try:
            temporary = Path(
                tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            )
            temporary.chmod(0o777 & ~_umask())
            yield temporary
            _check_replaceable(path, why_keep)  # the work took a while
            _exchange(temporary, path)
            done = True
        finally:
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)
            for parent in [] if done else reversed(made):
                with suppress(OSError):
                    parent.rmdir()


def _check_replaceable(path: Path, why_keep: Callable[[Path], str | None]) -> None:
    if not path.is_dir() or not any(path.iterdir()):
        return
    reason = why_keep(path)
    if reason:
        raise InputError(
            f"folder {path} is not empty and will not be replaced, because {reason}: "
            "give a new or an empty folder"
        )


def _make_parents(path: Path) -> list[Path]:
    """Make the missing parents of `path` and return them, outermost first."""
    missing = [p for p in path.parents if not p.exists()][::-1]
    for parent in missing:
        parent.mkdir(exist_ok=True)
    return missing


def _exchange(temporary: Path, path: Path) -> None:
    """Put `temporary` in the place of `path`; an earlier folder comes back if that fails."""
    if not path.exists():
        os.replace(temporary, path)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    old = aside / "old"
    try:
        os.replace(path, old)
        os.replace(temporary, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.replace(old, path)
        raise
    finally:
        if path.exists():
            shutil.rmtree(aside, ignore_errors=True)


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
