"""What a model is given by: a path from the root, the hash of a folder, the folder of a plan."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.artefacts.folder import MANIFEST, sha256
from stan_infer.artefacts.parts import PARTS
from stan_infer.errors import InputError
from stan_infer.tensorrt_plans.plan_file import read_plan

if TYPE_CHECKING:
    from stan_infer.network.model import Stan


def absolute(source: str | Path) -> str | Path:
    """A path, or the path behind a name of open_clip, from the root; anything else as it is."""
    if os.path.exists(source):
        return Path(source).absolute()
    name, colon, path = str(source).partition(":")
    return f"{name}:{os.path.abspath(path)}" if colon and os.path.exists(path) else source


def manifest_hash(source: Path | str | Stan) -> str | None:
    """Return the hash of the manifest of a folder, or of the folder of a plan, if it is either."""
    if not isinstance(source, (str, Path)):
        return None
    path = Path(source)
    path = (path.absolute().parent.parent if path.suffix == ".plan" else path) / MANIFEST
    return sha256(path) if path.is_file() else None


def owner(path: Path, engine: str | None, settings: Mapping[str, Any] | None) -> tuple[str, Path]:
    """Return the engine of a plan and the exported folder that it lies in."""
    if settings:
        raise InputError(
            "--set and --weights belong to a checkpoint; a plan was built with its own"
        )
    plan = read_plan(path, check_hash=False)
    if engine not in (None, plan.engine):
        raise InputError(f"{path} is a plan of engine {plan.engine}, not {engine}")
    if plan.role in PARTS:
        raise InputError(
            f"{path} is a plan of the {plan.role} graph, a part of the video tower: give its "
            "folder, whose session.stream runs both parts"
        )
    if plan.role not in ("video", "text"):
        raise InputError(
            f"{path} is a plan of the {plan.role} graph; engines run those of video and text, and "
            "this one is for programs of your own"
        )
    folder = path.absolute().parent.parent
    if not os.path.isfile(folder / "manifest.json"):
        raise InputError(
            f"{path} does not lie in engines/ of an exported folder, which holds its config and "
            "vocabulary: copy the whole folder"
        )
    return plan.engine, folder
