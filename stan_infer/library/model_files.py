"""Which files a model is read from, by their hashes, so that a result can say whose it is."""

from __future__ import annotations

from pathlib import Path

from stan_infer.artefacts.folder import MANIFEST, sha256
from stan_infer.checkpoints.weights_folder import is_exported, weights_files


def model_hashes(source: str) -> dict[str, str]:
    """SHA-256 by file name: of the weights, or of an exported folder's manifest.json.

    The manifest holds the hash of every other file of its folder. Empty for an open_clip NAME:TAG.
    """
    files = [Path(source) / MANIFEST] if is_exported(source) else weights_files(source)
    return {file.name: sha256(file) for file in files}
