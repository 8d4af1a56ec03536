"""Recognise a checkpoint by its key names and shapes alone: its layout, its config, its name map.

Nothing here reads a weight or imports torch. Layouts: the authors' (`STAN_*`), their first release
(`timesFPN_*`), our own, and open_clip's CLIP (which has no branch).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from stan_infer.checkpoints.trainer_hints import layout_notes
from stan_infer.config import (
    Shape,
    StanConfig,
    check_setting_names,
    default_heads,
    parameter_shapes,
)
from stan_infer.errors import InputError


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where one of our parameters comes from: file keys, and what is done with them.

    how: "copy"; "rows" (concatenate along axis 0: q, k, v); "transpose"; "squeeze" (drop axis 2).
    """

    keys: tuple[str, ...]
    how: str = "copy"

    def shape(self, shapes: Mapping[str, Shape]) -> Shape | None:
        """Return the shape after `how`, or None where the parts do not fit together."""
        parts = [shapes[k] for k in self.keys]
        first = parts[0]
        if self.how == "rows":
            same = all(p and p[1:] == first[1:] for p in parts)
            return (sum(p[0] for p in parts), *first[1:]) if same else None
        if self.how == "transpose":
            return first[::-1]
        if self.how == "squeeze":
            fits = len(first) == 5 and first[2] == 1
            return first[:2] + first[3:] if fits else None
        return first


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a file turned out to be."""

    name: str
    config: StanConfig
    origins: dict[str, Origin]  # our parameter name -> where it comes from
    ignored: dict[str, str]  # file key -> why it is not needed
    notes: tuple[str, ...] = ()


def recognise(
    shapes: Mapping[str, Shape], settings: Mapping[str, Any] | None = None, cfg: str | None = None
) -> Layout:
    """Find out what a state dict is.

    shapes: file key -> shape. settings: StanConfig fields that shapes cannot tell. cfg: config text
    of the trainer, only searched for hints. Raises InputError for a model that is not STAN, a
    variant whose computation is unknown, keys that are missing or left over, or shapes that
    contradict each other.
    """
    shapes = {k: tuple(s) for k, s in shapes.items()}
    settings = dict(settings or {})
    _refuse_relatives(shapes)
    prefix = _only_prefix(shapes, "pre_layrnorm.weight")
    if prefix is None:
        raise InputError(
            "not a STAN checkpoint: no key ends with 'pre_layrnorm.weight', the trunk's first "
            f"norm; it holds {len(shapes)} tensors such as {_some(shapes, 3)}"
        )
    family = _family(shapes, prefix)
    text = _only_prefix(shapes, "text_model.final_layer_norm.weight")
    config = _infer(shapes, prefix, text, family, settings)
    origins = author_names(config, prefix, text, family)
    flat, deep = f"{prefix}patch_embedding.weight", f"{prefix}patch_embedding_3d.weight"
    if deep in shapes and flat not in shapes:  # saved after a forward with patch_3d
        origins["visual.conv1.weight"] = Origin((deep,), "squeeze")
    ignored = _ignorable(shapes, prefix, text, family)
    check_names(shapes, origins, ignored, parameter_shapes(config))
    layout = "authors' STAN" if family == "STAN" else "authors' first release (timesFPN names)"
    return Layout(layout, config, origins, ignored, tuple(layout_notes(config, cfg, ignored)))


def check_names(
    shapes: Mapping[str, Shape],
    origins: Mapping[str, Origin],
    ignored: Iterable[str],
    wanted: Mapping[str, Shape],
) -> None:
    """Refuse a file with keys that are missing, left over or of the wrong shape; name them."""
    needed = {k for o in origins.values() for k in o.keys}
    missing = sorted(needed - set(shapes))
    if missing:
        raise InputError(
            f"{len(missing)} weights are missing: {_some(missing, 5)}; a model with random weights "
            "in their place is never loaded: use the complete checkpoint"
        )
    extra = sorted(set(shapes) - needed - set(ignored))
    if extra:
        raise InputError(
            f"{len(extra)} unexpected weights: {_some(extra, 5)}; this is another model or an "
            "unknown variant, and computing without them would give wrong results"
        )
    for name, origin in origins.items():
        got = origin.shape(shapes)
        if got != wanted[name]:
            parts = ", ".join(f"{k} {list(shapes[k])}" for k in origin.keys)
            raise InputError(
                f"shape contradicts the rest: {parts} should give {list(wanted[name])} ({name})"
            )


def _refuse_relatives(shapes: Mapping[str, Shape]) -> None:
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


def _family(shapes: Mapping[str, Shape], prefix: str) -> str:
    found = [f for f in ("STAN", "timesFPN") if any(k.startswith(f"{prefix}{f}_") for k in shapes)]
    if len(found) == 2:
        raise InputError("both STAN_* and timesFPN_* keys: a mixture of two models; not supported")
    if not found:
        raise InputError(
            "this is a CLIP without a STAN branch (no STAN_* or timesFPN_* keys); "
            "give an open_clip name and a tag instead, such as ViT-B-32-quickgelu:openai"
        )
    temporal = [k for k in shapes if k.startswith(f"{prefix}{found[0]}_T_layers.")]
    for key in temporal:
        part = key.removeprefix(f"{prefix}{found[0]}_T_layers.").split(".", 1)[-1]
        known = ("self_attn.", "layer_norm1.", "temporal_fc.", "layers.weight", "layers.bias")
        if not part.startswith(known):
            raise InputError(
                f"unknown temporal module ('{key}'): known are self-attention and the dense 3x3x3 "
                "convolution ('layers.weight'); the paper's bottleneck convolution and the stacked "
                "forms have no released key names: not supported"
            )
    return found[0]


def _infer(
    shapes: Mapping[str, Shape],
    prefix: str,
    text: str | None,
    family: str,
    settings: dict[str, Any],
) -> StanConfig:
    def size(key: str, axis: int, ndim: int) -> int:
        if key not in shapes:
            raise InputError(f"1 weights are missing: {key}; use the complete checkpoint")
        if len(shapes[key]) != ndim:
            raise InputError(f"{key} has shape {list(shapes[key])}; it needs {ndim} dimensions")
        return shapes[key][axis]

    flat, deep = f"{prefix}patch_embedding.weight", f"{prefix}patch_embedding_3d.weight"
    patch = size(deep, 4, 5) if deep in shapes and flat not in shapes else size(flat, 3, 4)
    rows = size(f"{prefix}position_embedding.weight", 0, 2)
    grid = math.isqrt(max(rows - 1, 0))
    if grid < 1 or grid * grid != rows - 1:
        raise InputError(f"{prefix}position_embedding.weight has {rows} rows; need 1 + a square")
    width = size(f"{prefix}class_embedding", 0, 1)
    temporal = f"{prefix}{family}_T_layers"
    values: dict[str, Any] = {
        "width": width,
        "layers": _count(shapes, f"{prefix}layers"),
        "patch": patch,
        "image_size": patch * grid,
        "embed_dim": size(f"{prefix}visual_projection.weight", 0, 2),
        "mlp_width": size(f"{prefix}layers.0.mlp.fc1.weight", 0, 2),
        "branch_layers": max(
            _count(shapes, f"{prefix}{family}_S_layers"), _count(shapes, temporal)
        ),
        "branch": "conv" if f"{temporal}.0.layers.weight" in shapes else "selfattn",
        "max_frames": size(f"{prefix}{family}_time_embed.weight", 0, 2),
    }
    if text is not None:
        t = f"{text}text_model."
        values |= {
            "text_width": size(f"{t}final_layer_norm.weight", 0, 1),
            "text_layers": _count(shapes, f"{t}encoder.layers"),
            "text_mlp_width": size(f"{t}encoder.layers.0.mlp.fc1.weight", 0, 2),
            "vocab_size": size(f"{t}embeddings.token_embedding.weight", 0, 2),
            "context_positions": size(f"{t}embeddings.position_embedding.weight", 0, 2),
        }
    return with_settings(values, settings)


def with_settings(values: dict[str, Any], settings: Mapping[str, Any]) -> StanConfig:
    """Join what shapes told with the settings; heads default to width / 64.

    Raises InputError for an unknown setting or values that contradict each other.
    """
    check_setting_names(settings)
    values = dict(values)
    for name, width in (("heads", "width"), ("text_heads", "text_width")):
        # A setting given by the caller replaces this below, with its own checks.
        if values.get(width):
            values[name] = 1 if name in settings else default_heads(values[width], name)
    values.setdefault("short_side", values["image_size"])
    values.setdefault("frames", min(12, values["max_frames"]))
    if values.get("context_positions"):
        values.setdefault("context_length", min(32, values["context_positions"]))
    return StanConfig.from_dict(values).replace(settings)


def _count(shapes: Mapping[str, Shape], prefix: str) -> int:
    found = {int(m[1]) for k in shapes if (m := re.match(re.escape(prefix) + r"\.(\d{1,4})\.", k))}
    if found and found != set(range(len(found))):
        gap = min(set(range(max(found) + 1)) - found)
        raise InputError(f"layer {prefix}.{gap} is missing, though {prefix}.{max(found)} is there")
    return len(found)


def _author_block(ours: str, theirs: str) -> dict[str, Origin]:
    names: dict[str, Origin] = {}
    for kind in ("weight", "bias"):
        qkv = tuple(f"{theirs}.self_attn.{p}_proj.{kind}" for p in "qkv")
        names[f"{ours}.attn.in_proj_{kind}"] = Origin(qkv, "rows")
        for a, b in (
            ("ln_1", "layer_norm1"),
            ("attn.out_proj", "self_attn.out_proj"),
            ("ln_2", "layer_norm2"),
            ("mlp.c_fc", "mlp.fc1"),
            ("mlp.c_proj", "mlp.fc2"),
        ):
            names[f"{ours}.{a}.{kind}"] = Origin((f"{theirs}.{b}.{kind}",))
    return names


def author_names(
    config: StanConfig, prefix: str, text: str | None, family: str
) -> dict[str, Origin]:
    """Where each of our parameters stands in the authors' naming.

    prefix, text: of the video and the text tower's keys. family: "STAN" or "timesFPN".
    """
    names: dict[str, Origin] = {
        "visual.class_embedding": Origin((f"{prefix}class_embedding",)),
        "visual.positional_embedding": Origin((f"{prefix}position_embedding.weight",)),
        "visual.proj": Origin((f"{prefix}visual_projection.weight",), "transpose"),
        "visual.conv1.weight": Origin((f"{prefix}patch_embedding.weight",)),
        "branch.time_embedding": Origin((f"{prefix}{family}_time_embed.weight",)),
    }
    pairs = [("visual.ln_pre", f"{prefix}pre_layrnorm")]
    pairs.append(("visual.ln_post", f"{prefix}post_layernorm"))
    for i in range(config.layers):
        names |= _author_block(f"visual.transformer.resblocks.{i}", f"{prefix}layers.{i}")
    for k in range(config.branch_layers):
        names |= _author_block(f"branch.spatial.{k}", f"{prefix}{family}_S_layers.{k}")
        ours, theirs = f"branch.temporal.{k}", f"{prefix}{family}_T_layers.{k}"
        pairs.append((f"{ours}.fc", f"{theirs}.temporal_fc"))
        if config.branch == "conv":
            pairs.append((f"{ours}.conv", f"{theirs}.layers"))
        else:
            block = _author_block(ours, theirs)
            names |= {n: o for n, o in block.items() if ".attn." in n}
            pairs.append((f"{ours}.ln", f"{theirs}.layer_norm1"))
    if text is not None:
        t = f"{text}text_model."
        names |= {
            "token_embedding.weight": Origin((f"{t}embeddings.token_embedding.weight",)),
            "positional_embedding": Origin((f"{t}embeddings.position_embedding.weight",)),
            "text_projection": Origin((f"{text}text_projection.weight",), "transpose"),
        }
        pairs.append(("ln_final", f"{t}final_layer_norm"))
        for i in range(config.text_layers):
            names |= _author_block(f"transformer.resblocks.{i}", f"{t}encoder.layers.{i}")
    for ours, theirs in pairs:
        names |= {f"{ours}.{kind}": Origin((f"{theirs}.{kind}",)) for kind in ("weight", "bias")}
    return names


def _ignorable(
    shapes: Mapping[str, Shape], prefix: str, text: str | None, family: str
) -> dict[str, str]:
    known = {
        f"{text}text_model.embeddings.position_ids": "0, 1, 2, ...; saved by old transformers",
        f"{prefix}embeddings.position_ids": "0, 1, 2, ...; saved by old transformers",
        "logit_scale": "the loss's scale; no score uses it",
    }
    if family == "timesFPN":
        known |= {
            f"{prefix}timesFPN_pos_embed.weight": "unused by the first release's forward",
            f"{prefix}timesFPN_cls_token": "unused by the first release's forward",
        }
    return {k: why for k, why in known.items() if k in shapes}


def _only_prefix(shapes: Mapping[str, Shape], ending: str) -> str | None:
    found = [k[: -len(ending)] for k in shapes if k.endswith(ending)]
    found = [p for p in found if not p or p.endswith(".")]
    if len(found) > 1:
        raise InputError(f"more than one model in the file: prefixes {_some(found, 4)}")
    return found[0] if found else None


def _some(names: Iterable[str], count: int) -> str:
    names = list(names)
    more = f", and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(n[:120] for n in names[:count]) + more
