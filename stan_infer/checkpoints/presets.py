"""Named architectures: the sizes of STAN on CLIP's public ViTs, and a tiny one for tests."""

from __future__ import annotations

from typing import Any

from stan_infer.config import StanConfig
from stan_infer.errors import InputError, nearest

_CLIP_TEXT: dict[str, Any] = {"vocab_size": 49408, "context_positions": 77}


_B_TEXT = _CLIP_TEXT | {
    "text_width": 512,
    "text_layers": 12,
    "text_heads": 8,
    "text_mlp_width": 2048,
}


_B = _B_TEXT | {
    "width": 768,
    "layers": 12,
    "heads": 12,
    "mlp_width": 3072,
    "embed_dim": 512,
    "image_size": 224,
    "branch_layers": 4,
}


PRESETS: dict[str, dict[str, Any]] = {
    "stan-b32": _B | {"patch": 32},
    "stan-b16": _B | {"patch": 16},
    "stan-l14": _CLIP_TEXT
    | {
        "width": 1024,
        "layers": 24,
        "heads": 16,
        "mlp_width": 4096,
        "embed_dim": 768,
        "image_size": 224,
        "patch": 14,
        "branch_layers": 4,
        "text_width": 768,
        "text_layers": 12,
        "text_heads": 12,
        "text_mlp_width": 3072,
    },
    "stan-tiny": _CLIP_TEXT
    | {
        "width": 128,
        "layers": 4,
        "heads": 2,
        "mlp_width": 512,
        "embed_dim": 64,
        "image_size": 64,
        "patch": 16,
        "branch_layers": 3,
        "text_width": 64,
        "text_layers": 2,
        "text_heads": 1,
        "text_mlp_width": 256,
        "frames": 8,
        "short_side": 64,
    },
}


def preset(name: str) -> StanConfig:
    """Return a named architecture; InputError with the nearest name for an unknown one."""
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise InputError(
            f"unknown preset '{name}'{nearest(name, list(PRESETS))} (presets: {known})"
        )
    return StanConfig.from_dict(PRESETS[name])
