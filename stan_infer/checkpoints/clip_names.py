"""CLIP's weights by the names of open_clip, of OpenAI and of transformers' CLIPModel."""

from __future__ import annotations

from collections.abc import Iterable

from stan_infer.checkpoints.authors import IN_A_LAYER
from stan_infer.checkpoints.layout import Origin, Shapes, check_names, map_keys, only_prefix, unused
from stan_infer.config import StanConfig, parameter_shapes
from stan_infer.errors import InputError

# transformers' names, written as layout.map_keys says; inside a layer the authors' are the same.
ONCE = {
    "visual.class_embedding": "{at}vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "{at}vision_model.embeddings.position_embedding.weight",
    "visual.conv1": "{at}vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "{at}vision_model.pre_layrnorm",
    "visual.ln_post": "{at}vision_model.post_layernorm",
    "visual.proj": "{at}visual_projection.weight.T",
    "token_embedding": "{at}text_model.embeddings.token_embedding",
    "positional_embedding": "{at}text_model.embeddings.position_embedding.weight",
    "ln_final": "{at}text_model.final_layer_norm",
    "text_projection": "{at}text_projection.weight.T",
}
LAYERS = {
    "visual.transformer.resblocks": "{at}vision_model.encoder.layers",
    "transformer.resblocks": "{at}text_model.encoder.layers",
}
_BRANCH = (".STAN_", ".timesFPN_", ".branch.spatial.", ".branch.temporal.")
OPENAI_ONLY = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's archives
_OPEN_CLIP, _TRANSFORMERS = "visual.class_embedding", ONCE["visual.class_embedding"].format(at="")


def is_clip(shapes: Shapes) -> bool:
    """Whether a state dict is a CLIP ViT's, and has no branch of STAN."""
    if _has_branch(shapes):
        return False
    return any(
        key == end or key.endswith(f".{end}")
        for key in shapes
        for end in (_OPEN_CLIP, _TRANSFORMERS)
    )


def _has_branch(shapes: Shapes) -> bool:
    return any(part in f".{key}" for key in shapes for part in _BRANCH)


def prefix_of(shapes: Shapes) -> tuple[str, bool]:
    """Return what stands before CLIP's own names in a file, and whether they are transformers'.

    Raises InputError for more than one CLIP.
    """
    theirs = only_prefix(shapes, _TRANSFORMERS)
    if theirs is not None:
        return theirs, True
    return only_prefix(shapes, _OPEN_CLIP) or "", False


def clip_names(wanted: Iterable[str], shapes: Shapes) -> dict[str, Origin]:
    """Return where each of our parameters of CLIP stands in a file with these keys."""
    at, is_theirs = prefix_of(shapes)
    if is_theirs:
        return map_keys(wanted, ONCE, LAYERS, IN_A_LAYER, {"at": at})
    text = f"{at}text." if f"{at}text.ln_final.weight" in shapes else at
    return {n: Origin(((at if n.startswith("visual.") else text) + n,)) for n in wanted}


def checked_names(config: StanConfig, shapes: Shapes) -> tuple[dict[str, Origin], dict[str, str]]:
    """Return the origins of CLIP's parameters, and the keys that are not needed with the reason.

    Raises InputError where keys are missing or left over, or a shape is not the config's.
    """
    all_shapes = parameter_shapes(config)
    wanted = {n: s for n, s in all_shapes.items() if not n.startswith("branch.")}
    at, _ = prefix_of(shapes)
    sizes = {key for name in OPENAI_ONLY if (key := f"{at}{name}") in shapes}
    ignored = unused(shapes) | dict.fromkeys(sorted(sizes), "a size that the shapes show")
    if _has_branch(shapes):
        raise InputError("this is a STAN, with a branch: give it alone, without a name before it")
    if not is_clip(shapes):
        raise InputError(
            f"these are not a CLIP ViT's weights: there is no key {_OPEN_CLIP} (open_clip, OpenAI) "
            f"or {_TRANSFORMERS} (transformers)"
        )
    origins = clip_names(wanted, shapes)
    check_names(shapes, origins, ignored, wanted)
    return origins, ignored
