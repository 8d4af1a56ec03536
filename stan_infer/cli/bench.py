"""stan-infer bench."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stan_infer.cli.options import Device, Json, Settings, parse_numbers, parse_settings

if TYPE_CHECKING:
    from stan_infer.bench import Lane
    from stan_infer.model import Stan


def bench(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="[CKPT_OR_DIR]", help="Checkpoint or exported folder; without it, --preset."
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="Engines, comma separated (default: eager,ort; of a folder ort)."),
    ] = None,
    preset: Annotated[
        str, typer.Option(help="Architecture with random weights, where no checkpoint is given.")
    ] = "stan-b32",
    batch: Annotated[str, typer.Option(help="Batch sizes, comma separated.")] = "1",
    frames: Annotated[str, typer.Option(help="Frame counts, comma separated.")] = "8",
    precision: Annotated[
        str | None, typer.Option(help="fp32, fp16, bf16 (default: fp32; of a folder its own).")
    ] = None,
    device: Device = "cpu",
    warmup: Annotated[int, typer.Option(min=1, help="Uncounted rounds.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Counted rounds.")] = 10,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of every engine.")] = None,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Time engines against eager mode, interleaved in one process, with their error beside it.

    An exported folder has no eager mode: its first engine is the baseline.
    """
    from stan_infer.bench import bench_videos
    from stan_infer.cli.progress import progress_bar
    from stan_infer.engines import check_engine
    from stan_infer.errors import InputError
    from stan_infer.machine import machine_record
    from stan_infer.report import print_json, print_table, say

    is_folder = checkpoint is not None and os.path.isdir(checkpoint)
    names = [n.strip() for n in (engine or ("ort" if is_folder else "eager,ort")).split(",")]
    for name in names:
        check_engine(name)
    if precision == "bf16" and "ort" in names:
        raise InputError(
            "--precision bf16: ONNX Runtime has no bf16 on a CPU; use --engine eager,openvino"
        )
    batches = parse_numbers(batch, "--batch", 1, 64)
    import tempfile

    with tempfile.TemporaryDirectory(prefix="stan-infer-") as folder:
        if is_folder:
            assert checkpoint is not None
            lanes = _folder_lanes(checkpoint, names, settings, device, precision, threads)
        else:
            # The baseline is always measured: a speed-up against nothing means nothing.
            names = ["eager", *dict.fromkeys(n for n in names if n != "eager")]
            model = _model(checkpoint, preset, settings)
            lanes = _lanes(model, names, Path(folder), device, precision, threads)
        counts = parse_numbers(frames, "--frames", 1, lanes[0].session.config.max_frames)
        total = len(batches) * len(counts) * (warmup + repeats)
        with progress_bar("measuring", total) as step:
            rows = bench_videos(
                lanes,
                batches=batches,
                frames=counts,
                warmup=warmup,
                repeats=repeats,
                on_round=step,
            )
        for lane in lanes:
            lane.session.close()
    model_name = checkpoint or f"{preset} (random weights)"
    machine = machine_record()
    if json:
        for row in rows:
            print_json("bench", {"model": model_name, **row, "machine": machine})
        return
    say(f"{model_name} on {machine['cpu']}, {machine['cores']} cores, {rows[0]['threads']} threads")
    shown = ("engine", "precision", "batch", "frames", "latency_ms_p50", "latency_ms_p95")
    print_table(rows, [*shown, "clips_per_s", "gflop_per_s", "speedup", "max_rel_error"])


def _model(checkpoint: str | None, preset: str, settings: list[str] | None) -> Stan:
    from stan_infer.errors import require

    require("torch", "bench, whose baseline is eager mode,", "stan-infer[cpu]")
    from stan_infer.model import Stan, init_random

    given = parse_settings(settings)
    if checkpoint is not None:
        from stan_infer.checkpoint import load_model

        return load_model(checkpoint, given)
    from stan_infer.clip_source import clip_config, is_clip_name
    from stan_infer.config import PRESETS
    from stan_infer.config import preset as named

    if preset not in PRESETS and is_clip_name(preset):
        return init_random(Stan(clip_config(preset, given))).eval()
    return init_random(Stan(named(preset).replace(given))).eval()


def _folder_lanes(
    source: str,
    names: list[str],
    settings: list[str] | None,
    device: str,
    precision: str | None,
    threads: int | None,
) -> list[Lane]:
    from stan_infer.bench import Lane
    from stan_infer.engines import open_session

    given = parse_settings(settings) or None
    return [
        Lane(
            name,
            open_session(
                source, name, device=device, precision=precision, settings=given, threads=threads
            ),
        )
        for name in dict.fromkeys(names)
    ]


def _lanes(
    model: Stan,
    names: list[str],
    folder: Path,
    device: str,
    precision: str | None,
    threads: int | None,
) -> list[Lane]:
    import torch

    from stan_infer.bench import Lane
    from stan_infer.engines import open_session
    from stan_infer.export import export_model
    from stan_infer.report import say

    if threads:
        torch.set_num_threads(threads)
    threads = torch.get_num_threads()
    lanes: list[Lane] = []
    wait = torch.cuda.synchronize if device.startswith("cuda") else None
    for name in names:
        source: Stan | Path = model
        if name != "eager":
            source = folder / "onnx"
            if not source.exists():
                export_model(
                    model, source, precision=precision or "fp32", tower="video", progress=say
                )
        session = open_session(source, name, device=device, precision=precision, threads=threads)
        lanes.append(Lane(name, session, wait))
    return lanes
