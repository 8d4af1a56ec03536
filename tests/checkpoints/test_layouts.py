"""Layouts recognised by names and shapes: one-to-one maps; an error names the key at fault."""

import pytest

from stan_infer.checkpoints.authors import author_names
from stan_infer.checkpoints.presets import preset
from stan_infer.checkpoints.recognise import recognise
from stan_infer.checkpoints.trainer_hints import trainer_hints
from stan_infer.config import parameter_shapes
from stan_infer.errors import InputError
from tests.conftest import tiny_config

HEADS = {"heads": 2, "text_heads": 2}


def author_shapes(config, prefix="backbone.", text="text_backbone.", family="STAN"):
    """What a file of the authors holds for `config`: key -> shape."""
    shapes = {}
    wanted = parameter_shapes(config)
    for name, origin in author_names(config, prefix, text, family).items():
        shape = wanted[name]
        if origin.how == "rows":
            shape = (shape[0] // 3, *shape[1:])
        elif origin.how == "transpose":
            shape = shape[::-1]
        shapes |= dict.fromkeys(origin.keys, shape)
    return shapes


@pytest.mark.parametrize("branch", ["selfattn", "conv"])
@pytest.mark.parametrize("family", ["STAN", "timesFPN"])
@pytest.mark.parametrize("prefix", ["backbone.", "module.backbone.", "", "model.net.backbone."])
def test_every_layout_infers_the_same_config(branch, family, prefix):
    config = tiny_config(branch=branch)
    shapes = author_shapes(config, prefix, f"{prefix}text.", family)
    found = recognise(shapes, HEADS | {"frames": 6, "context_length": 12})
    assert found.config == config
    used = [k for o in found.origins.values() for k in o.keys]
    assert sorted(used) == sorted(shapes), "the name map must be one-to-one"


@pytest.mark.parametrize("name", ["stan-b32", "stan-b16", "stan-l14"])
def test_released_sizes_need_no_setting(name):
    assert recognise(author_shapes(preset(name))).config == preset(name)


def test_a_file_without_a_text_tower_is_known_and_said():
    shapes = {k: s for k, s in author_shapes(tiny_config()).items() if not k.startswith("text_")}
    found = recognise(shapes, {"heads": 2})
    assert not found.config.has_text
    assert any("no text tower" in note for note in found.notes)


def test_the_three_dimensional_patch_key_is_squeezed():
    shapes = author_shapes(tiny_config())
    d, c, h, w = shapes.pop("backbone.patch_embedding.weight")
    shapes["backbone.patch_embedding_3d.weight"] = (d, c, 1, h, w)
    assert recognise(shapes, HEADS).origins["visual.conv1.weight"].how == "squeeze"


def changed(**changes):
    shapes = author_shapes(tiny_config())
    for key, shape in changes.items():
        key = key.replace("__", ".")
        if shape is None:
            del shapes[key]
        else:
            shapes[key] = shape
    return shapes


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"a.weight": (3,)}, "not a STAN checkpoint.*a.weight"),
        (changed(backbone__STAN_T_layers__0__temporal_fc__bias=None), "1 weights are missing.*"),
        (changed(backbone__layers__1__layer_norm1__bias=None), "layers.1.layer_norm1.bias"),
        (changed(backbone__class_embedding=None), "class_embedding"),
        (changed(backbone__extra=(4,)), "1 unexpected weights: backbone.extra"),
        (changed(backbone__layers__0__mlp__fc2__bias=(31,)), "shape contradicts.*fc2.bias"),
        (changed(backbone__position_embedding__weight=(6, 32)), "6 rows; need 1 . a square"),
        (changed(backbone__position_embedding__weight=(5,)), "needs 2 dimensions"),
        (changed(backbone__layers__1__self_attn__q_proj__weight=(32, 33)), "shape contradicts"),
        (changed(backbone__btadapter_S_layers__0__x=(1,)), "BT-Adapter"),
        (changed(backbone__balance1=(1,)), "BT-Adapter"),
        (changed(adapter__text_weight_fc__weight=(1, 24)), "drl_wti"),
        (changed(backbone__STAN_T_layers__0__down__weight=(4, 32)), "unknown temporal module"),
        (changed(backbone__STAN_T_layers__0__layers__0__weight=(4, 32)), "unknown temporal"),
        (changed(backbone__timesFPN_time_embed__weight=(64, 32)), "a mixture of two models"),
        (changed(ema__pre_layrnorm__weight=(32,)), "more than one model"),
    ],
)
def test_what_is_not_known_is_refused_by_name(shapes, message):
    with pytest.raises(InputError, match=message):
        recognise(shapes, HEADS)


def without(part):
    return {k: s for k, s in author_shapes(tiny_config()).items() if part not in k}


@pytest.mark.parametrize(
    ("shapes", "settings", "message"),
    [
        (without("STAN_"), HEADS, "CLIP without a STAN branch.*ViT-B-32-quickgelu:openai"),
        (without("backbone.layers.1."), HEADS, "layer backbone.layers.1 is missing"),
        (author_shapes(tiny_config()), {}, "--set heads=N"),
        # Told before anything else.
        (
            author_shapes(tiny_config()),
            {"hedas": 1},
            "unknown setting 'hedas'; did you mean 'heads'",
        ),
    ],
)
def test_what_is_missing_names_the_way_on(shapes, settings, message):
    with pytest.raises(InputError, match=message):
        recognise(shapes, settings)


def test_hints_are_found_and_nothing_is_executed():
    text = """
model = dict(visual_encoder=dict(depth=4, return_mean=False, clip_weight='clip-vit-base-patch16'))
test = [dict(clip_len=32, type='SampleFrames'), dict(scale=(-1, 256)), dict(length=77)]
__import__('os').system('false')
"""
    assert trainer_hints(text) == {
        "depth": 4,
        "head": "mug",
        "frames": 32,
        "context_length": 77,
        "short_side": 256,
        "patch_sizes": [16],
    }
    notes = " ".join(recognise(author_shapes(preset("stan-b32")), {}, {"cfg": text}).notes)
    assert "names CLIP /16 but the trunk has patch 32" in notes
    assert "hints at head mug" in notes and "hints at frames 32" in notes
