"""Named architectures: the sizes of STAN on CLIP's public ViTs, and a tiny one for tests."""

from __future__ import annotations

from typing import Any

from stan_infer.config import StanConfig
from stan_infer.errors import check_word


def _clip(width: int, layers: int, patch: int, text_width: int, embed_dim: int) -> dict[str, Any]:
    """STAN on a CLIP ViT: heads are 64 wide, and an MLP has four times its tower's width."""
    return {
        "width": width,
        "layers": layers,
        "heads": width // 64,
        "mlp_width": 4 * width,
        "embed_dim": embed_dim,
        "image_size": 224,
        "patch": patch,
        "branch_layers": 4,
        "text_width": text_width,
        "text_layers": 12,
        "text_heads": text_width // 64,
        "text_mlp_width": 4 * text_width,
        "vocab_size": 49408,
        "context_positions": 77,
    }


_TINY = {"image_size": 64, "branch_layers": 3, "text_layers": 2, "frames": 8, "short_side": 64}
PRESETS: dict[str, dict[str, Any]] = {
    "stan-b32": _clip(768, 12, 32, text_width=512, embed_dim=512),
    "stan-b16": _clip(768, 12, 16, text_width=512, embed_dim=512),
    "stan-l14": _clip(1024, 24, 14, text_width=768, embed_dim=768),
    "stan-tiny": _clip(128, 4, 16, text_width=64, embed_dim=64) | _TINY,
}


def preset(name: str) -> StanConfig:
    """Return a named architecture; InputError with the nearest name for an unknown one."""
    check_word("preset", name, PRESETS)
    return StanConfig.from_dict(PRESETS[name])
