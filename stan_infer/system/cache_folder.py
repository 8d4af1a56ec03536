"""The user's cache: plans built for a benchmark, code compiled for a GPU.

The files in it are executed, so only the user may write there.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from stan_infer.errors import InputError

# Otherwise these libraries keep their caches in ~/.triton, below the temporary folder under a name
# that anybody can guess, and in ~/.config/matplotlib.
_LIBRARIES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "MPLCONFIGDIR": "matplotlib",
}


def keep_library_caches() -> None:
    """Let Triton, torch.compile and matplotlib keep their caches beside ours; no folder is made.

    Only for our own command, and before they are imported. A variable that the user has set keeps
    its value.
    """
    for variable, name in _LIBRARIES.items():
        os.environ.setdefault(variable, str(_place(name)))


def cache_folder(name: str) -> Path:
    """Make and return a folder of ours in $STAN_INFER_CACHE, else in $XDG_CACHE_HOME or ~/.cache.

    Raises InputError where it cannot be written, or where others than its owner can write.
    """
    folder = _place(name)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as e:
        raise InputError(
            f"cannot use the cache {folder}: {e.strerror or e}; set STAN_INFER_CACHE to a folder "
            "that can be written"
        ) from e
    foreign = hasattr(os, "getuid") and status.st_uid != os.getuid()
    if foreign or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InputError(
            f"other users can write into the cache {folder}, whose files are executed: chmod 700 "
            "it, or set STAN_INFER_CACHE to a folder of your own"
        )
    return folder


def _place(name: str) -> Path:
    own = os.environ.get("STAN_INFER_CACHE")
    above = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return (Path(own) if own else Path(above) / "stan-infer") / name
