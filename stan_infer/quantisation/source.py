"""What a calibration starts from: a folder exported in fp32, and the videos.

For a folder it needs no torch, which is imported while clips are decoded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stan_infer.artefacts.folder import Artefact, check_fused, read_artefact
from stan_infer.artefacts.opsets import OPSETS, SMALLEST_FP8
from stan_infer.checkpoints.load import load_model, require_torch
from stan_infer.checkpoints.weights_folder import is_exported
from stan_infer.errors import InputError
from stan_infer.quantisation.bound import Bound
from stan_infer.system.outside_file import read_lines
from stan_infer.system.temporary import temporary_folder
from stan_infer.video.find import list_videos


def named_videos(videos: str | Path | Sequence[Path]) -> tuple[list[Path], Path | None]:
    """Paths of the videos, and the folder relative to which records name them, if there is one."""
    if not isinstance(videos, (str, Path)):
        return list(videos), None
    given = Path(videos)
    if os.path.isfile(given):
        root = given.absolute().parent
        return list_videos([root / line for line in read_lines(given, "videos")]), root
    return list_videos([given]), given


@contextmanager
def exported_fp32(
    source: str, settings: Mapping[str, Any], say: Callable[[str], None]
) -> Iterator[Path]:
    """Yield the exported fp32 folder: `source` itself, or a temporary one if it is a checkpoint."""
    if is_exported(source):
        yield Path(source)
        return
    require_torch("calibrating", "cpu", source, settings)
    from stan_infer.export.export_model import export_model
    from stan_infer.export.provenance import provenance

    with temporary_folder("the fp32 export that is calibrated") as above:
        folder = above / "fp32"
        about = provenance(source, settings)
        export_model(lambda: load_model(source, settings), folder, about=about, progress=say)
        yield folder


def check_source(source: str, settings: Mapping[str, Any], bound: Bound, precision: str) -> None:
    """Raise InputError for an exported folder that cannot be calibrated, before the work."""
    if not is_exported(source):
        return
    if settings:
        raise InputError(
            "--set and --weights belong to a checkpoint; a folder was exported with its own"
        )
    check_runnable(read_artefact(source, check_hashes=False), bound, precision)


def check_runnable(source: Artefact, bound: Bound, precision: str) -> None:
    """Raise InputError, before the long work, for a folder that cannot run one clip of a video."""
    graph = source.graph("video")
    if graph is None:
        raise InputError(f"{source.path} holds no video graph")
    check_fused(source, graph)
    if graph.inputs[0]["dtype"] != "uint8":
        raise InputError(
            f"{source.path} takes normalised floats; calibration runs videos: export with "
            "--input uint8"
        )
    if graph.opset not in OPSETS:
        raise InputError(
            f"{source.path} has opset {graph.opset}; an export writes {min(OPSETS)} to "
            f"{max(OPSETS)}: export the checkpoint again"
        )
    if precision == "fp8" and graph.opset < SMALLEST_FP8:
        raise InputError(
            f"{source.path} has opset {graph.opset}, and ONNX has {precision} from opset "
            f"{SMALLEST_FP8} on: export with --opset {SMALLEST_FP8} or more, or take int8"
        )
    low, high = graph.dims.get("batch", (1, 1))
    if low > 1:
        raise InputError(
            f"{source.path} takes batch {low} to {high}; calibration runs one clip at a time: "
            f"export with --batch 1:{high}"
        )
    if bound.task is not None and source.graph("text") is None:
        raise InputError(
            f"{source.path} has no text tower, which labels need: give --min-cosine instead"
        )
