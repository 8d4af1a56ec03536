"""README.md of an exported folder: what it is, how to run it, what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_card(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the model card from the manifest alone, so that the two cannot disagree."""
    model, source = manifest["model"], manifest.get("source") or {}
    head = "Mug-STAN" if model["head"] != "mean" else "STAN"
    size = f"{model['layers']} layers of width {model['width']}, patch {model['patch']}"
    lines = [
        f"# {head} video-text model, exported",
        "",
        f"CLIP ViT ({size}) with a STAN branch of {model['branch_layers']} layers "
        f"({model['branch']}); {model['frames']} frames of {model['image_size']} pixels a clip.",
        "",
        f"- Weights: {source.get('file') or 'not recorded'}, SHA-256 "
        f"{source.get('checkpoint_sha256') or 'not recorded'}",
        f"- Licence of the weights: {manifest.get('licence') or 'not recorded'}",
        f"- Made with stan_infer {manifest['tool']['version']}: "
        f"`{manifest.get('command') or 'from Python'}`",
        "",
        "| file | role | precision | MB | input | largest error | cosine |",
        "|---|---|---|---|---|---|---|",
    ]
    parity = {p["file"]: p for p in manifest["parity"]}
    for g in manifest["graphs"]:
        p = parity.get(g["file"])
        inputs = ", ".join(f"{v['name']} {v['dtype']} {v['shape']}" for v in g["inputs"])
        error = f"{p['max_rel']:.1e} | {p['min_cos']:.7f}" if p else "not compared | "
        lines.append(
            f"| {g['file']} | {g['role']} | {g['precision']} | {g['bytes'] / 1e6:.1f} "
            f"| {inputs.replace('|', '')} | {error} |"
        )
    lines += [
        "",
        "Errors are relative to the largest value of the model's own outputs in PyTorch, fp32.",
        "",
        "```",
        'stan-infer run FOLDER clip.mp4 --text "a dog runs"',
        "stan_classify FOLDER clip.mp4    # C++, no Python",
        "```",
        "",
        "Pixels: preprocess.onnx resizes and crops decoded RGB frames; manifest.json says which "
        "frames to take. golden.npz holds inputs and outputs to test a port against.",
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
