"""stan-infer export."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stan_infer.artefacts.folder import ENGINES_FOLDER
from stan_infer.cli.options import (
    CheckpointOrFolder,
    Json,
    Settings,
    parse_settings,
    read_lines,
)
from stan_infer.errors import InputError, check_word, storable

if TYPE_CHECKING:
    import numpy as np

    from stan_infer.config import StanConfig
    from stan_infer.tensorrt_plans.options import PlanOptions
    from stan_infer.tensorrt_plans.plan_file import Plan


# Options by what they shape; batch and frames shape both.
_OF_GRAPHS = (
    "tower precision input head labels template graph opset clips card licence settings".split()
)
_OF_PLANS = (
    "plans target tf32 workspace level timing_cache hardware_compatible version_compatible".split()
)
_SPELT = {"settings": "--set", "licence": "--license"}


def export(
    context: typer.Context,
    checkpoint: CheckpointOrFolder,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="DIR", help="Folder to write (of a checkpoint)."),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            help="onnx, tensorrt or tensorrt-rtx (plans, too), triton-server (repository)."
        ),
    ] = "onnx",
    tower: Annotated[str, typer.Option(help="both, video or text.")] = "both",
    precision: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp32",
    frames: Annotated[
        str | None,
        typer.Option(help="T: 12, or 1:64 for a dynamic axis (default: all); of plans 8:12:16."),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(help="B: 1, or 1:32 for a dynamic axis (default); of plans MIN:OPT:MAX,..."),
    ] = None,
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
    plans: Annotated[
        str, typer.Option(help="Graphs to build plans of: video, text, preprocess, score.")
    ] = "video,text",
    target: Annotated[
        str | None, typer.Option(help="GPUs of tensorrt-rtx: sm_89,sm_120 (default: all).")
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="Plans: fp32 products in TF32.")] = False,
    workspace: Annotated[
        int | None, typer.Option(min=1, help="Plans: memory of one layer, MiB (default: all).")
    ] = None,
    level: Annotated[
        int | None, typer.Option(min=0, max=5, help="Plans: the builder's optimization level.")
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="Plans of tensorrt: file of timings to use and extend.")
    ] = None,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="Plans of tensorrt: for sm_80 and newer.")
    ] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Plans of tensorrt with host code.")
    ] = False,
    backend: Annotated[
        str, typer.Option(help="Of triton-server's towers: onnxruntime or tensorrt.")
    ] = "onnxruntime",
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Export as a folder that runs without torch, and prove it against eager before it appears.

    Given an exported folder, --format tensorrt and tensorrt-rtx add plans to it, and triton-server
    writes it as a model repository of NVIDIA's Triton Inference Server.
    """
    from stan_infer.artefacts.folder import files_of, why_keep
    from stan_infer.cli.report import print_json, print_table, say
    from stan_infer.export.export_model import FORMATS, engine_of, export_model
    from stan_infer.export.options import parse_range
    from stan_infer.export.to_triton_server import BACKENDS, why_keep_repository
    from stan_infer.export.to_triton_server import FORMAT as SERVED
    from stan_infer.system.atomic import check_folder, check_outside
    from stan_infer.tensorrt_plans.options import PlanOptions, parse_ranges

    check_word("format", format, (*FORMATS, SERVED))
    check_word("backend", backend, BACKENDS)
    if not os.path.exists(checkpoint) and ":" not in checkpoint:
        raise InputError(f"{checkpoint}: no such file or folder; check the spelling")
    is_served = format == SERVED
    if is_served:
        format = "tensorrt" if backend == "tensorrt" else "onnx"
    engine, wanted = engine_of(format), PlanOptions()
    _refuse_idle(context, os.path.isdir(checkpoint), engine is not None, is_served)
    if engine:
        wanted = PlanOptions(
            batch=parse_ranges(batch, "--batch") if batch else (),
            frames=parse_ranges(frames, "--frames") if frames else (),
            roles=tuple(r.strip() for r in plans.split(",") if r.strip()),
            tf32=tf32,
            workspace_mib=workspace,
            level=level,
            timing_cache=timing_cache,
            hardware_compatible=hardware_compatible,
            version_compatible=version_compatible,
            targets=tuple(t.strip() for t in target.split(",")) if target else (),
        )
    if os.path.isdir(checkpoint) and not is_served:
        _add_plans(checkpoint, engine, out, wanted, json)
        return
    if out is None:
        raise InputError("give the folder to write: stan-infer export CHECKPOINT -o FOLDER")
    of_kind = why_keep_repository if is_served else why_keep
    check_folder(out, of_kind, sources=files_of(checkpoint))
    if timing_cache:
        check_outside(timing_cache, out, "-o")
    if os.path.isdir(checkpoint):
        _serve(Path(checkpoint), out, backend, json)
        return
    from stan_infer.checkpoints.load import inspect_checkpoint, load_model

    frame_range = None if engine or frames is None else parse_range(frames, "--frames")
    # The graphs take any size that a profile names; profiles are of the plans.
    most = max([32, *(high for _, _, high in wanted.batch)])
    batch_range = (1, most) if engine or not batch else parse_range(batch, "--batch")
    classes = read_lines(labels, "labels") if labels else []
    given = parse_settings(settings)
    config = inspect_checkpoint(checkpoint, given).layout.config if clips else None
    with _plan_progress() as on_plan, _aside(out, is_served) as folder:
        artefact = export_model(
            lambda: load_model(checkpoint, given),
            folder,
            format=format,
            tower=tower,
            precision=precision,
            input=input,
            frames=frame_range,
            batch=batch_range,
            head=head,
            labels=classes,
            template=storable(template),
            graph=graph,
            opset=opset,
            clips=_clips(clips, config) if clips and config else None,
            about=about(checkpoint, given, licence),
            card=card,
            plan=wanted,
            progress=say,
            on_plan=on_plan,
        )
        if is_served:
            _serve(folder, out, backend, json)
            return
    built = _plans_of(artefact.path) if engine else []
    if json:
        sidecars = [plan.sidecar for plan in built]
        print_json("export", {"out": str(out), **artefact.manifest, "plans": sidecars})
        return
    parity = {p["file"]: p for p in artefact.manifest.get("parity") or []}
    print_table([_row(g, parity.get(g["file"])) for g in artefact.manifest["graphs"]])
    if built:
        print_table([plan_row(plan) for plan in built])


def _refuse_idle(context: typer.Context, is_folder: bool, has_plans: bool, is_served: bool) -> None:
    """Refuse options that would change nothing, which is not what was meant by them."""
    idle: list[str] = []
    if is_folder:
        idle += _OF_GRAPHS
    if is_folder and is_served:
        idle += ["batch", "frames"]
    if not has_plans or (is_folder and is_served):
        idle += _OF_PLANS
    if not is_served:
        idle.append("backend")
    for name in idle:
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE":
            option = _SPELT.get(name, f"--{name.replace('_', '-')}")
            what = "a folder" if is_folder else "a checkpoint"
            raise InputError(
                f"{option} changes nothing in the export of {what} with this --format: leave it "
                f"out{', or export the checkpoint anew' if name in _OF_GRAPHS else ''}"
            )


def plan_row(plan: Plan) -> dict[str, Any]:
    """A plan as a row of a table."""
    sidecar = plan.sidecar
    ranges = [
        " ".join(f"{name} {_size(low)}..{_size(high)}" for name, (low, _, high) in p.items())
        for p in plan.profiles
    ]
    return {
        "file": f"{ENGINES_FOLDER}/{plan.path.name}",
        "engine": plan.engine,
        "precision": plan.precision,
        "mib": sidecar["plan_bytes"] / 2**20,
        "build_s": sidecar.get("build_seconds"),
        "for": " ".join(plan.targets) or plan.built_on,
        "profiles": "; ".join(ranges),
    }


def _add_plans(
    folder: str, engine: str | None, out: Path | None, wanted: PlanOptions, json: bool
) -> None:
    """Build plans into a folder that was exported before."""
    from stan_infer.cli.report import print_json, print_table
    from stan_infer.tensorrt_plans.build import build_plans

    if engine is None:
        raise InputError(
            f"{folder} is a folder; format onnx takes a checkpoint. Give the checkpoint, or "
            "--format tensorrt or tensorrt-rtx, which adds plans to the folder"
        )
    if out is not None and out.absolute() != Path(folder).absolute():
        raise InputError("plans are added to the folder itself: leave -o out, or copy the folder")
    with _plan_progress() as on_plan:
        built = build_plans(folder, engine, wanted, progress=on_plan)
    if json:
        print_json("export", {"out": folder, "plans": [plan.sidecar for plan in built]})
    else:
        print_table([plan_row(plan) for plan in built])


def _serve(folder: Path, out: Path, backend: str, json: bool) -> None:
    """Write a folder as a repository of Triton Inference Server."""
    from stan_infer.artefacts.folder import read_artefact
    from stan_infer.cli.report import print_json, print_table
    from stan_infer.export.to_triton_server import write_repository

    models = write_repository(read_artefact(folder), out, backend=backend)
    if json:
        print_json("export", {"out": str(out), "backend": backend, "models": models})
    else:
        print_table([{"model": name, "config": f"{out / name}/config.pbtxt"} for name in models])


@contextmanager
def _aside(out: Path, is_served: bool) -> Iterator[Path]:
    """Where the folder is written: `out`, or one that goes once it was turned into a repository."""
    if not is_served:
        yield out
        return
    from stan_infer.system.temporary import temporary_folder

    with temporary_folder("the export that is served") as above:
        yield above / "folder"


def _plans_of(folder: Path) -> list[Plan]:
    from stan_infer.tensorrt_plans.plan_file import read_plan

    return [read_plan(path) for path in sorted((folder / ENGINES_FOLDER).glob("*.plan"))]


@contextmanager
def _plan_progress() -> Iterator[Callable[[str, float], None]]:
    """Yield what moves one bar for each plan; on no terminal a sentence says that one begins."""
    from stan_infer.cli.progress import progress_bar
    from stan_infer.cli.report import say

    bars: dict[str, tuple[Callable[..., None], list[float]]] = {}
    with ExitStack() as stack:

        def on_plan(name: str, part: float) -> None:
            if name not in bars:
                say(f"building {name}")
                stack.close()  # rich shows one bar at a time
                bars[name] = stack.enter_context(progress_bar(name, 1.0)), [0.0]
            step, done = bars[name]
            if part > done[0]:
                step(part - done[0])
                done[0] = part

        yield on_plan


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _row(graph: Mapping[str, Any], parity: Mapping[str, Any] | None) -> dict[str, Any]:
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


def about(checkpoint: str, settings: dict[str, Any], licence: str | None) -> dict[str, Any]:
    """Where the weights come from, without a path of this machine."""
    from stan_infer.artefacts.folder import sha256
    from stan_infer.checkpoints.load import inspect_checkpoint

    source: dict[str, Any] = {"file": storable(os.path.basename(checkpoint))}
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
    return {
        "source": source,
        "licence": None if licence is None else storable(licence),
        "command": storable(shlex.join(["stan-infer", *words])),
    }


def _clips(folder: Path, config: StanConfig) -> list[np.ndarray]:
    """Every readable video as one clip; unreadable ones are named, none at all is an error."""
    from stan_infer.cli.report import say
    from stan_infer.video.clip import Clip, list_videos
    from stan_infer.video.decode_worker import read_clips

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
