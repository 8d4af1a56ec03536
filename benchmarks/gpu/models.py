"""Time whole networks on a GPU against eager mode, torch.compile and other engines (see suite).

Baselines are as fast as they can honestly be: every weight has a static address, so that CUDA
graphs copy the clips alone; mean and std are buffers; torch's attention takes the back end that is
fastest for the network and the shape, for eager mode as for all other lanes.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.timing import Device, interleave
from benchmarks.gpu.worker import Steps
from stan_infer.checkpoints.presets import preset
from stan_infer.config import video_flops
from stan_infer.network.fold import fold_video
from stan_infer.network.model import Stan, init_random
from stan_infer.network.torch_ops import encode_video
from stan_infer.quantisation.observe import activation_scales

Run = Callable[[torch.Tensor], Any]

# Allowed difference from fp32, relative to the largest value; others are not timed.
TOLERANCE = {"fp32": 1e-3, "bf16": 1e-1, "fp16": 2e-2, "fp8": 3e-1}
EAGER, MAX = "eager bf16", "compile max-autotune"
# Lanes that others are timed with in turn, where they run.
PAIRED = (EAGER, "triton")
HEADLINE = (EAGER, "triton", "triton, library linears", MAX)
_TRITON: Mapping[str, dict[str, Any]] = {
    "triton": {},
    "triton fp8": {"precision": "fp8"},
    "triton, no CUDA graph": {"cuda_graphs": False, "two_streams": False},
    "triton, one stream": {"two_streams": False},
    "triton, trunk attention ours": {"kernels": frozenset({"trunk"})},
    "triton, linear then attention": {"kernels": frozenset({"linear"})},
    "triton, library linears": {"kernels": frozenset({"library"})},
    "triton, dependent launches": {"kernels": frozenset({"dependent"})},
}
LANES: Mapping[str, tuple[str, ...]] = {
    "headline": HEADLINE,
    "model": (EAGER, "triton", "triton fp8", "compile", "compile, fused"),
    "ablation": (EAGER, *(n for n in _TRITON if n != "triton fp8"), f"{MAX}, fused"),
    "ort": (EAGER, "ort fp16"),
    "trt": (EAGER, "trt fp16", "trt-rtx fp16"),
}
# Time to open, check and time a lane, by the beginning of its name; kernels and graphs are kept on
# the disk when a lane is cut off, so that its next try starts further on.
SECONDS = {EAGER: 15.0, "triton, ": 15.0, "triton": 40.0, MAX: 65.0}
OTHER_SECONDS = 120.0
BACKENDS = (
    *(SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION),
    *(SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH),
)


class RefusedError(Exception):
    """A lane is not timed."""


class Baseline(nn.Module):
    """The plain network in bf16 on uint8 clips, with mean and std as buffers."""

    def __init__(self, model: Stan, device: str) -> None:
        """Copy the weights."""
        super().__init__()
        self.network = _copy(model, device)
        for name in ("mean", "std"):
            value = torch.tensor(getattr(model.config, name), device=device)
            self.register_buffer(name, value)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips [B, T, S, S, 3] -> [B, E]."""
        video = ((clips.float() - self.mean) / self.std).permute(0, 1, 4, 2, 3)
        return self.network.encode_video(video).mean(1)


class FusedBaseline(nn.Module):
    """The rewritten network in plain torch, whose folded weights have static addresses."""

    def __init__(self, model: Stan, device: str) -> None:
        """Fold the weights."""
        super().__init__()
        self.weights = fold_video(_copy(model, device, torch.float32), dtype=torch.bfloat16)
        for tensor in tensors(self.weights):
            torch._dynamo.mark_static_address(tensor)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips [B, T, S, S, 3] -> [B, E]."""
        return encode_video(self.weights, clips)[0]


def tensors(tree: Any) -> Iterator[torch.Tensor]:
    """The tensors in dataclasses and sequences."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif dataclasses.is_dataclass(tree):
        for field in dataclasses.fields(tree):
            yield from tensors(getattr(tree, field.name))
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors(item)


class Networks:
    """A preset's network in fp32, and the lanes that have been opened, for all shapes."""

    def __init__(self, device: Device, name: str) -> None:
        """Make random weights."""
        self.name, self._device = name, device
        made = init_random(Stan(preset(name))).eval().requires_grad_(False)
        self.exact = made.to(device.name)
        self._opened: dict[str, Run] = {}
        # Every shape is to be compiled; beyond its limit torch.compile would run in eager mode.
        torch._dynamo.config.recompile_limit = 64

    def open(self, lane: str) -> Run:
        """Open a lane once."""
        if lane not in self._opened:
            self._opened[lane] = open_lane(self.exact, self._device, lane)
        return self._opened[lane]


def open_lane(model: Stan, device: Device, lane: str) -> Run:
    """Return a function from clips on the device to their embeddings."""
    name = device.name
    if lane == EAGER:
        return _inference(Baseline(model, name))
    if lane in _TRITON:
        return _triton(model, device, _TRITON[lane])
    if lane.startswith("compile"):
        mode = "max-autotune" if lane.startswith(MAX) else "default"
        kind = FusedBaseline if lane.endswith("fused") else Baseline
        # In a dry run the graph is traced as on a GPU, and run without a compiler.
        options: dict[str, Any] = {"backend": "eager"} if device.is_dry else {"mode": mode}
        network = torch.compile(kind(model, name), dynamic=False, fullgraph=True, **options)
        return _inference(network)
    if device.is_dry:
        raise RefusedError("no engine but ours has a stand-in for its GPU")
    return _ort(model, name) if lane.startswith("ort") else _plan(model, name, lane.split()[0])


def seconds(lane: str) -> float:
    """Time that a lane has."""
    return next((s for start, s in SECONDS.items() if lane.startswith(start)), OTHER_SECONDS)


def measure(
    networks: Networks,
    device: Device,
    steps: Steps,
    lanes: Sequence[str],
    batch: int,
    frames: int,
    rounds: int,
) -> None:
    """Check and time lanes on clips [B, T], each in turn with those of PAIRED that run."""
    if not any(map(steps.left, lanes)):
        return
    side = networks.exact.config.image_size
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch, frames, side, side, 3), dtype=np.uint8)
    clips = torch.from_numpy(pixels).to(device.name)
    with torch.inference_mode():
        # Few at a time: in fp32, 32 clips of 64 frames would take more than the GPU has.
        parts = [networks.exact.encode_video(c).mean(1) for c in clips.split(2)]
    wanted = torch.cat(parts).float()
    with best_attention(device, networks, clips) as backend:
        _measure(networks, device, steps, lanes, rounds, clips, wanted, backend)


def _measure(
    networks: Networks,
    device: Device,
    steps: Steps,
    lanes: Sequence[str],
    rounds: int,
    clips: torch.Tensor,
    wanted: torch.Tensor,
    backend: str,
) -> None:
    """As measure; wanted: the embeddings in fp32; backend: of attention, for the rows."""
    b, t = clips.shape[:2]
    head: dict[str, Any] = {"model": networks.name, "batch": b, "frames": t, "sdpa": backend}
    head["tflop"] = b * video_flops(networks.exact.config, t) / 1e12
    paired: dict[str, Callable[[], Any]] = {}

    def checked(lane: str, row: dict[str, Any]) -> Callable[[], Any]:
        run = networks.open(lane)
        got = torch.as_tensor(run(clips)).to(wanted.device).float()
        error = float((got - wanted).abs().max() / wanted.abs().max())
        row["max_rel_error"] = error
        if not error <= TOLERANCE[_precision(lane)]:
            raise RefusedError(f"outputs differ by {error:.1e}")
        return lambda: run(clips)

    for lane in lanes:
        if not steps.left(lane):
            if lane in PAIRED:
                with suppress(Exception):  # its row says that it cannot run
                    paired[lane] = checked(lane, {})
            continue
        with steps.lane(lane, seconds(lane)) as row:
            row.update(head)
            before = _skips()
            run = checked(lane, row)
            timed = interleave(device, {**paired, lane: run}, rounds=rounds)
            row.update(timed[lane])
            if _skips() != before:
                row["cudagraph_skips"] = _skips() - before
            if lane in PAIRED:
                paired[lane] = run


def _skips() -> int:
    """Graphs that torch.compile did not make CUDA graphs of."""
    return torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]


@contextmanager
def best_attention(device: Device, networks: Networks, clips: torch.Tensor) -> Iterator[str]:
    """Let torch's attention prefer the back ends in the order of eager mode's time with each."""
    run, found = networks.open(EAGER), {}
    for backend in BACKENDS:
        with (
            suppress(RuntimeError),
            sdpa_kernel(list(dict.fromkeys((backend, SDPBackend.MATH))), set_priority=True),
        ):
            run(clips)
            found[backend] = min(device.ms(lambda: run(clips), flush=False) for _ in range(3))
    order = sorted(found, key=lambda b: found[b])
    with sdpa_kernel(order, set_priority=True):
        yield order[0].name.lower()


def _precision(lane: str) -> str:
    return next((p for p in ("fp8", "fp16") if p in lane), "bf16")


def _inference(run: Run) -> Run:
    def inner(clips: torch.Tensor) -> Any:
        with torch.inference_mode():
            return run(clips)

    return inner


def _copy(model: Stan, device: str, dtype: torch.dtype = torch.bfloat16) -> Stan:
    own = Stan(model.config).to(device, dtype)
    own.load_state_dict(model.state_dict())
    return own.eval().requires_grad_(False)


def _triton(model: Stan, device: Device, options: dict[str, Any]) -> Run:
    from stan_infer.engines.triton_session import TritonSession

    given = {"precision": "bf16", "device": device.name, "cuda": device.cuda, **options}
    if given["precision"] == "fp8":
        side = model.config.image_size
        clips = torch.randint(0, 256, (1, 8, side, side, 3), dtype=torch.uint8, device=device.name)
        given["scales"] = activation_scales(fold_video(model), clips)
    return partial(TritonSession(model, **given).embed_video, as_tensor=True)


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
