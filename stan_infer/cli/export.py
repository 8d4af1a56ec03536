"""stan-infer export."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stan_infer.cli.options import Checkpoint, Json, Settings, parse_settings, read_lines

if TYPE_CHECKING:
    import numpy as np

    from stan_infer.config import StanConfig


def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder to write.")],
    format: Annotated[str, typer.Option(help="onnx.")] = "onnx",
    tower: Annotated[str, typer.Option(help="both, video or text.")] = "both",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp32",
    frames: Annotated[
        str | None, typer.Option(help="T: 12, or 1:64 for a dynamic axis (default: all).")
    ] = None,
    batch: Annotated[str, typer.Option(help="B: 1, or 1:32 for a dynamic axis.")] = "1:32",
    input: Annotated[
        str, typer.Option(help="uint8 (normalised inside the graph) or float (normalised).")
    ] = "uint8",
    head: Annotated[str, typer.Option(help="embed, or classify (needs --labels).")] = "embed",
    labels: Annotated[Path | None, typer.Option(help="File with one class per line.")] = None,
    template: Annotated[
        str, typer.Option(help="Text of a class; {} is its line of --labels.")
    ] = "{}",
    graph: Annotated[
        str, typer.Option(help="fused, or reference (torch.onnx.export, for comparison).")
    ] = "fused",
    opset: Annotated[int, typer.Option(help="Version of ONNX's operators, 18 to 25.")] = 20,
    clips: Annotated[
        Path | None, typer.Option(help="Videos on which the ranges of fp16 are measured.")
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="Write a README.md model card too.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="Licence of the weights, for the manifest.")
    ] = None,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Export as a folder that runs without torch, and prove it against eager before it appears."""
    from stan_infer.checkpoint import inspect_checkpoint, load_model
    from stan_infer.export import export_model
    from stan_infer.export.options import parse_range
    from stan_infer.report import print_json, print_table, say

    frame_range = None if frames is None else parse_range(frames, "--frames")
    batch_range = parse_range(batch, "--batch")
    classes = read_lines(labels, "labels") if labels else []
    given = parse_settings(settings)
    config = inspect_checkpoint(checkpoint, given).layout.config if clips else None
    artefact = export_model(
        lambda: load_model(checkpoint, given),
        out,
        format=format,
        tower=tower,
        precision=precision,
        input=input,
        frames=frame_range,
        batch=batch_range,
        head=head,
        labels=classes,
        template=template,
        graph=graph,
        opset=opset,
        clips=_clips(clips, config) if clips and config else None,
        about=_about(checkpoint, given, licence),
        card=card,
        progress=say,
    )
    if json:
        print_json("export", {"out": str(out), **artefact.manifest})
        return
    parity = {p["file"]: p for p in artefact.manifest["parity"]}
    print_table([_row(g, parity.get(g["file"])) for g in artefact.manifest["graphs"]])


def _row(graph: dict[str, Any], parity: dict[str, Any] | None) -> dict[str, Any]:
    row = {
        "file": graph["file"],
        "precision": graph["precision"],
        "mib": graph["bytes"] / 2**20,
        "nodes": graph["nodes"],
    }
    if parity:
        row |= {
            "max_rel_error": parity["max_rel"],
            "min_cosine": parity["min_cos"],
            "cases": " ".join(f"{a}x{b}" for a, b in parity["cases"]),
            "backend": parity["backend"],
        }
    return row


def _about(checkpoint: str, settings: dict[str, Any], licence: str | None) -> dict[str, Any]:
    """Where the weights come from, without a path of this machine."""
    from stan_infer.artefact import sha256
    from stan_infer.checkpoint import inspect_checkpoint

    source: dict[str, Any] = {"file": os.path.basename(checkpoint)}
    if os.path.isfile(checkpoint):
        layout = inspect_checkpoint(checkpoint, settings).layout
        source |= {
            "checkpoint_sha256": sha256(Path(checkpoint)),
            "checkpoint_format": layout.name,
            "state_dict_tensors": len(layout.origins),
        }
    elif checkpoint.endswith(":openai"):
        licence = licence or "MIT (OpenAI CLIP)"
    words = [os.path.basename(w) if os.path.isabs(w) else w for w in sys.argv[1:]]
    return {"source": source, "licence": licence, "command": shlex.join(["stan-infer", *words])}


def _clips(folder: Path, config: StanConfig) -> list[np.ndarray]:
    """Every readable video as one clip; unreadable ones are named, none at all is an error."""
    from stan_infer.decode_worker import read_clips
    from stan_infer.errors import InputError
    from stan_infer.report import say
    from stan_infer.video import Clip, list_videos

    found = []
    for path, result in read_clips(
        list_videos([folder]),
        frames=config.frames,
        short_side=config.short_side,
        crop=config.image_size,
    ):
        if isinstance(result, Clip):
            found.append(result.pixels[None])
        else:
            say(f"error: {path}: {result}")
    if not found:
        raise InputError(f"--clips {folder}: no video could be read")
    return found
