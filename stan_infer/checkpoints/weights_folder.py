"""A folder with weights, as transformers and open_clip save them, told from an exported folder."""

from __future__ import annotations

import os
from pathlib import Path

from stan_infer.errors import InputError
from stan_infer.system.json_file import read_object
from stan_infer.system.outside_file import stays_inside

INDEX = ".index.json"
_MAX_INDEX, _MAX_SHARDS = 8 * 2**20, 64
_STEMS = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin",
          "open_clip_pytorch_model.bin")  # fmt: skip
# The names of weights in such folders, the first that is there is taken.
NAMES = tuple(f"{stem}{ending}" for stem in _STEMS for ending in ("", INDEX))
CONFIGS = ("config.json", "open_clip_config.json")
MANIFEST = "manifest.json"  # of an exported folder


def weights_in(folder: Path) -> Path:
    """Return the weights in a folder: the first of NAMES; InputError if none is there."""
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"folder {folder} holds no weights ({', '.join(NAMES)})")


def is_exported(source: str | Path) -> bool:
    """Whether this is a folder, and not one of weights: it is opened as an exported one."""
    if not os.path.isdir(source):
        return False
    has_weights = any(os.path.isfile(os.path.join(source, name)) for name in NAMES)
    return not has_weights or os.path.exists(os.path.join(source, MANIFEST))


def weights_files(source: str | Path) -> list[Path]:
    """Return the files with a checkpoint's weights, those of an index in order; [] for NAME:TAG.

    source: as load_model takes it. Raises InputError for a folder without weights or a bad index.
    """
    path = Path(source)
    if not os.path.exists(path):
        path = Path(str(source).partition(":")[2])
        if path == Path() or not os.path.exists(path):
            return []
    path = weights_in(path) if path.is_dir() else path
    if not path.name.endswith(INDEX):
        return [path]
    return [path, *(path.parent / name for name in sorted(set(shard_names(path).values())))]


def shard_names(index: Path) -> dict[str, str]:
    """Return key -> file beside it of an index; InputError for one that names other places."""
    given = read_object(index, _MAX_INDEX).get("weight_map")
    places: dict[str, str] = given if isinstance(given, dict) else {}
    files = {f for f in places.values() if isinstance(f, str) and stays_inside(f)}
    if not places or not all(isinstance(f, str) and f in files for f in places.values()):
        raise InputError(f"{index} has no weight_map of keys to files beside it")
    if len(files) > _MAX_SHARDS:
        raise InputError(f"{index} lists {len(files)} files; at most {_MAX_SHARDS} are opened")
    return places
