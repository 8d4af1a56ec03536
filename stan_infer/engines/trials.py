"""Try every engine and decoder on a tiny input, to find out which of them run here."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stan_infer.checkpoints.presets import preset
from stan_infer.engines.graph import OpenGraph
from stan_infer.engines.open import (
    CHECKPOINT,
    ENGINES,
    Engine,
    Trial,
    open_graph,
    open_session,
)
from stan_infer.errors import InputError, MissingError
from stan_infer.system.packages import install_command, is_installed, require
from stan_infer.system.temporary import temporary_folder
from stan_infer.tensorrt_plans.api import load_tensorrt
from stan_infer.tensorrt_plans.build import run_job
from stan_infer.tensorrt_plans.build_process import Job
from stan_infer.tensorrt_plans.plan_file import FLAVORS, new_plan, read_plan
from stan_infer.video.decoder_trial import decode_own_clip

# An ONNX model of one Identity node, float[1] x -> y, opset 20, IR 10. It shows which provider
# opens a session. It is written as bytes because onnx and torch may be missing.
IDENTITY = bytes.fromhex(
    "080a3a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02"
    "0801620f0a0179120a0a08080112040a02080142040a001014"
)


def try_engines() -> list[dict[str, Any]]:
    """Try every engine on every device: records with `works` and, if not, `reason` and `help`."""
    return [
        _try(entry.name, trial.device, partial(_run, entry, trial.device), _remedy(trial))
        for entry in ENGINES.values()
        for trial in entry.trials
    ]


def try_decoders() -> list[dict[str, Any]]:
    """Try every video decoder, as try_engines does."""
    pyav = _try("pyav", "cpu", lambda: decode_own_clip("pyav"), _repair("av", "runtime"))
    decord = _try("decord", "cpu", lambda: decode_own_clip("decord"), _repair("decord", "decord"))
    if not pyav["works"] and not decord["works"] and is_installed("decord"):
        decord["help"] = pyav["help"]  # PyAV opens every file before decord does
    return [pyav, decord]


def _repair(module: str, extra: str) -> str:
    """Return the command that installs a package, or installs it again if it is here but broken."""
    return install_command(extra, options="--force-reinstall" if is_installed(module) else "")


def _try(name: str, device: str, run: Callable[[], object], remedy: str) -> dict[str, Any]:
    record: dict[str, Any] = {"name": name, "device": device, "works": True}
    try:
        run()
    except Exception as e:
        # A broken installation may raise anything. An InputError is about a place or a file that
        # cannot be used: its message says what helps, and no package does.
        remedy = "see the reason" if isinstance(e, InputError) else remedy
        record |= {"works": False, "reason": _reason(e), "help": remedy}
    return record


def _reason(error: Exception) -> str:
    """The first line of a message, without what it says to another command: to see this one."""
    line = str(error).split("\n")[0]
    return re.sub(r"; (use --(engine|device) |see: stan-infer doctor).*", "", line)[:200]


def _remedy(trial: Trial) -> str:
    if not trial.extra:
        return f"install the driver of {trial.driver}"
    also = f", with the driver of {trial.driver}" if trial.driver else ""
    return install_command(trial.extra) + also


def _run(entry: Engine, device: str) -> None:
    if entry.load_graph is not None:
        _run_graph(open_graph(IDENTITY, entry.name, device=device))
    elif entry.takes == CHECKPOINT:
        _run_model(entry.name, device)
    elif device == "build":
        with temporary_folder("a plan built as a trial") as folder:
            _build_identity(entry.name, folder)
    else:
        _run_plan(entry.name)


def _run_graph(graph: OpenGraph) -> None:
    x = np.ones(1, dtype=np.float32)
    with closing(graph):
        if graph.run({"x": x})["y"] != x:
            raise RuntimeError("an identity graph changed its input")


def _run_model(engine: str, device: str) -> None:
    torch = require("torch", f"engine {engine}", "cpu" if device == "cpu" else "gpu")
    from stan_infer.network.model import Stan, init_random

    session = open_session(init_random(Stan(preset("stan-tiny"))), engine, device=device)
    clip = torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8)
    if not np.isfinite(session.embed_video(clip)).all():
        raise RuntimeError("a tiny model returned values that are not finite")


def _build_identity(engine: str, folder: Path) -> Any:
    load_tensorrt(engine)
    onnx, out = folder / "x.onnx", folder / "x.plan"
    onnx.write_bytes(IDENTITY)
    words = {"flavor": FLAVORS[engine], "role": "identity", "precision": "fp32"}
    with new_plan(out) as (plan, sidecar):
        job = Job(engine=engine, onnx=str(onnx), out=str(plan), profiles=[])
        sidecar |= {**words, **run_job(job, lambda part: None), "profiles": [{"x": [[1]] * 3}]}
    return read_plan(out)


def _run_plan(engine: str) -> None:
    module = load_tensorrt(engine)
    torch = require("torch", f"engine {engine}", "gpu")
    if not torch.cuda.is_available():
        raise MissingError("torch finds no NVIDIA GPU")
    from stan_infer.engines.trt_graph import PlanGraph

    with temporary_folder("a plan built as a trial") as folder:
        plan = _build_identity(engine, folder)
        _run_graph(PlanGraph(plan, module, torch.device("cuda", 0), cuda_graphs=False))
