"""CLIP models that open_clip knows by name: config, tag, the file with their weights."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stan_infer.checkpoints.clip_names import checked_names
from stan_infer.checkpoints.layout import Origin, Recognised, Shapes, with_settings
from stan_infer.checkpoints.presets import PRESETS, preset
from stan_infer.checkpoints.untrained_branch import UNTRAINED
from stan_infer.config import StanConfig, coerce, parameter_shapes
from stan_infer.errors import InputError, MissingError, nearest
from stan_infer.system.packages import require

# Of pixels between 0 and 1; source: open_clip's constants.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_VISION_KEYS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}


def is_clip_name(source: str) -> bool:
    """Whether `source` is spelt like an open_clip model name (with an optional ":tag")."""
    name = source.split(":")[0]
    suffixes = (".pth", ".pt", ".bin", ".safetensors", ".ckpt", ".onnx")
    return bool(re.fullmatch(r"[A-Z][A-Za-z0-9.-]+", name)) and not name.endswith(suffixes)


_ACTIVATIONS = {False: "gelu", True: "quick_gelu"}


def clip_config(name: str, settings: Mapping[str, Any] | None = None, tag: str = "") -> StanConfig:
    """Return the config of a branch on open_clip's model `name` with its weights `tag`.

    settings: as in load_model, and `branch_layers` (default 4, or all layers of a shallower trunk).
    Activation and normalisation of pixels are those that the tag was trained with; without one of
    open_clip's tags, those of the model's name. Raises InputError for an unknown name or tag and
    for a tower that is not a plain CLIP ViT, MissingError without open_clip.
    """
    open_clip = _open_clip()
    known = open_clip.get_model_config(name)
    if known is None:
        hint = nearest(name, [m for m in open_clip.list_models() if m.startswith("ViT")])
        raise InputError(f"no such file, and no open_clip model is called '{name}'{hint}")
    known_settings = plain_settings(known, f"open_clip model '{name}'")
    vision, text = known["vision_cfg"], known["text_cfg"]
    settings = dict(settings or {})
    width = vision["width"]
    depth = settings.pop("branch_layers", min(4, vision["layers"]))
    values = {
        "width": width,
        "layers": vision["layers"],
        "patch": vision["patch_size"],
        "image_size": vision["image_size"],
        "embed_dim": known["embed_dim"],
        "mlp_width": int(width * vision.get("mlp_ratio", 4.0)),
        "branch_layers": coerce("branch_layers", depth),
        "max_frames": 64,
        "text_width": text["width"],
        "text_layers": text["layers"],
        "text_mlp_width": int(text["width"] * text.get("mlp_ratio", 4.0)),
        "vocab_size": text["vocab_size"],
        "context_positions": text["context_length"],
    }
    trained = _training(name, tag)
    if trained:
        known_settings["activation"] = _ACTIVATIONS[bool(trained.get("quick_gelu"))]
    for key, usual in (("mean", OPENAI_MEAN), ("std", OPENAI_STD)):
        if tuple(trained.get(key, usual)) != usual:  # CLIP's own is rounded in the config
            known_settings[key] = tuple(255.0 * x for x in trained[key])
    return with_settings(values, known_settings | settings)


def plain_settings(known: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the settings that open_clip's config of a model gives beside the sizes in its shapes.

    what: names the config in the InputError for a model that is not a plain CLIP ViT, whose values
    no shape shows.
    """
    vision, text = known.get("vision_cfg"), known.get("text_cfg")
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise InputError(f"{what} has no two towers (vision_cfg, text_cfg)")
    odd = sorted(set(vision) - _VISION_KEYS) + sorted(set(text) - _TEXT_KEYS)
    odd += sorted(set(known) - {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg", "custom_text"})
    odd += [k for k in ("layers", "width", "patch_size") if not _is_size(vision.get(k))]
    odd += [k for k in ("width", "heads") if not _is_size(text.get(k))]
    if odd or not _is_size(vision.get("head_width", 64)):
        raise InputError(
            f"{what} is not a plain CLIP ViT (it sets {ascii(', '.join(map(str, odd)))[:150]}); "
            "STAN is defined on OpenAI's CLIP form, such as ViT-B-32-quickgelu"
        )
    return {
        "heads": vision["width"] // vision.get("head_width", 64),
        "text_heads": text["heads"],
        "activation": _ACTIVATIONS[bool(known.get("quick_gelu"))],
    }


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _training(name: str, tag: str) -> Mapping[str, Any]:
    """What open_clip records of the training of a tag; empty for a file or no tag."""
    if not tag or os.path.exists(tag):
        return {}
    _check_tag(name, tag)
    return dict(_open_clip().get_pretrained_cfg(name, tag))


def _notes(name: str, tag: str, config: StanConfig) -> tuple[str, ...]:
    """What `inspect` says of the weights' own settings."""
    notes = [UNTRAINED]
    trained = _training(name, tag)
    if not trained:
        other = "gelu" if config.activation == "quick_gelu" else "quick_gelu"
        notes.append(
            f"activation {config.activation} is that of the name {name}; weights that were trained "
            f"with the other one need --set activation={other}"
        )
        return tuple(notes)
    theirs = "quick_gelu" if trained.get("quick_gelu") else "gelu"
    is_used = config.activation == theirs
    used = "which is used" if is_used else f"but {config.activation} was asked for"
    notes.append(f"{tag} was trained with activation {theirs}, {used}")
    if (config.mean, config.std) != (StanConfig.mean, StanConfig.std):
        notes.append(f"{tag} has its own mean and std of pixels, which are used")
    for key, ours in (("interpolation", "bilinear"), ("resize_mode", "shortest")):
        if trained.get(key, ours) != ours:
            notes.append(
                f"{tag} was trained with {key} {trained[key]}; frames are read with {ours} here, "
                "as STAN is trained"
            )
    return tuple(notes)


def named_config(name: str, settings: Mapping[str, Any] | None = None) -> StanConfig:
    """Return the config of a preset or of a branch on an open_clip model, by name alone.

    Raises InputError with the nearest preset for an unknown name.
    """
    if name not in PRESETS and is_clip_name(name):
        return clip_config(name, settings)
    return preset(name).replace(settings or {})


def clip_layout(source: str, settings: Mapping[str, Any] | None = None) -> Recognised:
    """Return the layout of "NAME" or "NAME:TAG" for `inspect`, without any weight."""
    name, _, tag = source.partition(":")
    config = clip_config(name, settings, tag)
    origins = {n: Origin((n,)) for n in parameter_shapes(config) if not n.startswith("branch.")}
    return Recognised(f"open_clip {name}", config, origins, {}, _notes(name, tag, config))


def clip_file_layout(
    source: str, shapes: Shapes, settings: Mapping[str, Any] | None = None
) -> Recognised:
    """Return the layout of "NAME:PATH", where the file has these keys and shapes.

    Raises InputError unless they are that CLIP's.
    """
    layout = clip_layout(source, settings)
    origins, ignored = checked_names(layout.config, shapes)
    return dataclasses.replace(layout, origins=origins, ignored=ignored)


def weights_path(source: str) -> Path:
    """Return the file of "NAME:TAG": TAG itself, if it is a path, or the one that is downloaded.

    The download is open_clip's. Raises InputError without a tag: a model with random weights is
    never loaded.
    """
    name, _, tag = source.partition(":")
    if not tag:
        tags = ", ".join(_open_clip().list_pretrained_tags_by_model(name)) or "a file with weights"
        raise InputError(f"'{name}' alone has random weights; add a tag, as {name}:TAG ({tags})")
    return Path(tag) if os.path.exists(tag) else _download(name, tag)


def names_like(config: StanConfig) -> dict[str, str]:
    """Return open_clip's models of the same sizes with their activation; {} without open_clip."""
    try:
        known = _open_clip().list_models()
    except MissingError:
        return {}
    found = {}
    for name in known:
        try:
            theirs = clip_config(name, {"branch_layers": config.branch_layers})
        except InputError:
            continue
        if parameter_shapes(theirs) == parameter_shapes(config):
            found[name] = theirs.activation
    return found


def _download(name: str, tag: str) -> Path:
    _check_tag(name, tag)
    from open_clip.pretrained import download_pretrained

    try:
        return Path(download_pretrained(_open_clip().get_pretrained_cfg(name, tag)))
    except Exception as e:
        # Whatever open_clip's HTTP client raises comes out.
        raise MissingError(
            f"the weights {name}:{tag} could not be downloaded ({str(e)[:120]}); "
            f"fetch them elsewhere and give the file: {name}:PATH"
        ) from e


def _check_tag(name: str, tag: str) -> None:
    tags = _open_clip().list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise InputError(
            f"open_clip has no weights '{tag}' for {name}{nearest(tag, tags)}, and no such file; "
            f"tags: {', '.join(tags)}"
        )


def _open_clip() -> Any:
    return require("open_clip", "an open_clip model name", "cpu")
