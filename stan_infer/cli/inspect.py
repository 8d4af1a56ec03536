"""The command `stan-infer inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from stan_infer.cli.given import check_said_once, parse_settings
from stan_infer.cli.options import CheckpointOrFolder, Frames, Json, Locked, Settings, Weights

if TYPE_CHECKING:
    from stan_infer.config import StanConfig


_OF_CHECKPOINTS = "--set and --weights belong to a checkpoint"


def inspect(
    context: typer.Context,
    checkpoint: CheckpointOrFolder,
    settings: Settings = None,
    weights: Weights = None,
    locked: Locked = False,
    frames: Frames = None,
    json: Json = False,
) -> None:
    """Show a checkpoint, a folder or a plan: sizes, GFLOPs, hashes."""
    check_said_once(context)
    if checkpoint.endswith(".plan"):
        _inspect_plan(checkpoint, parse_settings(settings, weights), json)
        return
    from stan_infer.checkpoints.load import inspect_checkpoint
    from stan_infer.checkpoints.weights_folder import is_exported
    from stan_infer.cli.report import print_facts, print_json, print_lines, print_table, say

    if is_exported(checkpoint):
        _inspect_folder(checkpoint, parse_settings(settings, weights), frames, json)
        return
    found = inspect_checkpoint(checkpoint, parse_settings(settings, weights))
    record = _record(checkpoint, found, frames)
    if json:
        print_json("inspect", record)
        return
    apart = ("config", "notes", "ignored", "hints", "weights")
    facts = {k: v for k, v in record.items() if k not in apart}
    print_facts(facts | {f"  {k}": v for k, v in record["config"].items()})
    if len(record["weights"]) > 1:
        print_lines("")
        rows = [{**r, "read": "yes" if r["read"] else "no"} for r in record["weights"]]
        print_table(rows, ["name", "kind", "tensors", "read"])
    hints = {k: v for k, v in record["hints"].items() if v not in (None, {}, [])}
    if hints:
        print_facts({f"hint {k}": v for k, v in hints.items()})
    for key, why in record["ignored"].items():
        say(f"ignored: {key} ({why})")
    for note in record["notes"]:
        say(f"note: {note}")


def _inspect_folder(folder: str, settings: dict[str, Any], frames: int | None, json: bool) -> None:
    """Show an exported folder, after comparing every hash."""
    from stan_infer.artefacts.folder import read_artefact
    from stan_infer.cli.report import print_facts, print_json, print_lines, print_table
    from stan_infer.errors import InputError

    if settings:
        raise InputError(f"{_OF_CHECKPOINTS}; a folder was exported with its own")
    artefact = read_artefact(folder)
    manifest, config = artefact.manifest, artefact.config
    record = {
        "folder": folder,
        "tool": manifest.get("tool"),
        "source": manifest.get("source"),
        "licence": manifest.get("licence"),
        "command": manifest.get("command"),
        "bytes": sum(f["bytes"] for f in manifest["files"].values()),
        **_cost(config, frames),
        "labels": manifest.get("labels"),
        "graphs": manifest["graphs"],
        "parity": manifest.get("parity"),
        "config": config.to_dict(),
    }
    if json:
        print_json("inspect", record)
        return
    shown = {k: v for k, v in record.items() if k not in ("config", "graphs", "parity")}
    print_facts(shown | {f"  {k}": v for k, v in record["config"].items()})
    print_lines("")
    parity = {p["file"]: p.get("max_rel") for p in manifest.get("parity") or []}
    print_table(
        [
            {
                "file": g["file"],
                "precision": g["precision"],
                "MiB": manifest["files"][g["file"]]["bytes"] / 2**20,
                "opset": g["opset"],
                "IR": g.get("ir"),
                "ORT": f">={g['min_onnxruntime']}" if "min_onnxruntime" in g else None,
                "error": parity.get(g["file"]),
                "sizes": ", ".join(f"{k} {a}:{b}" for k, (a, b) in g["dims"].items()),
            }
            for g in manifest["graphs"]
        ]
    )


def _inspect_plan(path: str, settings: dict[str, Any], json: bool) -> None:
    """Show a TensorRT plan by its sidecar and header, without TensorRT; its hash is compared."""
    from stan_infer.cli.report import print_facts, print_json, print_lines, print_table, say
    from stan_infer.errors import InputError
    from stan_infer.tensorrt_plans.known_faults import faults_of
    from stan_infer.tensorrt_plans.plan_file import read_header, read_plan, size_text

    if settings:
        raise InputError(f"{_OF_CHECKPOINTS}; a plan was built with its own")
    plan = read_plan(path)
    faults = faults_of(plan)
    record = {
        "plan": path,
        "engine": plan.engine,
        **plan.sidecar,
        "header": read_header(plan.path),
        "known_faults": faults,
    }
    if json:
        print_json("inspect", record)
        return
    built = plan.sidecar.get("built_on")
    print_facts(
        {
            "plan": path,
            "engine": plan.engine,
            "built by": f"{plan.flavor} {'.'.join(map(str, plan.version))}",
            "built on": f"{built.get('name')}, {plan.built_on}" if built else "any machine",
            "runs on": " ".join(plan.targets) or plan.built_on,
            "hardware compatibility": plan.hardware,
            "flags": " ".join(plan.flags) or "none",
            "tf32": plan.sidecar.get("tf32"),
            "role": plan.role,
            "precision": plan.precision,
            "mib": plan.sidecar["plan_bytes"] / 2**20,
            "sha256": plan.sidecar["plan_sha256"],
            "onnx": plan.sidecar.get("onnx"),
        }
    )
    rows = []
    for i, profile in enumerate(plan.profiles):
        for name, shapes in profile.items():
            low, best, high = (size_text(shape) for shape in shapes)
            sizes = {"smallest": low, "optimal": best, "largest": high}
            rows.append({"profile": i, "input": name, **sizes})
    print_lines("")
    print_table(rows)
    print_lines("")
    print_table(
        [{**io, "shape": size_text(io["shape"])} for io in plan.sidecar["io"]],
        ["name", "mode", "dtype", "shape"],
    )
    for fault in faults:
        say(f"reported for this version of TensorRT: {fault['what']} ({fault['link']})")


def _cost(config: StanConfig, frames: int | None) -> dict[str, Any]:
    from stan_infer.config import text_flops, video_flops
    from stan_infer.errors import InputError

    t = config.frames if frames is None else frames
    if not 1 <= t <= config.max_frames:
        raise InputError(f"--frames {t} is out of range; allowed are 1 to {config.max_frames}")
    return {
        "frames": t,
        "gflop_per_clip": video_flops(config, t) / 1e9,
        "gflop_per_text": text_flops(config, config.context_length) / 1e9,
    }


def _record(checkpoint: str, found: Any, frames: int | None) -> dict[str, Any]:
    from math import prod

    from stan_infer.config import parameter_shapes

    config = found.layout.config
    parts = {"trunk": 0, "branch": 0, "text": 0}
    for name, shape in parameter_shapes(config).items():
        part = {"visual": "trunk", "branch": "branch"}.get(name.split(".")[0], "text")
        parts[part] += prod(shape)
    towers = ["video", "text"] if config.has_text else ["video"]
    return {
        "checkpoint": checkpoint,
        "layout": found.layout.name,
        "file_bytes": found.bytes,
        "stored_values": found.dtypes,
        "towers": " and ".join(towers) + ("" if config.has_text else " (text tower missing)"),
        "parameters": sum(parts.values()),
        **{f"parameters_{k}": v for k, v in parts.items()},
        **_cost(config, frames),
        "config": config.to_dict(),
        "weights": found.weights,
        "hints": found.hints,
        "ignored": found.layout.ignored,
        "notes": list(found.layout.notes),
    }
