"""Any model into any format, proved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.artefacts.folder import Artefact
from stan_infer.errors import check_word
from stan_infer.system.packages import require

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from stan_infer.network.model import Stan
    from stan_infer.tensorrt_plans.options import PlanOptions

FORMATS = ("onnx", "tensorrt", "tensorrt-rtx")


def export_model(
    model: Stan | Callable[[], Stan],
    out: str | Path,
    *,
    format: str = "onnx",
    precision: str = "fp32",
    tower: str = "both",
    input: str = "uint8",
    frames: int | tuple[int, int] | None = None,
    batch: int | tuple[int, int] = (1, 32),
    head: str = "embed",
    labels: Sequence[str] = (),
    template: str = "{}",
    graph: str = "fused",
    opset: int = 20,
    clips: Sequence[np.ndarray] | None = None,
    about: Mapping[str, Any] | None = None,
    card: bool = False,
    plan: PlanOptions | None = None,
    progress: Callable[[str], None] | None = None,
    on_plan: Callable[[str, float], None] | None = None,
) -> Artefact:
    """Write `model` as a folder and prove it against the model itself before the folder appears.

    format: "onnx"; "tensorrt" and "tensorrt-rtx" are that and plans of its graphs in engines/, as
    `plan` wants them (to_tensorrt.build_plans adds them to a folder that is there).
    model: a Stan, or a function that loads one, which is let go before the graphs are run: that
    halves the memory. out: a new or empty folder, or an earlier export, which is replaced.
    precision: fp32, fp16, bf16: of weights and linears; norms and softmaxes stay in fp32.
    tower: both, video or text. input: "uint8" [B, T, H, W, 3] RGB with the normalisation inside
    the graph, or "float" [B, T, 3, H, W] normalised. frames, batch: one fixed size, or smallest
    and largest of a dynamic axis (frames by default 1 to the time table's end).
    head: "classify" adds class scores [B, n] and probabilities over `labels`, each put into
    `template`; "embed" writes the labels' embeddings beside the graph.
    graph: "fused", or "reference", which goes through torch.onnx.export. opset: 18 to 25.
    clips: uint8 [B, T, S, S, 3] on which the ranges of fp16 are measured; synthetic ones if None.
    about: entries of the manifest: source, licence, command. card: write a README.md.
    progress: called with a sentence before each step. on_plan: with a plan's name and the part of
    its build that is done.

    Raises InputError for unknown words or a folder that cannot be written, MissingError for absent
    packages, CheckError when a graph's outputs differ from the model's, an axis is not dynamic, or
    fp16 would overflow; and what build_plans raises. Then there is no folder.
    """
    check_word("format", format, FORMATS)
    for module in ("torch", "onnx", "onnxruntime"):
        require(module, "exporting", "cpu")
    from torch import nn

    from stan_infer.export.options import ExportOptions
    from stan_infer.export.to_onnx import export_onnx
    from stan_infer.tensorrt_plans.build import build_plans, check_buildable
    from stan_infer.tensorrt_plans.options import PlanOptions

    engine, wanted = engine_of(format), plan or PlanOptions()
    if engine:
        check_buildable(engine, wanted)  # before the minutes that the graphs take

    def add_plans(folder: Path) -> None:
        if engine:
            build_plans(folder, engine, wanted, progress=on_plan)

    options = ExportOptions(
        tower=tower,
        precision=precision,
        input=input,
        frames=frames,
        batch=batch,
        head=head,
        labels=tuple(labels),
        template=template,
        graph=graph,
        opset=opset,
    )
    load: Callable[[], Any] = (lambda: model) if isinstance(model, nn.Module) else model
    return export_onnx(
        load,
        Path(out),
        options,
        clips=clips,
        about=dict(about or {}),
        card=card,
        say=progress or (lambda text: None),
        then=add_plans,
    )


def engine_of(format: str) -> str | None:
    """The engine that runs the plans of a format: "tensorrt" -> "trt"; None for "onnx"."""
    from stan_infer.tensorrt_plans.plan_file import FORMATS as PLANS

    return next((engine for engine, name in PLANS.items() if name == format), None)
