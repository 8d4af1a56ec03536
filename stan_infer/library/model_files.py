"""Which files a model is read from, by their hashes, so that a result can say whose it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stan_infer.artefacts.calibration_file import CALIBRATION
from stan_infer.artefacts.folder import MANIFEST, read_artefact, sha256
from stan_infer.checkpoints.weights_folder import is_exported, weights_files


def model_hashes(source: str) -> dict[str, str]:
    """SHA-256 by file name: of the weights, or of an exported folder's manifest.json.

    The manifest holds the hash of every other file of its folder. Empty for an open_clip NAME:TAG.
    """
    files = [Path(source) / MANIFEST] if is_exported(source) else weights_files(source)
    return {file.name: sha256(file) for file in files}


def model_source(source: str | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What tells models apart: "model", "sha256" by file name, "checkpoint_sha256" (or None).

    model: SHA-256, in hexadecimal, of JSON with the hashes of the files that vectors come from and
    `settings`. Of an exported folder the files are those of its manifest without the golden data
    and the card, which say when and how it was exported; of a plan also the plan. A model without
    files is known by its name only; one that was loaded in Python (source None) by nothing: model
    is None.
    """
    if source is None:
        return {"model": None, "sha256": {}, "checkpoint_sha256": None}
    hashes = model_hashes(source)
    folder = _folder_of(source)
    if folder is None:
        checkpoint = next(iter(hashes.values())) if len(hashes) == 1 else None
        what: Any = sorted(hashes.values()) or source
    else:
        manifest = read_artefact(folder, check_hashes=False).manifest
        golden: Mapping[str, Any] = manifest.get("golden") or {}
        files = {
            name: entry["sha256"]
            for name, entry in manifest["files"].items()
            if name not in (golden.get("file"), golden.get("clip"))
            and not name.endswith((".md", ".txt"))
        }
        checkpoint = (manifest.get("source") or {"checkpoint_sha256": None})["checkpoint_sha256"]
        what = [files, *([] if is_exported(source) else hashes.values())]
    text = json.dumps([what, dict(settings)], sort_keys=True)
    model = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return {"model": model, "sha256": hashes, "checkpoint_sha256": checkpoint}


def chosen_weights(options: Mapping[str, Any]) -> dict[str, str | None]:
    """What was chosen of a model's files: "set", by name, and the hash of "scales" for fp8.

    options: of open_session.
    """
    scales: Any = options.get("scales")
    if (calibration := options.get("calibration")) is not None:
        file = Path(calibration)
        scales = sha256(file / CALIBRATION if file.is_dir() else file)
    elif scales is not None:
        text = json.dumps(dict(scales), sort_keys=True)
        scales = hashlib.sha256(text.encode()).hexdigest()
    return {"set": (options.get("settings") or {}).get("weights"), "scales": scales}


def _folder_of(source: str) -> Path | None:
    """The exported folder that `source` is, or that a plan lies in; None for a checkpoint."""
    if is_exported(source):
        return Path(source)
    return Path(source).absolute().parent.parent if Path(source).suffix == ".plan" else None
