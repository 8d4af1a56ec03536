"""Open a side of a comparison: find out what it is, and in which engine it runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.checkpoints.hub import located
from stan_infer.checkpoints.weights_folder import is_exported
from stan_infer.engines.open import engine_named, graph_engines, open_session
from stan_infer.errors import InputError, MissingError
from stan_infer.system.outside_file import odd_name
from stan_infer.system.packages import require
from stan_infer.verification.checkpoint_side import Checkpoint
from stan_infer.verification.side import Side

if TYPE_CHECKING:
    from stan_infer.network.model import Stan


def open_side(
    model: str | Path | Stan, engine: str | None = None, settings: Mapping[str, Any] | None = None
) -> Side:
    """Open one side of a comparison.

    model: a checkpoint (or an open_clip name and tag, or a loaded Stan), an exported folder, an
    .onnx file, or a .plan in a folder. engine: of a folder or an .onnx file one of graph_engines(),
    by default "ort"; of a checkpoint "eager"; of a plan its own. settings: of a checkpoint. Raises
    InputError and MissingError.
    """
    if engine is not None:
        engine_named(engine)
    model = located(model)
    path = Path(model) if isinstance(model, (str, Path)) else Path()
    if path.suffix == ".plan":
        from stan_infer.tensorrt_plans.plan_file import read_plan

        own = read_plan(path, check_hash=False).engine
        if engine not in (None, own):
            raise InputError(f"{path} is a plan of engine {own}, not {engine}")
        try:
            require("torch", f"engine {own}", "gpu")
        except MissingError:
            # A plan or folder that was changed is a fault of its own, which this names first.
            open_session(path)
            raise
        from stan_infer.verification.plan_side import PlanFile

        return PlanFile(path)
    is_folder = isinstance(model, (str, Path)) and is_exported(path)
    is_graph = is_folder or path.suffix == ".onnx"
    takes = "a checkpoint" if engine == "eager" else "an exported folder or an .onnx file"
    if engine is not None and is_graph != (engine != "eager"):
        raise InputError(f"engine {engine} takes {takes}, not {model}")
    if is_graph and engine is not None and engine not in graph_engines():
        raise InputError(
            f"engine {engine} opens no ONNX graphs: give {' or '.join(graph_engines())}, or a .plan"
        )
    if is_graph and not os.path.exists(path):
        raise InputError(odd_name(path) or f"no such file: {path}; check the spelling")
    if is_graph:
        from stan_infer.verification.folder_side import Folder
        from stan_infer.verification.graph_side import GraphFile

        return (Folder if is_folder else GraphFile)(path, engine or "ort")
    if not isinstance(model, (str, Path)):
        return Checkpoint(model, "a loaded model")
    from stan_infer.checkpoints.load import load_model, require_torch

    require_torch("verifying a checkpoint", "cpu", model, settings)
    return Checkpoint(load_model(model, settings), str(model))
