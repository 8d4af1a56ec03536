"""Exporters: a Stan in, a folder out that runs without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stan_infer.artefact import Artefact
from stan_infer.errors import InputError, nearest, require

if TYPE_CHECKING:
    from collections.abc import Callable

    from stan_infer.model import Stan

FORMATS = ("onnx",)


def export_model(
    model: Stan,
    out: str | Path,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    input: str = "uint8",
    progress: Callable[[str], None] | None = None,
) -> Artefact:
    """Write `model` as a folder and prove it against the model itself before the folder appears.

    out: a new or empty folder, or an earlier export, which is replaced. input: "uint8"
    [B, T, H, W, 3] RGB with the normalisation inside the graph, or "float" [B, T, 3, H, W]
    normalised. progress: called with a sentence before each step.

    Raises InputError for unknown words or a folder that cannot be written, MissingError for absent
    packages, CheckError when a graph's outputs differ from the model's or an axis is not dynamic.
    """
    if format not in FORMATS:
        raise InputError(f"format '{format}' is unknown{nearest(format, FORMATS)} (onnx)")
    require("torch", "exporting", "stan-infer[cpu]")
    from stan_infer.export.to_onnx import export_onnx

    return export_onnx(
        model, Path(out), precision=precision, input=input, say=progress or (lambda text: None)
    )
