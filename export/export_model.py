"""Exporting a model as a folder of checked graphs, and of TensorRT plans if asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.artefacts.folder import Artefact
from stan_infer.errors import check_word
from stan_infer.system.packages import require
from stan_infer.tensorrt_plans.plan_file import FORMATS as PLANS

if TYPE_CHECKING:
    from stan_infer.network.model import Stan
    from stan_infer.tensorrt_plans.options import PlanOptions

# Format -> the engine whose plans it adds to the graphs.
FORMATS: dict[str, str | None] = {"onnx": None, **{name: engine for engine, name in PLANS.items()}}


def export_model(
    model: Stan | Callable[[], Stan],
    out: str | Path,
    *,
    format: str = "onnx",
    plan: PlanOptions | None = None,
    progress: Callable[[str], None] | None = None,
    on_plan: Callable[[str, float], None] | None = None,
    **options: Any,
) -> Artefact:
    """Write `model` as a folder, after comparing each graph's outputs with the model's.

    Nothing is written where that fails. tensorrt_plans.build adds plans to a folder that exists.

    Args:
        model: a Stan, or a function that loads one. What the function loads is released before the
            graphs are run, which halves the memory.
        out: a new or empty folder, or an earlier export, which is replaced.
        format: "onnx" for the graphs alone; "tensorrt" and "tensorrt-rtx" also build plans of them
            in engines/, with the options in `plan`.
        plan: a PlanOptions.
        progress: called with a sentence before each step.
        on_plan: called with a plan's file name and the part of its build that is done.
        options: the fields of ExportOptions: tower, precision, input, frames, batch, head, labels,
            template, graph, opset, clips, about, card.

    Returns:
        Artefact: its `path` and `manifest`.

    Raises:
        InputError: options that are wrong, or a folder that cannot be written.
        MissingError: packages that are missing.
        CheckError: a graph's outputs differ from the model's, an axis is not dynamic, or fp16 would
            overflow; and as build_plans does.

    Example:
        >>> import stan_infer as si
        >>> model = si.load_model("examples/motion/motion.safetensors")
        >>> artefact = si.export_model(model, "motion")
        >>> with si.open_session("motion") as session:
        ...     session.describe()["engine"]
        'ort'
    """
    check_word("format", format, FORMATS)
    for module in ("torch", "onnx", "onnxruntime"):
        require(module, "exporting", "cpu")
    from torch import nn

    from stan_infer.export.options import ExportOptions, check_opset
    from stan_infer.export.to_onnx import export_onnx

    graphs = ExportOptions(**options)
    check_opset(graphs.opset)
    then = _adder_of_plans(FORMATS[format], plan, on_plan)
    load: Callable[[], Any] = (lambda: model) if isinstance(model, nn.Module) else model
    say = progress or (lambda text: None)
    return export_onnx(load, Path(out), graphs, say=say, then=then)


def _adder_of_plans(
    engine: str | None, plan: PlanOptions | None, on_plan: Callable[[str, float], None] | None
) -> Callable[[Path], None]:
    """Return what adds the plans of an engine to a folder; None: of no engine."""
    from stan_infer.tensorrt_plans.build import build_plans, check_buildable
    from stan_infer.tensorrt_plans.options import PlanOptions

    if engine is None:
        return lambda folder: None
    wanted, chosen = plan or PlanOptions(), engine
    check_buildable(chosen, wanted)  # now, because writing the graphs takes minutes

    def add(folder: Path) -> None:
        build_plans(folder, chosen, wanted, progress=on_plan)

    return add
