"""Features on disk, so that a long evaluation that was stopped can go on.

There is one folder per model, engine and settings. It holds small .npz files ("parts"), each
written whole or not at all, so that runs may be killed at any moment and may share the folder.
Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stan_infer.artefacts.npz_file import Field, read_npz
from stan_infer.errors import InputError
from stan_infer.system import kept
from stan_infer.system.atomic import Sources, check_apart, check_not_inside, new_file
from stan_infer.system.outside_file import open_regular
from stan_infer.system.temporary import clear
from stan_infer.video.spec import PIXELS

# A part is written after so many features or seconds; a run that is killed loses no more.
PART_ITEMS = 64
PART_S = 20.0

_MAX_PART = 2**30  # bytes; 64 videos of 64 frames and 10 views, in the widest CLIP, are 170 MB
Shape = tuple[int, ...]

_log = logging.getLogger(__name__)


def check_cache(folder: Path, sources: Sources) -> None:
    """Raise InputError if `folder` cannot be a cache; call this before long work.

    sources: what is read; see atomic.check_apart.
    """
    check_apart(folder, sources)
    check_not_inside(folder)
    try:
        if not os.path.exists(folder) and os.path.islink(folder):
            raise InputError(
                f"cache {folder} is a link that leads nowhere ({os.readlink(folder)}): make the "
                "folder that it names, or give another"
            )
        os.stat(folder)
    except FileNotFoundError:
        return
    except OSError as e:
        raise InputError(f"cache {folder} cannot be used: {e.strerror}; give another") from e
    if not os.path.isdir(folder):
        raise InputError(f"cache {folder} is not a folder; give a folder, or a name not in use")


class FeatureCache:
    """Feature arrays by name.

    key: what the features depend on besides the name (model, config, session), as JSON types.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        """Read what earlier runs with the same key wrote; InputError if the folder is unusable."""
        text = json.dumps(key, sort_keys=True)
        self._folder = Path(folder) / hashlib.sha256(text.encode()).hexdigest()[:16]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if not (self._folder / "key.json").exists():
                with new_file(self._folder / "key.json") as temporary:
                    temporary.write_text(text)
            clear(self._folder)
            parts = sorted(self._folder.glob("*.npz"))
        except OSError as e:
            raise InputError(f"cache {folder} cannot be used: {e.strerror}; give another") from e
        self._known: dict[tuple[str, Shape], NDArray[np.float32]] = {}
        self._parts: dict[str, Path] = {}  # by name of a feature: the last part that has it
        for part in parts:
            for name, features in _read(part).items():
                self._known[name, features.shape] = features
                self._parts[name] = part
        self._waiting: dict[str, NDArray[np.float32]] = {}
        self._written = time.monotonic()
        self._note()

    def __len__(self) -> int:
        """Number of features that are known."""
        return len(self._known)

    def get(self, name: str, shape: Shape) -> NDArray[np.float32] | None:
        """Return the features with this name and shape, or None; another shape is logged."""
        found = self._known.get((name, shape))
        if found is None and (part := self._parts.pop(name, None)) is not None:
            _log.warning(
                "%s holds features that are not %s: they are computed again", part, list(shape)
            )
        return found

    def put(self, name: str, features: NDArray[np.float32]) -> None:
        """Keep features; the next part, or `flush`, writes them to disk."""
        self._known[name, features.shape] = self._waiting[name] = features
        if len(self._waiting) >= PART_ITEMS or time.monotonic() - self._written > PART_S:
            self.flush()

    def flush(self) -> None:
        """Write all features that are not on disk yet."""
        self._written = time.monotonic()
        # Texts and videos have arrays of different shapes: a part for each.
        for shape in {features.shape for features in self._waiting.values()}:
            part = {name: x for name, x in self._waiting.items() if x.shape == shape}
            packed = io.BytesIO()
            np.savez(packed, names=np.array(list(part)), features=np.stack(list(part.values())))
            with new_file(self._folder / f"{uuid.uuid4().hex}.npz") as temporary:
                temporary.write_bytes(packed.getbuffer())
        self._waiting = {}
        self._note()

    def _note(self) -> None:
        """Say what an interrupted run leaves: how many features are on disk."""
        count = len(self) - len(self._waiting)
        words = f"keeps {count} features of videos and texts: the same command goes on from there"
        kept.note(self._folder.parent, words if count else "keeps no features yet")


def file_name(path: Path, options: Mapping[str, Any]) -> str:
    """Name a video by its content and reading options; copying or moving it changes nothing."""
    try:
        file, _ = open_regular(path)
        with file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, InputError):
        content = str(path)  # the reader of the video says what is wrong with it
    text = json.dumps([content, PIXELS, dict(options)])
    return "video:" + hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def ids_name(ids: NDArray[np.int64]) -> str:
    """Name a text by its token ids [L]."""
    return "text:" + hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest()


def _read(part: Path) -> dict[str, NDArray[np.float32]]:
    """Features by name; none, and a warning, if the part is not as `flush` writes it."""
    try:
        fields = {"names": Field("str", ("n",)), "features": Field("float32")}
        found = read_npz(part, fields, limit=_MAX_PART)
        names, features = found["names"].tolist(), found["features"]
        if features.ndim < 2 or len(names) != len(features) or len(set(names)) != len(names):
            raise InputError("it does not have one name for each of its features")
        if not np.isfinite(features).all():
            raise InputError("it holds values that are not finite")
    except InputError as e:
        _log.warning("%s is damaged and is not used: its features are computed again (%s)", part, e)
        return {}
    return dict(zip(names, features, strict=True))
