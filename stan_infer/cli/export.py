"""The command `stan-infer export`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stan_infer.artefacts.folder import ENGINES_FOLDER
from stan_infer.checkpoints.weights_folder import is_exported
from stan_infer.cli.given import class_names, parse_settings, use_threads
from stan_infer.cli.options import (
    BatchRange,
    CheckpointOrExport,
    FramesRange,
    Json,
    Labels,
    Locked,
    PrecisionWritten,
    Settings,
    SplitWords,
    Template,
    Threads,
    Weights,
)
from stan_infer.errors import InputError, MissingError, storable

if TYPE_CHECKING:
    import numpy as np

    from stan_infer.config import StanConfig
    from stan_infer.export.formats import Written
    from stan_infer.tensorrt_plans.plan_file import Plan


# The options of graphs and those of plans; --batch and --frames belong to both.
_OF_GRAPHS = (
    "tower precision input head labels split_words template graph split opset clips card "
    "licence settings weights".split()
)
_OF_PLANS = (
    "plans target tf32 workspace builder_level timing_cache hardware_compatible "
    "version_compatible".split()
)
_SPELT = {"settings": "--set", "licence": "--license"}
_GRAPHS = {"file": "file", "precision": "precision", "mib": "MiB", "nodes": "nodes"}
_GRAPHS |= {"max_rel_error": "error", "min_cosine": "cosine", "cases": "sizes compared"}
_PLANS = {"file": "file", "engine": "engine", "precision": "precision", "mib": "MiB"}
_PLANS |= {"build_s": "build s", "for": "for", "profiles": "profiles"}


def export(
    context: typer.Context,
    checkpoint: CheckpointOrExport,
    out: Annotated[
        Path | None,
        typer.Option(
            "-o", "--out", metavar="DIR", help="Folder to write; plans go into the exported folder."
        ),
    ] = None,
    format: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Format: onnx; tensorrt or tensorrt-rtx (with plans); triton-server (model "
            "repository).",
        ),
    ] = "onnx",
    tower: Annotated[
        str, typer.Option(metavar="both|video|text", help="Which towers to write.")
    ] = "both",
    precision: PrecisionWritten = "fp32",
    frames: FramesRange = None,
    batch: BatchRange = None,
    input: Annotated[
        str,
        typer.Option(
            metavar="uint8|float",
            help="Pixels that the graph takes: uint8, or float that the caller has normalised.",
        ),
    ] = "uint8",
    head: Annotated[
        str,
        typer.Option(
            metavar="embed|classify",
            help="What the graph returns: embeddings, or scores of the classes of --labels.",
        ),
    ] = "embed",
    labels: Labels = None,
    split_words: SplitWords = False,
    template: Template = None,
    graph: Annotated[
        str,
        typer.Option(
            metavar="fused|reference",
            help="Graph to write: fused, or reference (by torch.onnx.export, for comparison).",
        ),
    ] = "fused",
    split: Annotated[
        bool,
        typer.Option("--split", help="Also write trunk.onnx and branch.onnx, for sliding windows."),
    ] = False,
    opset: Annotated[
        int, typer.Option(metavar="N", help="Version of the ONNX operators, 18 to 25.")
    ] = 20,
    clips: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR", help="Videos on which to check that the values fit into fp16."
        ),
    ] = None,
    card: Annotated[
        bool, typer.Option("--card", help="Also write a model card, README.md.")
    ] = False,
    licence: Annotated[
        str | None,
        typer.Option("--license", metavar="TEXT", help="Licence of the weights, for the manifest."),
    ] = None,
    plans: Annotated[
        str,
        typer.Option(
            metavar="NAME,...",
            show_default=False,
            help="Plans: which graphs get one; also preprocess, score (default: "
            "video,text,trunk,branch).",
        ),
    ] = "video,text,trunk,branch",
    target: Annotated[
        str | None,
        typer.Option(
            metavar="SM,...", help="Plans of tensorrt-rtx: GPUs, as sm_89,sm_120 (default: all)."
        ),
    ] = None,
    tf32: Annotated[bool, typer.Option("--tf32", help="Plans: multiply fp32 in TF32.")] = False,
    workspace: Annotated[
        int | None,
        typer.Option(
            metavar="MIB", min=1, help="Plans: most memory of one layer, in MiB (default: all)."
        ),
    ] = None,
    builder_level: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=5, help="Plans: the builder's optimization level."),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Plans of tensorrt: file that keeps the builder's timings."
        ),
    ] = None,
    hardware_compatible: Annotated[
        bool,
        typer.Option(
            "--hardware-compatible", help="Plans of tensorrt: run on all GPUs from sm_80 on."
        ),
    ] = False,
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible",
            help="Plans of tensorrt: run in later versions; not loaded by our engines.",
        ),
    ] = False,
    backend: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What runs the towers in triton-server: onnxruntime, tensorrt."
        ),
    ] = "onnxruntime",
    threads: Threads = None,
    settings: Settings = None,
    weights: Weights = None,
    locked: Locked = False,
    json: Json = False,
) -> None:
    """Export a checkpoint to a folder that runs without torch.

    Before the folder appears, its graphs are compared with eager mode. An exported folder may be
    given, too: `--format tensorrt` and `tensorrt-rtx` add plans to it, and `triton-server` writes a
    model repository for NVIDIA's Triton Inference Server.
    """
    from stan_infer.checkpoints.load import inspect_checkpoint, load_model, no_checkpoint
    from stan_infer.cli.report import say
    from stan_infer.export import formats
    from stan_infer.export.options import parse_range
    from stan_infer.export.provenance import provenance
    from stan_infer.system.atomic import check_file, check_outside, files_of
    from stan_infer.system.outside_file import address_of
    from stan_infer.tensorrt_plans.options import PlanOptions, parse_ranges

    use_threads(context)
    used = formats.used_options(format, backend, checkpoint)
    if not os.path.exists(checkpoint) and (":" not in checkpoint or address_of(checkpoint)):
        raise no_checkpoint(checkpoint)
    groups = {
        formats.GRAPHS: _OF_GRAPHS,
        formats.PLANS: _OF_PLANS,
        formats.SIZES: ["batch", "frames"],
        formats.BACKEND: ["backend"],
    }
    _refuse_idle(
        context, checkpoint, [n for g, names in groups.items() if g not in used for n in names]
    )
    has_plans = formats.PLANS in used
    plan_options = PlanOptions(
        batch=parse_ranges(batch, "--batch") if batch and has_plans else (),
        frames=parse_ranges(frames, "--frames") if frames and has_plans else (),
        roles=tuple(r.strip() for r in plans.split(",") if r.strip()),
        tf32=tf32,
        workspace_mib=workspace,
        level=builder_level,
        timing_cache=timing_cache,
        hardware_compatible=hardware_compatible,
        version_compatible=version_compatible,
        targets=tuple(t.strip() for t in target.split(",")) if target else (),
    )
    if timing_cache and out:
        check_outside(timing_cache, out, "-o")
    if timing_cache:
        check_file(timing_cache)
    # The graphs must take every size of the profiles of their plans.
    most = max([32, *(high for _, _, high in plan_options.batch)])
    given = parse_settings(settings, weights)

    failed = 0

    def graph_options() -> dict[str, Any]:
        nonlocal failed
        config = inspect_checkpoint(checkpoint, given).layout.config if clips else None
        is_all = has_plans or frames is None
        readable = None
        if clips and config:
            readable, failed = _clips(clips, config)
        return {
            "tower": tower,
            "precision": precision,
            "input": input,
            "frames": None if is_all else parse_range(frames or "", "--frames"),
            "batch": (1, most) if has_plans or not batch else parse_range(batch, "--batch"),
            "head": head,
            "labels": list(found.names) if (found := class_names(labels, split_words)) else [],
            "template": [storable(t) for t in template or ["{}"]],
            "graph": graph,
            "split": split,
            "opset": opset,
            "clips": readable,
            "about": provenance(checkpoint, given, licence),
            "card": card,
        }

    replaces = out is not None and is_exported(out)
    with _plan_progress() as on_plan:
        written = formats.write(
            formats.Request(
                format=format,
                backend=backend,
                given=checkpoint,
                protected=[*files_of(checkpoint), *([labels] if labels else [])],
                out=out,
                load=lambda: load_model(checkpoint, given),
                graphs=graph_options,
                plans=plan_options,
                progress=say,
                on_plan=on_plan,
            )
        )
    if replaces:
        say(f"replaced the earlier export in {out}")
    _report(written, str(out or checkpoint), backend, json)
    if failed:
        say(f"{failed} videos of --clips could not be used")
        raise typer.Exit(2)


def _report(written: Written, out: str, backend: str, json: bool) -> None:
    from stan_infer.cli.report import print_facts, print_json, print_lines, print_table

    plans = [plan.sidecar for plan in written.plans]
    if written.models is not None:
        if json:
            print_json("export", {"out": out, "backend": backend, "models": written.models})
            return
        rows = [{"model": n, "config": f"{Path(out) / n}/config.pbtxt"} for n in written.models]
        print_table(rows)
        return
    if json:
        print_json("export", {"out": out, **(written.manifest or {}), "plans": plans})
        return
    if written.manifest is not None:
        parity = {p["file"]: p for p in written.manifest.get("parity") or []}
        files = written.manifest["files"]
        rows = [
            _row(g, files[g["file"]]["bytes"], parity.get(g["file"]))
            for g in written.manifest["graphs"]
        ]
        print_table(rows, _GRAPHS)
        if engines := dict.fromkeys(p["backend"] for p in parity.values()):
            print_facts({"compared in": ", ".join(engines)})
    if plans:
        if written.manifest is not None:
            print_lines("")
        print_table([plan_row(plan) for plan in written.plans], _PLANS)


def _refuse_idle(context: typer.Context, source: str, idle: Sequence[str]) -> None:
    """Raise InputError for a given option that has no effect here, as it was meant to have one."""
    for name in idle:
        if (given := context.get_parameter_source(name)) and given.name == "COMMANDLINE":
            option = _SPELT.get(name, f"--{name.replace('_', '-')}")
            what = "a folder" if is_exported(source) else "a checkpoint"
            raise InputError(
                f"{option} changes nothing in the export of {what} with this --format: leave it "
                f"out{', or export the checkpoint anew' if name in _OF_GRAPHS else ''}"
            )


def plan_row(plan: Plan) -> dict[str, Any]:
    """A plan as a row of a table."""
    from stan_infer.tensorrt_plans.plan_file import size_text

    sidecar = plan.sidecar
    ranges = [
        " ".join(
            f"{name} {size_text(low)}..{size_text(high)}" for name, (low, _, high) in p.items()
        )
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


@contextmanager
def _plan_progress() -> Iterator[Callable[[str, float], None]]:
    """Yield a function of a plan's name and done share; it shows a message and a bar per plan."""
    from stan_infer.cli.progress import progress_bars

    steps: dict[str, Callable[..., None]] = {}
    done: dict[str, float] = {}
    with progress_bars() as start:

        def on_plan(name: str, part: float) -> None:
            if name not in steps:
                steps[name], done[name] = start(f"building {name}", 1.0), 0.0
            if part > done[name]:
                steps[name](part - done[name])
                done[name] = part

        yield on_plan


def _row(graph: Mapping[str, Any], size: int, parity: Mapping[str, Any] | None) -> dict[str, Any]:
    row = {
        "file": graph["file"],
        "precision": graph["precision"],
        "mib": size / 2**20,
        "nodes": graph["nodes"],
    }
    if parity:
        row |= {
            "max_rel_error": parity["max_rel"],
            "min_cosine": parity["min_cos"],
            "cases": " ".join("x".join(map(str, sizes)) for sizes in parity["cases"]),
        }
    return row


def _clips(folder: Path, config: StanConfig) -> tuple[list[np.ndarray], int]:
    """One clip of each readable video, and how many others, which are named, there are.

    Raises InputError where none can be read, MissingError where nothing reads videos here.
    """
    from stan_infer.cli.report import say
    from stan_infer.video.clip import Clip
    from stan_infer.video.decode_pool import read_clips
    from stan_infer.video.find import list_videos
    from stan_infer.video.spec import ClipSpec

    found, failed = [], 0
    for _, result in read_clips(list_videos([folder]), ClipSpec.of(config)):
        if isinstance(result, MissingError):
            raise result
        if isinstance(result, Clip):
            found.append(result.pixels[None])
        else:
            say(f"error: {result}")
            failed += 1
    if not found:
        raise InputError(f"--clips {folder}: no video could be read")
    return found, failed
