"""Which engines and decoders really run here, found by running each on something tiny."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stan_infer.errors import InputError

# An ONNX model of one Identity node, float[1] x -> y, opset 20, IR 10: enough to see which provider
# really opens a session, on a machine that has neither onnx nor torch.
IDENTITY = bytes.fromhex(
    "080a3a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a02"
    "0801620f0a0179120a0a08080112040a02080142040a001014"
)


def try_engines() -> list[dict[str, Any]]:
    """Try every engine on every device: records with `works` and, if not, `reason` and `help`."""
    from stan_infer.system.packages import install_command

    cpu, gpu = install_command("cpu"), install_command("gpu")
    return [
        _try("eager", "cpu", lambda: _run_torch("eager", "cpu"), cpu),
        _try("eager", "cuda", lambda: _run_torch("eager", "cuda"), gpu),
        _try(
            "triton", "cuda", lambda: _run_torch("triton", "cuda"), f"{gpu}, with an NVIDIA driver"
        ),
        _try("ort", "cpu", lambda: _run_ort("cpu"), install_command("runtime")),
        _try("ort", "cuda", lambda: _run_ort("cuda"), gpu),
        _try("trt", "cuda", lambda: _run_trt("trt"), install_command("trt")),
        _try("trt-rtx", "build", lambda: _build_rtx(), install_command("trt-rtx")),
        _try("trt-rtx", "cuda", lambda: _run_trt("trt-rtx"), "install the driver of an NVIDIA GPU"),
        _try("openvino", "cpu", lambda: _run_ov("cpu"), install_command("openvino")),
        _try("openvino", "gpu", lambda: _run_ov("gpu"), "install the driver of an Intel GPU"),
    ]


def try_decoders() -> list[dict[str, Any]]:
    """Try every video decoder, as try_engines does."""
    from stan_infer.video.decoder_trial import decode_own_clip

    pyav = _try("pyav", "cpu", lambda: decode_own_clip("pyav"), _repair("av", "runtime"))
    decord = _try("decord", "cpu", lambda: decode_own_clip("decord"), _repair("decord", "decord"))
    if not pyav["works"] and not decord["works"] and find_spec("decord") is not None:
        decord["help"] = pyav["help"]  # PyAV looks at every file before decord
    return [pyav, decord]


def _repair(module: str, extra: str) -> str:
    """The command that installs a package, or installs it anew where it is here but broken."""
    from stan_infer.system.packages import install_command

    is_here = find_spec(module) is not None
    return install_command(extra, options="--force-reinstall" if is_here else "")


def _try(name: str, device: str, run: Callable[[], object], remedy: str) -> dict[str, Any]:
    record: dict[str, Any] = {"name": name, "device": device, "works": True}
    try:
        run()
    except Exception as e:
        # Whatever a broken installation raises is the finding.
        # A place or file that cannot be used is mended as its message says, by no package.
        remedy = "see the reason" if isinstance(e, InputError) else remedy
        record |= {"works": False, "reason": str(e).split("\n")[0][:200], "help": remedy}
    return record


def _run_torch(engine: str, device: str) -> None:
    from stan_infer.checkpoints.presets import preset
    from stan_infer.engines.open import open_session
    from stan_infer.system.packages import require

    torch = require("torch", f"engine {engine}", "cpu" if device == "cpu" else "gpu")
    from stan_infer.network.model import Stan, init_random

    session = open_session(init_random(Stan(preset("stan-tiny"))), engine, device=device)
    clip = torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8)
    if not torch.isfinite(session.embed_video(clip)).all():
        raise RuntimeError("a tiny model returned values that are not finite")


def _run_ort(device: str) -> None:
    import numpy as np

    from stan_infer.engines.ort_session import open_graph

    x = np.ones(1, dtype=np.float32)
    if open_graph(IDENTITY, device=device).run(None, {"x": x})[0] != x:
        raise RuntimeError("an identity graph changed its input")


def _run_ov(device: str) -> None:
    import numpy as np

    from stan_infer.engines.ov_session import open_graph

    x = np.ones(1, dtype=np.float32)
    if open_graph(IDENTITY, device=device)({"x": x})["y"] != x:
        raise RuntimeError("an identity graph changed its input")


def _build_rtx() -> None:
    """Build a plan of one node, as works without a GPU."""
    from stan_infer.system.temporary import temporary_folder

    with temporary_folder("a plan built as a trial") as folder:
        _build_identity("trt-rtx", folder)


def _build_identity(engine: str, folder: Path) -> Any:
    from stan_infer.tensorrt_plans.api import load_tensorrt
    from stan_infer.tensorrt_plans.build import run_job
    from stan_infer.tensorrt_plans.build_process import Job
    from stan_infer.tensorrt_plans.plan_file import ENGINES, new_plan, read_plan

    load_tensorrt(engine)
    onnx, out = folder / "x.onnx", folder / "x.plan"
    onnx.write_bytes(IDENTITY)
    words = {"flavor": ENGINES[engine], "role": "identity", "precision": "fp32"}
    with new_plan(out) as (plan, sidecar):
        job = Job(engine=engine, onnx=str(onnx), out=str(plan), profiles=[])
        sidecar |= {**words, **run_job(job, lambda part: None), "profiles": [{"x": [[1]] * 3}]}
    return read_plan(out)


def _run_trt(engine: str) -> None:
    import numpy as np

    from stan_infer.errors import MissingError
    from stan_infer.system.packages import require
    from stan_infer.tensorrt_plans.api import load_tensorrt

    module = load_tensorrt(engine)
    torch = require("torch", f"engine {engine}", "gpu")
    if not torch.cuda.is_available():
        raise MissingError("torch finds no NVIDIA GPU")
    from stan_infer.engines.trt_graph import PlanGraph
    from stan_infer.system.temporary import temporary_folder

    x = np.ones(1, dtype=np.float32)
    with temporary_folder("a plan built as a trial") as folder:
        plan = _build_identity(engine, folder)
        graph = PlanGraph(plan, module, torch.device("cuda", 0), cuda_graphs=False)
        with closing(graph):
            if graph.run("y", {"x": x})[0] != x:
                raise RuntimeError("an identity graph changed its input")
