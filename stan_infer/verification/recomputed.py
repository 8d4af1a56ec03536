"""The weights that a graph should hold, recomputed from a model in fp32 and a calibration.

The 8 bits are those that `calibrate` writes: scales of inputs from calibration.json, scales of
weights from the weights, and factors of smoothing, which calibration.json does not hold, from the
graph: a wrong one shows in the weights that it was not taken from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stan_infer.artefacts.calibration_file import scales
from stan_infer.artefacts.precision import EIGHT_BITS
from stan_infer.config import StanConfig
from stan_infer.errors import InputError
from stan_infer.network.eight_bits import (
    NUMBER_FORMATS,
    largest,
    quantise_linear,
    through_v,
)
from stan_infer.network.folded import (
    Array,
    FoldedLinear,
    Patches,
    Start,
    TextWeights,
    VideoWeights,
    linears,
    map_linears,
    map_weights,
)
from stan_infer.network.fused import text_tower, video_tower
from stan_infer.network.torch_ops import TorchOps, in_numpy, in_torch
from stan_infer.verification.stored import StoredGraph

if TYPE_CHECKING:
    from stan_infer.artefacts.calibration_record import Record

_AFTER_NORM = ("qkv", "single", "fc1")  # linears whose norm may have a gain
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
Weights = VideoWeights | TextWeights
Note = Callable[[str, np.ndarray], None]  # called with an operation's name and value


@dataclasses.dataclass(frozen=True)
class GraphKind:
    """What a graph is: its tower, precision, type of the video input, and sizes that are fixed."""

    role: str
    precision: str
    input: str  # uint8 or float
    batch: int | None
    frames: int | None


@np.errstate(all="ignore")  # a graph that is looked at may hold anything
def recompute(
    weights: Weights,
    kind: GraphKind,
    stored: StoredGraph,
    calibration: Record | None,
    *,
    exact: bool = False,
) -> Weights:
    """Folded weights in fp32 -> those that a graph of this kind should hold, as arrays.

    stored: the graph. calibration: without one, scales of inputs are the graph's own. exact: as
    smoothed for 8 bits, but still in fp32.
    """
    weights = in_numpy(weights)
    if kind.precision in EIGHT_BITS:
        if not isinstance(weights, VideoWeights):
            raise InputError(f"{stored.path.name} is a text tower in {kind.precision}")
        with _named():
            return _Quantised(stored, kind.precision, calibration, exact).weights(weights)
    if kind.precision in _DTYPES and not exact:
        return _rounded(weights, _DTYPES[kind.precision], kind.frames)
    return weights


def write_graph(
    weights: Weights,
    kind: GraphKind,
    config: StanConfig,
    opset: int,
    folder: Path,
    classes: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write the graph of these weights, as `export` does. classes: of a class head."""
    from stan_infer.export.text_graph import write_text_graph
    from stan_infer.export.video_graph import write_video_graph

    path = folder / f"{kind.role}.onnx"
    precision = "fp32" if kind.precision in EIGHT_BITS else kind.precision
    if isinstance(weights, TextWeights):
        write_text_graph(path, config, weights, precision=precision, opset=opset)
        return path
    sizes = {"batch": kind.batch, "frames": kind.frames}
    write_video_graph(
        path,
        config,
        weights,
        dims={k: (n, n) if n else (1, 64) for k, n in sizes.items()},
        input=kind.input,
        precision=precision,
        opset=opset,
        classes=classes,
    )
    return path


def write_helper(role: str, config: StanConfig, opset: int, path: Path) -> None:
    """Write the graph "preprocess" or "score", as `export` does."""
    from stan_infer.export.preprocess_graph import write_preprocess
    from stan_infer.export.score_graph import write_mug_score

    if role == "preprocess":
        side = config.short_side
        write_preprocess(path, short_side=side, crop=config.image_size, opset=opset)
    else:
        e, tau = config.embed_dim, config.mug_tau
        write_mug_score(path, embed_dim=e, mode=config.head, tau=tau, opset=opset)


def operations(weights: Weights, kind: GraphKind) -> Callable[[np.ndarray, Note], None]:
    """Return a function of a tower's input that calls `record` with every operation in torch.

    Temporal attention has the form that the graph has, also for one frame.
    """
    tensors = in_torch(weights)

    def run(given: np.ndarray, record: Note) -> None:
        def note(name: str, value: Tensor) -> None:
            record(name, value.numpy())

        with torch.inference_mode(), _named():
            if isinstance(tensors, TextWeights):
                ids = torch.from_numpy(np.asarray(given, np.int64))
                text_tower(TorchOps(len(ids), 1, note), tensors, ids)
            else:
                video = torch.from_numpy(given)
                ops = TorchOps(video.shape[0], video.shape[1], note)
                ops.single_frame = kind.frames == 1
                video_tower(ops, tensors, video)

    return run


@contextmanager
def _named() -> Iterator[None]:
    """Turn errors about sizes, as of a clip of another model, into an InputError."""
    try:
        yield
    except (RuntimeError, ValueError) as e:
        raise InputError(f"the recomputed network cannot take this: {str(e)[:200]}") from e


def _rounded(exact: Weights, dtype: torch.dtype, frames: int | None) -> Weights:
    """Weights rounded to a type of 16 bits where a graph holds them in it, in fp32 again."""

    def rounded(x: Array) -> Array:
        return torch.from_numpy(x).to(dtype).float().numpy()

    def change(part: Any) -> Any:
        if isinstance(part, Patches):  # the norm's weights stay in fp32
            table, cls = rounded(part.table), rounded(part.cls_row)
            return dataclasses.replace(part, weight=rounded(part.weight), table=table, cls_row=cls)
        if isinstance(part, Start) and frames is not None:  # the sum of the tables is rounded
            table = rounded(part.positions + part.time[:frames, None])
            zeros = np.zeros_like(part.time)
            return dataclasses.replace(part, cls=rounded(part.cls), positions=table, time=zeros)
        return rounded(part) if isinstance(part, np.ndarray) else None

    return map_weights(exact, change)


@dataclasses.dataclass(frozen=True)
class _Quantised:
    stored: StoredGraph
    format: str
    calibration: Record | None
    exact: bool

    def weights(self, exact: VideoWeights) -> VideoWeights:
        by_path = linears(exact)
        given = self.scales(by_path)
        gains = {path: self.gain(w) for path, w in by_path.items() if path in given}
        factors = self.factors(by_path, gains)

        def change(w: FoldedLinear) -> FoldedLinear:
            w = through_v(w, factors.get(w.block))
            gain = gains.get(w.path)
            if w.path not in given:
                return w
            if self.exact:
                weight = w.weight if gain is None else w.weight / gain
                return dataclasses.replace(w, weight=weight, gain=gain)
            return quantise_linear(w, given[w.path], self.format, gain)

        return map_linears(exact, change)

    def scales(self, by_path: Mapping[str, FoldedLinear]) -> dict[str, float]:
        if self.calibration is not None:
            return {n: s for n, s in scales(self.calibration).items() if n in by_path}
        names = {n: f"{n}/x_scale" for n in by_path if f"{n}/x_scale" in self.stored.weights}
        single = {n: key for n, key in names.items() if prod(self.stored.weights[key].dims) == 1}
        found = {n: float(self.stored.array(key).ravel()[0]) for n, key in single.items()}
        return {n: s for n, s in found.items() if 0 < s < float("inf")}

    def strength(self, path: str) -> float | None:
        """The recorded strength of smoothing of a linear's input; None: not recorded."""
        record: Mapping[str, Any] = self.calibration or {}
        value = record.get("tensors", {}).get(path, {}).get("smoothing")
        return float(value) if isinstance(value, (int, float)) else None

    def gain(self, w: FoldedLinear) -> np.ndarray | None:
        """The gain of the norm before a linear, as the graph has it."""
        name = f"{w.block}/norm/gain"
        if (
            w.name not in _AFTER_NORM
            or name not in self.stored.weights
            or self.strength(w.path) == 0
        ):
            return None
        if self.stored.weights[name].dims != tuple(w.weight.shape[1:]):
            return None
        gain = np.array(self.stored.array(name), np.float32)
        return gain if _usable(gain) else None

    def factors(
        self, by_path: Mapping[str, FoldedLinear], gains: Mapping[str, np.ndarray | None]
    ) -> dict[str, np.ndarray]:
        """By block: the factors of the rows that make V, as the graph has them."""
        found: dict[str, np.ndarray] = {}
        for w in by_path.values():
            out = by_path.get(f"{w.block}/out")
            if w.name != "qkv" or out is None or self.strength(out.path) == 0:
                continue
            factor = self.factor(w, gains.get(w.path))
            if (
                factor is not None
                and _usable(factor)
                and not np.allclose(factor, 1, rtol=0, atol=1e-5)
            ):
                found[w.block] = factor
        return found

    def factor(self, w: FoldedLinear, gain: np.ndarray | None) -> np.ndarray | None:
        d = w.weight.shape[1]
        rows = w.weight[-d:].astype(np.float64)
        if gain is not None:
            rows = rows / gain
        scale, weight = f"{w.path}/weight_scale", f"{w.path}/weight"
        stored = self.stored.weights
        if scale in stored and stored[scale].dims == (3 * d,):
            got = np.array(self.stored.array(scale), np.float64)[-d:]
            top = largest(rows, 1)
            ratio = got * NUMBER_FORMATS[self.format].largest / top
        elif weight in stored and stored[weight].dims == (d, 3 * d):
            held = np.array(self.stored.array(weight), np.float64).T[-d:]
            ratio = (held * rows).sum(1) / np.square(rows).sum(1)
        else:
            return None
        return np.where(rows.any(1), ratio, 1).astype(np.float32)


def _usable(factor: np.ndarray) -> bool:
    return bool(np.isfinite(factor).all() and (factor > 0).all())
