"""stan-infer export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stan_infer.cli.options import Checkpoint, Json, Settings, parse_settings


def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder to write.")],
    format: Annotated[str, typer.Option(help="onnx.")] = "onnx",
    precision: Annotated[str, typer.Option(help="fp32.")] = "fp32",
    input: Annotated[
        str, typer.Option(help="uint8 (normalised inside the graph) or float (normalised).")
    ] = "uint8",
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Export as a folder that runs without torch, and prove it against eager before it appears."""
    from stan_infer.checkpoint import load_model
    from stan_infer.export import export_model
    from stan_infer.report import print_json, print_table, say

    model = load_model(checkpoint, parse_settings(settings))
    artefact = export_model(
        model, out, format=format, precision=precision, input=input, progress=say
    )
    if json:
        print_json("export", {"out": str(out), **artefact.manifest})
        return
    print_table(
        [
            {
                "file": g["file"],
                "mib": g["bytes"] / 2**20,
                "nodes": g["nodes"],
                "max_rel_error": p["max_rel"],
                "min_cosine": p["min_cos"],
                "cases": " ".join(f"{a}x{b}" for a, b in p["cases"]),
                "backend": p["backend"],
            }
            for g, p in zip(artefact.manifest["graphs"], artefact.manifest["parity"], strict=True)
        ]
    )
