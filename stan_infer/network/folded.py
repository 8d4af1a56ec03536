"""The weights of the network of `fused`, as `fold` makes them.

Every linear has its path, such as "video/branch/layer2/temporal/qkv", which is its name in graphs,
calibrations and errors. Only `skeleton` puts paths together, and nothing takes them apart.

Values are torch's tensors where a model was folded, and NumPy's arrays where a graph was read: what
runs them in torch takes the first (torch_ops.in_torch), what quantises them the second
(torch_ops.in_numpy), and what writes graphs either.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

Array: TypeAlias = Any  # a Tensor or an np.ndarray
T = TypeVar("T")
W = TypeVar("W")


@dataclasses.dataclass(frozen=True)
class FoldedLinear:
    """y = W x + b; weight [out, in], bias [out]."""

    block: str  # "video/trunk/layer3/attention"; the norm before the linear belongs to it too
    name: str  # "qkv"
    weight: Array
    bias: Array
    # [in]: the norm before the linear multiplies its result by it; W's columns were divided by it.
    gain: Array | None = dataclasses.field(default=None, kw_only=True)

    @property
    def path(self) -> str:
        """Its name in graphs, calibrations and errors."""
        return f"{self.block}/{self.name}"


@dataclasses.dataclass(frozen=True)
class Patches:
    """Pixels to trunk rows: a linear with positions as its bias, then the norm before the trunk."""

    path: str
    weight: Array  # [D, 3 p p], columns in the order of one patch in memory
    table: Array  # [P, D]: positions, and the bias that normalised pixels leave
    gamma: Array  # [D]
    beta: Array  # [D]
    cls_row: Array  # [D]: the class token after the norm, the same for every frame
    patch: int
    layout: str  # BTHWC (uint8) or BTCHW (float, normalised)


@dataclasses.dataclass(frozen=True)
class Layer:
    """One transformer layer with its norms folded: qkv [3D, D], out, fc1, fc2."""

    qkv: FoldedLinear
    out: FoldedLinear
    fc1: FoldedLinear
    fc2: FoldedLinear


@dataclasses.dataclass(frozen=True)
class Temporal:
    """Temporal attention with temporal_fc folded; `single` is the whole of it for one frame."""

    qkv: FoldedLinear
    out: FoldedLinear
    single: FoldedLinear


@dataclasses.dataclass(frozen=True)
class Conv:
    """The 3x3x3 convolution with temporal_fc folded; weight [D, D, 3, 3, 3]."""

    path: str
    weight: Array
    bias: Array


@dataclasses.dataclass(frozen=True)
class LastSpatial:
    """The last spatial layer, of which only the class token is read: K and V stay unapplied."""

    q: FoldedLinear
    k: Array  # [H, dh, D]
    v: Array  # [H, dh, D]
    out: FoldedLinear
    fc1: FoldedLinear
    fc2: FoldedLinear


@dataclasses.dataclass(frozen=True)
class BranchLayer:
    """One branch layer; `spatial` is a LastSpatial in the last one."""

    path: str
    temporal: Temporal | Conv
    spatial: Layer | LastSpatial


@dataclasses.dataclass(frozen=True)
class Start:
    """What is added to the trunk's rows to make the input of the first branch layer."""

    path: str
    cls: Array  # [D]: to the clip's class token
    positions: Array  # [P, D]
    time: Array  # [Tmax, D]


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """What every layer of a tower shares."""

    heads: int
    eps: float
    activation: str  # silu or gelu
    softmax_scale: float  # factor of the scores: 1, or ln 2 where queries are for base 2


@dataclasses.dataclass(frozen=True)
class VideoWeights:
    """The video tower."""

    tower: TowerConfig
    patches: Patches
    trunk: Sequence[Layer]
    start: Start
    branch: Sequence[BranchLayer]
    head: FoldedLinear  # [E, D]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The text tower's embeddings."""

    path: str
    table: Array  # [V, D]
    positions: Array  # [L, D]


@dataclasses.dataclass(frozen=True)
class TextWeights:
    """The text tower."""

    tower: TowerConfig
    tokens: Tokens
    layers: Sequence[Layer]
    head: FoldedLinear  # [E, D]


class OnDemand(Sequence[T]):
    """Folds a layer each time it is read, so that memory holds one folded layer and not all."""

    def __init__(self, count: int, make: Callable[[int], T]) -> None:
        """make: folds the layer of this index."""
        self._count, self._make = count, make

    def __len__(self) -> int:
        """How many layers there are."""
        return self._count

    def __getitem__(self, i: Any) -> Any:
        """Fold layer i."""
        if not 0 <= i < self._count:
            raise IndexError(i)
        return self._make(i)


def map_weights(weights: W, change: Callable[[Any], Any]) -> W:
    """Return folded weights, or a part of them, with parts replaced by what `change` returns.

    Where `change` returns None for a part, it is called for the parts inside that one.
    """
    new: Any = change(weights)
    if new is None and isinstance(weights, (tuple, OnDemand)):
        new = tuple(map_weights(part, change) for part in weights)
    elif new is None and dataclasses.is_dataclass(weights):
        fields = {f.name: getattr(weights, f.name) for f in dataclasses.fields(weights)}
        changed = {name: map_weights(part, change) for name, part in fields.items()}
        new = dataclasses.replace(weights, **changed)  # type: ignore[type-var]
    return weights if new is None else new


def map_linears(weights: W, change: Callable[[FoldedLinear], FoldedLinear]) -> W:
    """Return folded weights of either tower with every linear w replaced by change(w)."""
    return map_weights(weights, lambda w: change(w) if isinstance(w, FoldedLinear) else None)


def linears(weights: Any) -> dict[str, FoldedLinear]:
    """The linears of folded weights of either tower, by path."""
    found: dict[str, FoldedLinear] = {}
    map_linears(weights, lambda w: found.setdefault(w.path, w))
    return found
