"""Exported folders, each made once for all processes and runs while no source changes."""

import functools
import hashlib
import json
import os
import shutil
import time
from importlib.metadata import version
from pathlib import Path

from stan_infer.artefacts.folder import MANIFEST, write_manifest
from stan_infer.export.export_model import export_model

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / ".pytest_cache" / "exported"
UNUSED = 24 * 3600  # seconds after which folders of other sources go


def exported(model, **options) -> Path:
    """What export_model writes for a model with these options. Copy it before changing it."""
    digest = hashlib.sha256(repr((model.config, sorted(options.items()))).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    folder = PLACE / _source() / digest.hexdigest()[:16]
    if not folder.exists():
        _clear_others()
        made = folder.with_name(f"{folder.name}.{os.getpid()}")
        export_model(model, made, **options)
        try:
            made.rename(folder)
        except OSError:  # another process was quicker
            shutil.rmtree(made)
    return folder


def rewrite(folder, change=lambda manifest: None) -> None:
    """Change the manifest of a folder and hash its files anew, so that only their content tells."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    manifest.pop("files")
    write_manifest(folder, manifest)


@functools.cache
def _source() -> str:
    """Everything that an exported folder depends on but its model and options."""
    digest = hashlib.sha256(repr([version(p) for p in ("torch", "onnx", "onnxruntime")]).encode())
    for top in ("stan_infer", "export", "kernels"):
        for path in sorted(p for kind in ("*.py", "*.mp4") for p in (ROOT / top).rglob(kind)):
            digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _clear_others() -> None:
    for other in PLACE.glob("*"):
        if other.name != _source() and time.time() - other.stat().st_mtime > UNUSED:
            shutil.rmtree(other, ignore_errors=True)
