"""Time whole networks on a GPU against eager mode, torch.compile and other engines (see suite)."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.timing import Device, interleave
from stan_infer.checkpoints.presets import preset
from stan_infer.config import video_flops
from stan_infer.network.fold import fold_video
from stan_infer.network.model import Stan, init_random
from stan_infer.network.torch_ops import encode_video
from stan_infer.quantisation.observe import activation_scales

Run = Callable[[torch.Tensor], Any]

# Allowed difference from fp32, relative to the largest value; others are not timed.
TOLERANCE = {"fp32": 1e-3, "bf16": 1e-1, "fp16": 2e-2, "fp8": 3e-1}
# Lanes that compile for minutes, which --part ablation adds.
SLOW = ("compile max-autotune", "compile max-autotune, fused")
_TRITON: Mapping[str, dict[str, Any]] = {
    "triton": {},
    "triton fp8": {"precision": "fp8"},
    "triton, no CUDA graph": {"cuda_graphs": False, "two_streams": False},
    "triton, one stream": {"two_streams": False},
    "triton, trunk attention ours": {"kernels": frozenset({"trunk"})},
    "triton, linear then attention": {"kernels": frozenset({"linear"})},
    "triton, library linears": {"kernels": frozenset({"library"})},
}


@dataclasses.dataclass(frozen=True)
class Networks:
    """A preset's network in fp32, the lanes that were opened, and why others were not."""

    name: str
    exact: Stan
    opened: dict[str, Run]
    refused: dict[str, str]


def open_networks(device: Device, name: str, part: str) -> Networks:
    """Open every lane of a part once, for all shapes."""
    exact = init_random(Stan(preset(name))).eval().requires_grad_(False).to(device.name)
    # Every shape is to be compiled; beyond its limit torch.compile would run in eager mode.
    torch._dynamo.config.recompile_limit = 64
    networks = Networks(name, exact, {}, {})
    for lane, open_one in lanes(exact, device.name, part):
        try:
            networks.opened[lane] = open_one()
        except Exception as e:
            # Triton, Inductor and ONNX Runtime raise classes of their own; the lane gets a row.
            networks.refused[lane] = _first_line(e)
    return networks


def lanes(model: Stan, device: str, part: str) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Names of lanes with functions that open them; the first is the baseline.

    part: "model", "ablation", "ort" or "trt".
    """
    yield "eager bf16", lambda: _eager(model, device)
    if part == "ort":
        yield "ort fp16", lambda: _ort(model, device)
        return
    if part == "trt":
        yield "trt fp16", lambda: _plan(model, device, "trt")
        yield "trt-rtx fp16", lambda: _plan(model, device, "trt-rtx")
        return
    yield "compile", lambda: _compiled(model, device, "default", fused=False)
    if part == "model":
        names = ["triton", "triton fp8"]
        yield "compile, fused", lambda: _compiled(model, device, "default", fused=True)
    else:
        names = [n for n in _TRITON if n not in ("triton fp8",)]
        yield SLOW[0], lambda: _compiled(model, device, "max-autotune", fused=False)
        yield SLOW[1], lambda: _compiled(model, device, "max-autotune", fused=True)
    for name in names:
        yield name, lambda name=name: _triton(model, device, _TRITON[name])


def measure(
    device: Device, networks: Networks, b: int, t: int, tflops: float, rounds: int
) -> Iterator[dict[str, Any]]:
    """Rows of every lane for clips [B, T]; of a lane that cannot run, with the reason."""
    exact, opened, here = networks.exact, networks.opened, dict(networks.refused)
    config = exact.config
    side = config.image_size
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (b, t, side, side, 3), dtype=np.uint8)
    clips = torch.from_numpy(pixels).to(device.name)
    with torch.inference_mode():
        # Few at a time: in fp32, 32 clips of 64 frames would take more than the GPU has.
        wanted = torch.cat([exact.encode_video(c).mean(1) for c in clips.split(2)]).float()
    errors: dict[str, float] = {}
    for lane, run in opened.items():
        try:
            got = torch.as_tensor(run(clips)).to(wanted.device).float()
        except Exception as e:
            here[lane] = _first_line(e)
            continue
        errors[lane] = float((got - wanted).abs().max() / wanted.abs().max())
        if not errors[lane] <= TOLERANCE[_precision(lane)]:
            here[lane] = f"outputs differ by {errors[lane]:.1e}"
    calls = {
        lane: (lambda run=run, clips=clips: run(clips))
        for lane, run in opened.items()
        if lane not in here
    }
    timed = interleave(device, calls, rounds=rounds) if calls else {}
    work = b * video_flops(config, t) / 1e9
    head = {"model": networks.name, "batch": b, "frames": t}
    for lane, row in timed.items():
        yield {
            **head,
            "lane": lane,
            **row,
            "max_rel_error": errors[lane],
            "share_of_ceiling": work / row["ms_p50"] / tflops,
        }
    for lane, why in here.items():
        yield {**head, "lane": lane, "refused": why, "max_rel_error": errors.get(lane)}


def _precision(lane: str) -> str:
    return next((p for p in ("fp8", "fp16") if p in lane), "bf16")


def _first_line(e: BaseException) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0][:200]


def _inference(run: Run) -> Run:
    def inner(clips: torch.Tensor) -> Any:
        with torch.inference_mode():
            return run(clips)

    return inner


def _eager(model: Stan, device: str) -> Run:
    own = _copy(model, device)
    return _inference(lambda clips: own.encode_video(clips).mean(1))


def _compiled(model: Stan, device: str, mode: str, *, fused: bool) -> Run:
    if fused:
        weights = fold_video(_copy(model, device, torch.float32), dtype=torch.bfloat16)

        def network(clips: torch.Tensor) -> Any:
            return encode_video(weights, clips)[0]
    else:
        own = _copy(model, device)

        def network(clips: torch.Tensor) -> Any:
            return own.encode_video(clips).mean(1)

    return _inference(torch.compile(network, mode=mode, dynamic=False, fullgraph=True))


def _copy(model: Stan, device: str, dtype: torch.dtype = torch.bfloat16) -> Stan:
    own = Stan(model.config).to(device, dtype)
    own.load_state_dict(model.state_dict())
    return own.eval().requires_grad_(False)


def _triton(model: Stan, device: str, options: dict[str, Any]) -> Run:
    from stan_infer.engines.triton_session import TritonSession

    given = {"precision": "bf16", **options}
    if given["precision"] == "fp8":
        side = model.config.image_size
        clips = torch.randint(0, 256, (1, 8, side, side, 3), dtype=torch.uint8, device=device)
        given["scales"] = activation_scales(fold_video(model), clips)
    return partial(TritonSession(model, device=device, **given).embed_video, as_tensor=True)


def _ort(model: Stan, device: str) -> Run:
    from stan_infer.engines.open import open_session

    with tempfile.TemporaryDirectory() as folder:
        session = open_session(_exported(model, device, Path(folder)), "ort", device=device)
    return lambda clips: session.embed_video(clips.cpu().numpy())


def _plan(model: Stan, device: str, engine: str) -> Run:
    from stan_infer.benchmarking.cached_plans import add_plan
    from stan_infer.engines.open import open_session

    with tempfile.TemporaryDirectory() as folder:
        path = _exported(model, device, Path(folder))
        add_plan(path, engine, [1, 8], [12], lambda text: None)
        return partial(open_session(path, engine, device=device).embed_video, as_tensor=True)


def _exported(model: Stan, device: str, above: Path) -> Path:
    from stan_infer.export.export_model import export_model

    try:
        export_model(model.cpu(), above / "model", precision="fp16", tower="video", frames=(1, 16))
    finally:
        model.to(device)
    return above / "model"
