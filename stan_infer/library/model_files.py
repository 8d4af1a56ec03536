"""Which files a model is read from, by their hashes, so that a result can say whose it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    `settings`. Of an exported folder the files are those of its manifest without the golden outputs
    and the card, which say when and how it was exported. A model without files is known by its
    name only; one that was loaded in Python (source None) by nothing: model is None.
    """
    if source is None:
        return {"model": None, "sha256": {}, "checkpoint_sha256": None}
    hashes = model_hashes(source)
    if is_exported(source):
        manifest = read_artefact(Path(source)).manifest
        golden = (manifest.get("golden") or {}).get("file")
        files = {
            name: entry["sha256"]
            for name, entry in manifest["files"].items()
            if name != golden and not name.endswith((".md", ".txt"))
        }
        checkpoint = (manifest.get("source") or {}).get("checkpoint_sha256")
        what: Any = files
    else:
        checkpoint = next(iter(hashes.values())) if len(hashes) == 1 else None
        what = sorted(hashes.values()) or source
    text = json.dumps([what, dict(settings)], sort_keys=True)
    model = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return {"model": model, "sha256": hashes, "checkpoint_sha256": checkpoint}
