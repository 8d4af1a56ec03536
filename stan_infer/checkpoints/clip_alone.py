"""CLIP's weights without a name: sizes from shapes, the rest from what the file proves.

Shapes do not show which of two activations CLIP was trained with. OpenAI's files and the configs of
transformers and open_clip do; any other file needs its name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stan_infer.checkpoints.clip_names import (
    LAYERS,
    OPENAI_ONLY,
    checked_names,
    clip_names,
    prefix_of,
)
from stan_infer.checkpoints.layout import (
    Hints,
    Recognised,
    Settings,
    Shapes,
    count_layers,
    sizes,
    with_settings,
)
from stan_infer.checkpoints.untrained_branch import UNTRAINED
from stan_infer.config import StanConfig, coerce
from stan_infer.errors import InputError

# Our name of a weight -> the field of the config that each axis gives; see layout.sizes.
_AXES = {
    "visual.class_embedding": ("width",),
    "visual.positional_embedding": ("1 + patches", ""),
    "visual.conv1.weight": ("", "", "", "patch"),
    "visual.proj": ("", "embed_dim"),
    "visual.transformer.resblocks.0.mlp.c_fc.weight": ("mlp_width", ""),
    "ln_final.weight": ("text_width",),
    "positional_embedding": ("context_positions", ""),
    "token_embedding.weight": ("vocab_size", ""),
    "transformer.resblocks.0.mlp.c_fc.weight": ("text_mlp_width", ""),
}
ALONE = "CLIP"  # the name of this layout
_ACTIVATIONS = ("quick_gelu", "gelu")


def clip_alone(shapes: Shapes, hints: Hints, settings: Settings, path: Path) -> Recognised:
    """Return the layout of a CLIP with an untrained branch; `origins` are those of CLIP only.

    hints: of the file; the configs beside it by their names, see weights_file. settings: as for an
    open_clip name. path: of the file, for messages. Raises InputError for weights that are not a
    whole CLIP ViT's, and where nothing shows the activation.
    """
    settings = dict(settings)
    values = _sizes(shapes)
    depth = settings.pop("branch_layers", min(4, values["layers"]))
    values["branch_layers"] = coerce("branch_layers", depth)
    proven, proof = _proven(shapes, hints)
    config = with_settings(values, proven | settings)
    origins, ignored = checked_names(config, shapes)
    if "activation" not in {**proven, **settings}:
        raise InputError(_which(config, path))
    said = proof if "activation" not in settings else "as was asked for"
    notes = (
        f"this is CLIP without a STAN branch; {UNTRAINED}",
        f"activation {config.activation}: {said}",
    )
    return Recognised(ALONE, config, origins, ignored, notes)


def _sizes(shapes: Shapes) -> dict[str, Any]:
    origins = clip_names(_AXES, shapes)
    known = {
        name: shape
        for name, origin in origins.items()
        if all(k in shapes for k in origin.keys) and (shape := origin.shape(shapes)) is not None
    }
    lost = next((origins[name].keys[0] for name in _AXES if name not in known), None)
    if lost is not None:
        raise InputError(f"weight {lost} is missing: this is not a whole CLIP, image and text")
    values: dict[str, Any] = sizes(known, _AXES)
    rows = values.pop("1 + patches")
    grid = math.isqrt(max(rows - 1, 0))
    if grid < 1 or grid * grid != rows - 1:
        raise InputError(f"the table of positions has {rows} rows; need 1 + a square")
    at, is_theirs = prefix_of(shapes)
    text = f"{at}text." if f"{at}text.ln_final.weight" in shapes else at
    layers = {"visual.transformer.resblocks": at, "transformer.resblocks": text}
    counts = [
        count_layers(shapes, LAYERS[ours].format(at=at) if is_theirs else f"{place}{ours}")
        for ours, place in layers.items()
    ]
    return values | {
        "image_size": values["patch"] * grid,
        "layers": counts[0],
        "text_layers": counts[1],
        "max_frames": 64,
    }


def _proven(shapes: Shapes, hints: Hints) -> tuple[dict[str, Any], str]:
    """Return the settings that a file or the config beside it proves, and how."""
    theirs, ours = hints.get("config.json"), hints.get("open_clip_config.json")
    if isinstance(ours, dict) and isinstance(ours.get("model_cfg"), dict):
        return _of_open_clip(ours), "as open_clip_config.json says"
    if isinstance(theirs, dict) and theirs.get("model_type") == "clip":
        return _of_transformers(theirs), "as config.json says"
    at, is_theirs = prefix_of(shapes)
    if not is_theirs and all(f"{at}{key}" in shapes for key in OPENAI_ONLY):
        return {"activation": "quick_gelu"}, "as in all of OpenAI's CLIP, whose file this is"
    return {}, ""


def _of_open_clip(given: Mapping[str, Any]) -> dict[str, Any]:
    from stan_infer.checkpoints.openclip import plain_settings

    found = plain_settings(given["model_cfg"], "open_clip_config.json beside it")
    pixels = given.get("preprocess_cfg")
    for key in ("mean", "std"):
        if isinstance(pixels, dict) and key in pixels:
            found[key] = tuple(255.0 * v for v in coerce(key, pixels[key]))
    return found


def _of_transformers(given: Mapping[str, Any]) -> dict[str, Any]:
    """Values that equal the defaults of transformers' CLIPConfig may be absent in its file."""
    vision, text = (
        part if isinstance(part := given.get(f"{tower}_config"), dict) else {}
        for tower in ("vision", "text")
    )
    both = [part.get("hidden_act", "quick_gelu") for part in (vision, text)]
    if both not in ([a, a] for a in _ACTIVATIONS):
        raise InputError(
            f"config.json beside it has hidden_act {ascii(both)[:80]}; supported is one of "
            f"{' and '.join(_ACTIVATIONS)} for both towers"
        )
    return {
        "activation": both[0],
        "heads": vision.get("num_attention_heads", 12),
        "text_heads": text.get("num_attention_heads", 8),
        "norm_eps": vision.get("layer_norm_eps", 1e-5),
    }


def _which(config: StanConfig, path: Path) -> str:
    from stan_infer.checkpoints.openclip import names_like

    known = names_like(config)
    commands = " or ".join(f"{name}:{path} ({activation})" for name, activation in known.items())
    return (
        "this is CLIP without a STAN branch, and its weights do not show with which activation "
        f"they were trained: give {commands or f'NAME:{path}'}, or --set activation= "
        "with quick_gelu (OpenAI's CLIP and what was trained from it) or gelu"
    )
