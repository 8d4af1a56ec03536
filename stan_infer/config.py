"""StanConfig: everything about a model that is not a weight.

Also what follows from it by arithmetic: the shapes of all parameters, and floating-point operations
(FLOPs): those of linears, convolutions and the two products of attention, a multiply and an add as
two. Norms, activations and sums do not count. A test compares with torch.utils.flop_counter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

from stan_infer.errors import InputError, check_word, nearest, number, see, whole

HEADS = ("mean", "mug", "mug_frame_token")
BRANCHES = ("selfattn", "conv")
ACTIVATIONS = ("quick_gelu", "gelu")
MAX_SIDE = 4096  # pixels; a bound, because sizes may come from a stranger's file


@dataclasses.dataclass(frozen=True, kw_only=True)
class StanConfig:
    """Architecture and preprocessing of one STAN model, as `session.config` and `model.config`.

    Symbols of the docs are in brackets. Fields up to `context_positions` follow from the shapes of
    a checkpoint's tensors, except `heads` and `text_heads`. The rest are settings, whose defaults
    are those of the authors' MSR-VTT configs. A model without a text tower has `text_layers == 0`.
    `replace` makes a changed copy, `to_dict` and `from_dict` are for JSON.

    Args:
        image_size: S, side of a frame in pixels.
        frames: T, frames sampled of a video, 1 to `max_frames`.
        embed_dim: E, width of the features.
        context_length: tokens of a text.
        head: "mean" (one vector per clip), "mug" or "mug_frame_token" (one per frame).
        mean, std: of RGB, on the 0..255 scale.
        temperature: of class probabilities: softmax(scores / temperature).

    Raises:
        InputError: values that are out of range or contradict each other.

    Example:
        >>> import stan_infer as si
        >>> config = si.load_model("examples/motion/motion.safetensors").config
        >>> config.frames, config.image_size, config.embed_dim, config.head
        (8, 64, 64, 'mean')
    """

    width: int  # [D]
    layers: int  # [L]
    heads: int  # [H]
    patch: int  # side of a patch, pixels
    image_size: int  # side of a frame, pixels; P = (image_size // patch) ** 2
    embed_dim: int  # [E]
    mlp_width: int
    branch_layers: int  # [K]
    branch: str = "selfattn"  # temporal module; "conv": the release's dense 3x3x3 convolution
    max_frames: int = 64  # rows of the time table
    text_width: int = 0
    text_layers: int = 0
    text_heads: int = 0
    text_mlp_width: int = 0
    vocab_size: int = 0
    context_positions: int = 0  # rows of the text position table
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    head: str = "mean"
    mug_tau: float = 100.0
    frames: int = 12  # [T] sampled from a video
    context_length: int = 32
    short_side: int = 224  # pixels, before the centre crop to image_size
    mean: tuple[float, float, float] = (122.771, 116.746, 104.093)  # RGB, on the 0..255 scale
    std: tuple[float, float, float] = (68.500, 66.632, 70.323)
    temperature: float = 0.01  # of class probabilities; cosine / temperature

    def __post_init__(self) -> None:
        """Check every value and the relations between them."""
        _check_types(self)
        check_word("branch", self.branch, BRANCHES)
        check_word("activation", self.activation, ACTIVATIONS)
        check_word("head", self.head, HEADS)
        _check_range("width", self.width, 1, 16384)
        _check_range("layers", self.layers, 1, 256)
        _check_range("patch", self.patch, 1, MAX_SIDE)
        _check_range("image_size", self.image_size, self.patch, MAX_SIDE)
        _check_range("embed_dim", self.embed_dim, 1, 16384)
        _check_range("mlp_width", self.mlp_width, 1, 65536)
        _check_range("branch_layers", self.branch_layers, 1, self.layers)
        _check_range("max_frames", self.max_frames, 1, 64)
        _check_range("frames", self.frames, 1, self.max_frames)
        _check_range("short_side", self.short_side, self.image_size, MAX_SIDE)
        _check_heads("heads", self.heads, self.width)
        if self.image_size % self.patch:
            raise InputError(
                f"image_size {self.image_size} is not a multiple of patch {self.patch}"
            )
        _check_range("text_layers", self.text_layers, 0, 256)
        if self.has_text:
            _check_range("text_width", self.text_width, 1, 16384)
            _check_range("text_mlp_width", self.text_mlp_width, 1, 65536)
            _check_range("vocab_size", self.vocab_size, 3, 1_000_000)
            _check_range("context_positions", self.context_positions, 3, 4096)
            _check_range("context_length", self.context_length, 3, self.context_positions)
            _check_heads("text_heads", self.text_heads, self.text_width)
        # Bounds far beyond any use, within which float32 arithmetic stays finite.
        _check_range("norm_eps", self.norm_eps, 1e-12, 1)
        _check_range("mug_tau", self.mug_tau, 1e-6, 1e6)
        _check_range("temperature", self.temperature, 1e-6, 1e6)
        for m, s in zip(self.mean, self.std, strict=True):
            _check_range("mean (0..255 scale)", m, -1e4, 1e4)
            _check_range("std (0..255 scale)", s, 1e-3, 1e4)

    @property
    def patches(self) -> int:
        """P, patches per frame."""
        return (self.image_size // self.patch) ** 2

    @property
    def has_text(self) -> bool:
        """Whether there is a text tower."""
        return self.text_layers > 0

    @property
    def is_mug(self) -> bool:
        """Whether scores are Mug scores over tokens and frames instead of one cosine."""
        return self.head != "mean"

    def replace(self, settings: Mapping[str, Any]) -> StanConfig:
        """Return a copy with other settings; only fields in SETTINGS may change.

        Raises InputError for an unknown field, one that tensor shapes fix, or a bad value.
        """
        check_setting_names(settings)
        return dataclasses.replace(self, **{k: coerce(k, v) for k, v in settings.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StanConfig:
        """Build from plain JSON types; unknown or missing keys and bad values raise InputError."""
        unknown = sorted(set(values) - set(FIELDS))
        if unknown:
            raise InputError(f"config has unknown keys: {', '.join(unknown)[:200]}")
        needed = [
            n for n, f in FIELDS.items() if f.default is dataclasses.MISSING and n not in values
        ]
        if needed:
            raise InputError(f"config lacks: {', '.join(needed)}")
        return cls(**{k: coerce(k, _json_value(k, v)) for k, v in values.items()})


FIELDS = {f.name: f for f in dataclasses.fields(StanConfig)}
SETTINGS = (
    "heads",
    "text_heads",
    "activation",
    "norm_eps",
    "head",
    "mug_tau",
    "frames",
    "context_length",
    "short_side",
    "mean",
    "std",
    "temperature",
)


def check_setting_names(settings: Iterable[str]) -> None:
    """Raise InputError, with the nearest setting, for a name that is not a setting."""
    for name in settings:
        if name not in FIELDS:
            known = ", ".join(SETTINGS)
            raise InputError(
                f"unknown setting '{name}'{nearest(name, SETTINGS)} (settings: {known})"
                f"{see('docs/score')}"
            )
        if name not in SETTINGS:
            raise InputError(
                f"setting '{name}' is fixed by the checkpoint's tensor shapes and cannot be "
                f"set; settings are: {', '.join(SETTINGS)}"
            )


_WIDE = (1280, 1408, 1664, 1792)  # trunks of open_clip's ViT-H, g, bigG and e


def default_heads(width: int, name: str) -> int:
    """Return the heads of CLIP towers of a width: width / 64, and 16 in open_clip's widest trunks.

    Raises InputError where width / 64 is not a whole number.
    """
    if name == "heads" and width in _WIDE:
        return 16
    if width % 64:
        raise InputError(
            f"{name} cannot be derived from the shapes: width {width} is not a multiple of 64; "
            f"give it with --set {name}=N (settings={{'{name}': N}} in Python)"
        )
    return width // 64


def coerce(name: str, value: Any) -> Any:
    """Bring a JSON or command-line value to its field's type, or raise InputError."""
    kind = str(FIELDS[name].type)
    try:
        if kind == "int" and isinstance(value, str):
            return whole(value)
        if kind == "int" and not isinstance(value, bool) and int(value) == float(value):
            return int(value)
        if kind == "float" and not isinstance(value, bool):
            return _float(value)
        if kind == "str" and isinstance(value, str):
            return value
        if kind.startswith("tuple"):
            parts = value.split(",") if isinstance(value, str) else list(value)
            if len(parts) == 3:
                return tuple(_float(p.strip() if isinstance(p, str) else p) for p in parts)
    except (TypeError, ValueError, OverflowError):
        pass
    raise _wrong(name, value)


def _float(value: Any) -> float:
    return number(value) if isinstance(value, str) else float(value)


def _json_value(name: str, value: Any) -> Any:
    """Return a value of JSON; InputError for a number in a string, which only `coerce` takes."""
    kind = str(FIELDS[name].type)
    parts = value if kind.startswith("tuple") and isinstance(value, (list, tuple)) else [value]
    wanted = str if kind == "str" else (int, float)
    if isinstance(value, dict) or not all(
        isinstance(p, wanted) and not isinstance(p, bool) for p in parts
    ):
        raise _wrong(name, value)
    return value


def _wrong(name: str, value: Any) -> InputError:
    kind = str(FIELDS[name].type)
    wanted = {"int": "a whole number", "float": "a number", "str": "a word"}
    return InputError(
        f"{name} is {str(value)[:60]!r}; it must be {wanted.get(kind, 'three numbers, as 1,2,3')}"
    )


def _check_types(config: StanConfig) -> None:
    for name in FIELDS:
        value = getattr(config, name)
        if coerce(name, value) != value:
            raise InputError(f"{name} has the wrong type: {value!r}")
        if isinstance(value, tuple) and not all(math.isfinite(v) for v in value):
            raise InputError(f"{name} is {value}; all three must be finite")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InputError(f"{name} is {value}; allowed is {low} to {high}")


def _check_heads(name: str, heads: int, width: int) -> None:
    if heads < 1 or width % heads:
        raise InputError(f"{name} is {heads}; it must divide the width {width}")


Shape = tuple[int, ...]


def parameter_shapes(config: StanConfig) -> dict[str, Shape]:
    """The shape of every parameter of a Stan by its name in the state dict, without torch."""
    c, d = config, config.width
    shapes: dict[str, Shape] = {
        "visual.class_embedding": (d,),
        "visual.positional_embedding": (1 + c.patches, d),
        "visual.proj": (d, c.embed_dim),
        "visual.conv1.weight": (d, 3, c.patch, c.patch),
        "branch.time_embedding": (c.max_frames, d),
        **_pair("visual.ln_pre", d),
        **_pair("visual.ln_post", d),
    }
    for i in range(c.layers):
        shapes |= _block(f"visual.transformer.resblocks.{i}", d, c.mlp_width)
    for k in range(c.branch_layers):
        shapes |= _block(f"branch.spatial.{k}", d, c.mlp_width)
        temporal = f"branch.temporal.{k}"
        shapes |= _pair(f"{temporal}.fc", d, d)
        if c.branch == "conv":
            shapes |= _pair(f"{temporal}.conv", d, d, 3, 3, 3)
        else:
            shapes |= _pair(f"{temporal}.ln", d) | _attention(f"{temporal}.attn", d)
    if c.has_text:
        w = c.text_width
        shapes |= {
            "token_embedding.weight": (c.vocab_size, w),
            "positional_embedding": (c.context_positions, w),
            **_pair("ln_final", w),
            "text_projection": (w, c.embed_dim),
        }
        for i in range(c.text_layers):
            shapes |= _block(f"transformer.resblocks.{i}", w, c.text_mlp_width)
    return shapes


def _pair(name: str, *weight: int) -> dict[str, Shape]:
    """Weight and bias of a norm [D], a linear [out, in] or a convolution [out, in, ...]."""
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def _attention(name: str, width: int) -> dict[str, Shape]:
    in_proj = {f"{name}.in_proj_weight": (3 * width, width), f"{name}.in_proj_bias": (3 * width,)}
    return in_proj | _pair(f"{name}.out_proj", width, width)


def _block(name: str, width: int, mlp: int) -> dict[str, Shape]:
    """One transformer layer."""
    return {
        **_pair(f"{name}.ln_1", width),
        **_attention(f"{name}.attn", width),
        **_pair(f"{name}.ln_2", width),
        **_pair(f"{name}.mlp.c_fc", mlp, width),
        **_pair(f"{name}.mlp.c_proj", width, mlp),
    }


def video_flops(config: StanConfig, frames: int) -> int:
    """FLOPs of one clip of `frames` frames through trunk, branch and projection."""
    c, d, m, p, t = config, config.width, config.mlp_width, config.patches, frames
    n = 1 + p
    layer = t * (_projections(n, d) + 4 * n * n * d + _mlp(n, d, m))
    if c.branch == "conv":
        temporal = 2 * p * t * 27 * d * d
    else:
        temporal = _projections(p * t, d) + 4 * p * t * t * d
    temporal += 2 * p * t * d * d
    spatial = t * (_projections(n, d) + 4 * n * n * d) + _mlp(1 + p * t, d, m)
    patches = 2 * t * p * d * 3 * c.patch**2
    return (
        patches
        + c.layers * layer
        + c.branch_layers * (temporal + spatial)
        + 2 * t * d * c.embed_dim
    )


def text_flops(config: StanConfig, length: int) -> int:
    """FLOPs of one text of `length` tokens, pooled at its end token; 0 without a text tower."""
    if not config.has_text:
        return 0
    d, m = config.text_width, config.text_mlp_width
    layer = _projections(length, d) + 4 * length * length * d + _mlp(length, d, m)
    return config.text_layers * layer + 2 * d * config.embed_dim


def _projections(tokens: int, width: int) -> int:
    return 2 * tokens * 4 * width * width  # q, k, v and the output


def _mlp(tokens: int, width: int, hidden: int) -> int:
    return 2 * tokens * 2 * width * hidden
