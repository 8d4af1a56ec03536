"""The layout of the authors' checkpoints: tables of their key names, and models that are refused.

These are the released STAN (`STAN_*`) and the first release (`timesFPN_*`), which names the branch
differently and has two weights that its forward never uses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from stan_infer.checkpoints.layout import (
    Hints,
    Origin,
    Recognised,
    Settings,
    Shapes,
    count_layers,
    keys_of,
    map_keys,
    only_prefix,
    sizes,
    unused,
    with_settings,
)
from stan_infer.checkpoints.trainer_hints import layout_notes
from stan_infer.config import StanConfig, parameter_shapes
from stan_infer.errors import InputError

# Our name of a parameter -> the authors' key, written as layout.map_keys says. {video} and {text}
# are the prefixes of a tower's keys, such as "backbone."; {branch} is "STAN" or "timesFPN".
ONCE = {
    "visual.class_embedding": "{video}class_embedding",
    "visual.positional_embedding": "{video}position_embedding.weight",
    "visual.conv1": "{video}patch_embedding",
    "visual.ln_pre": "{video}pre_layrnorm",
    "visual.ln_post": "{video}post_layernorm",
    "visual.proj": "{video}visual_projection.weight.T",
    "branch.time_embedding": "{video}{branch}_time_embed.weight",
    "token_embedding": "{text}text_model.embeddings.token_embedding",
    "positional_embedding": "{text}text_model.embeddings.position_embedding.weight",
    "ln_final": "{text}text_model.final_layer_norm",
    "text_projection": "{text}text_projection.weight.T",
}
LAYERS = {  # before a layer's number
    "visual.transformer.resblocks": "{video}layers",
    "branch.spatial": "{video}{branch}_S_layers",
    "branch.temporal": "{video}{branch}_T_layers",
    "transformer.resblocks": "{text}text_model.encoder.layers",
}
IN_A_LAYER = {  # behind a layer's number
    "ln_1": "layer_norm1",
    "attn.in_proj": "self_attn.{qkv}_proj",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln": "layer_norm1",  # of a temporal module: attention
    "conv": "layers",  # of a temporal module: convolution
    "fc": "temporal_fc",
}

# Key -> for each axis the field of the config that it gives; see layout.sizes.
AXES = {
    "{video}position_embedding.weight": ("1 + patches", ""),
    "{video}class_embedding": ("width",),
    "{video}visual_projection.weight": ("embed_dim", ""),
    "{video}layers.0.mlp.fc1.weight": ("mlp_width", ""),
    "{video}{branch}_time_embed.weight": ("max_frames", ""),
    "{text}text_model.final_layer_norm.weight": ("text_width",),
    "{text}text_model.encoder.layers.0.mlp.fc1.weight": ("text_mlp_width", ""),
    "{text}text_model.embeddings.token_embedding.weight": ("vocab_size", ""),
    "{text}text_model.embeddings.position_embedding.weight": ("context_positions", ""),
}
IGNORED = {
    "{video}timesFPN_pos_embed.weight": "unused by the first release's forward",
    "{video}timesFPN_cls_token": "unused by the first release's forward",
}
NAMES = {"STAN": "authors' STAN", "timesFPN": "authors' first release (timesFPN names)"}


def authors_layout(shapes: Shapes, hints: Hints, settings: Settings) -> Recognised | None:
    """Recognise a file by the keys of the authors' trunk; None if it has none of them.

    Raises InputError for models that share their names with STAN and compute something else.
    """
    _refuse_relatives(shapes)
    video = only_prefix(shapes, "pre_layrnorm.weight")
    if video is None:
        return None
    places = {"video": video, "branch": _branch(shapes, video)}
    text = only_prefix(shapes, "text_model.final_layer_norm.weight")
    if text is not None:
        places["text"] = text
    flat, deep = f"{video}patch_embedding.weight", f"{video}patch_embedding_3d.weight"
    is_3d = deep in shapes and flat not in shapes  # saved after a forward with patch_3d
    patch = {deep: ("", "", "", "", "patch")} if is_3d else {flat: ("", "", "", "patch")}
    config = _config(shapes, places, patch, settings)
    origins = author_names(config, **places)
    if is_3d:
        origins["visual.conv1.weight"] = Origin((deep,), "squeeze")
    ignored = {k: why for k, why in keys_of(IGNORED, places).items() if k in shapes}
    ignored |= unused(shapes)
    notes = tuple(layout_notes(config, hints.get("cfg"), ignored))
    return Recognised(NAMES[places["branch"]], config, origins, ignored, notes)


def author_names(
    config: StanConfig, video: str, text: str = "", branch: str = "STAN"
) -> dict[str, Origin]:
    """Where each of our parameters stands in the authors' naming.

    video, text: prefix of the keys of that tower. branch: "STAN" or "timesFPN".
    """
    places = {"video": video, "text": text, "branch": branch}
    return map_keys(parameter_shapes(config), ONCE, LAYERS, IN_A_LAYER, places)


def _config(
    shapes: Shapes,
    places: Mapping[str, str],
    patch: Mapping[str, tuple[str, ...]],
    settings: Settings,
) -> StanConfig:
    values: dict[str, Any] = sizes(shapes, {**patch, **keys_of(AXES, places)})
    rows = values.pop("1 + patches")
    grid = math.isqrt(max(rows - 1, 0))
    if grid < 1 or grid * grid != rows - 1:
        raise InputError(
            f"{places['video']}position_embedding.weight has {rows} rows; need 1 + a square"
        )
    prefixes = keys_of({theirs: ours for ours, theirs in LAYERS.items()}, places)
    layers = {ours: count_layers(shapes, theirs) for theirs, ours in prefixes.items()}
    conv = "{video}{branch}_T_layers.0.layers.weight".format(**places)
    values |= {
        "image_size": values["patch"] * grid,
        "layers": layers["visual.transformer.resblocks"],
        "text_layers": layers.get("transformer.resblocks", 0),
        "branch_layers": max(layers["branch.spatial"], layers["branch.temporal"]),
        "branch": "conv" if conv in shapes else "selfattn",
    }
    return with_settings(values, settings)


def _refuse_relatives(shapes: Shapes) -> None:
    """Raise InputError for models that share the authors' names and compute something else."""
    for key in shapes:
        if "btadapter_" in key or re.search(r"(^|\.)balance\d*(\.|$)", key):
            raise InputError(
                f"this is a BT-Adapter checkpoint ('{key}'), another model than STAN: not supported"
            )
        if re.search(r"adapter\.(text|video)_weight_fc", key):
            raise InputError(
                f"this checkpoint has the 'drl_wti' head ('{key}'), which no released config uses: "
                "not supported; supported heads are mean, mug and mug_frame_token"
            )


def _branch(shapes: Shapes, video: str) -> str:
    """Return what the branch's keys begin with; InputError if its computation is not known."""
    found = [name for name in NAMES if any(k.startswith(f"{video}{name}_") for k in shapes)]
    if len(found) == 2:
        raise InputError("both STAN_* and timesFPN_* keys: a mixture of two models; not supported")
    if not found:
        raise InputError(
            "this is a CLIP without a STAN branch (no STAN_* or timesFPN_* keys); "
            "give an open_clip name and a tag instead, such as ViT-B-32-quickgelu:openai"
        )
    temporal = f"{video}{found[0]}_T_layers."
    known = ("self_attn.", "layer_norm1.", "temporal_fc.", "layers.weight", "layers.bias")
    for key in shapes:
        part = key.removeprefix(temporal).split(".", 1)[-1]
        if key.startswith(temporal) and not part.startswith(known):
            raise InputError(
                f"unknown temporal module ('{key}'): known are self-attention and the dense 3x3x3 "
                "convolution ('layers.weight'); the paper's bottleneck convolution and the stacked "
                "forms have no released key names: not supported"
            )
    return found[0]
