"""The model card of an exported folder, README.md: what it is, how to run it, its errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stan_infer.errors import printable


def write_card(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the model card from the manifest alone, so that the two cannot disagree.

    Texts of the manifest (names, licence, command) are escaped, so that none acts as Markdown or
    HTML.
    """
    model, source = manifest["model"], manifest.get("source") or {}
    head = "Mug-STAN" if model["head"] != "mean" else "STAN"
    size = f"{model['layers']} layers of width {model['width']}, patch {model['patch']}"
    lines = [
        f"# {head} video-text model, exported",
        "",
        f"CLIP ViT ({size}) with a STAN branch of {model['branch_layers']} layers "
        f"({model['branch']}); {model['frames']} frames of {model['image_size']} pixels a clip.",
        "",
        f"- Weights: {_recorded(source.get('file'))}, "
        f"SHA-256 {_recorded(source.get('checkpoint_sha256'))}",
        f"- Licence of the weights: {_recorded(manifest.get('licence'))}",
        f"- Made with stan_infer {manifest['tool']['version']}: "
        f"{_code(manifest.get('command') or 'from Python')}",
        "",
        "| file | role | precision | MB | input | largest error | cosine |",
        "|---|---|---|---|---|---|---|",
    ]
    parity = {p["file"]: p for p in manifest["parity"]}
    for g in manifest["graphs"]:
        p = parity.get(g["file"])
        inputs = ", ".join(f"{v['name']} {v['dtype']} {v['shape']}" for v in g["inputs"])
        # A bar would end the table's cell, even inside code.
        words = [
            _code(w).replace("|", r"\|") for w in (g["file"], g["role"], g["precision"], inputs)
        ]
        error = f"{p['max_rel']:.1e} | {p['min_cos']:.7f}" if p else "not compared | "
        lines.append(f"| {' | '.join(words[:3])} | {g['bytes'] / 1e6:.1f} | {words[3]} | {error} |")
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
        "frames to take. golden.npz holds inputs and outputs to test a port against, golden.clip "
        "an encoded clip; its frames are there as 'clip'.",
        "",
    ]
    path.write_text("\n".join(lines), encoding="utf-8")


def _recorded(value: Any) -> str:
    return _code(value) if value else "not recorded"


def _code(value: Any) -> str:
    """A value as inline code, inside which nothing is markup, a link or a mention.

    The fence around it is longer than any run of backticks inside.
    """
    text = printable(str(value))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    if text[:1] in "` " or text[-1:] in "` ":
        text = f" {text} "  # renderers remove one blank at each end
    return f"{fence}{text}{fence}"
