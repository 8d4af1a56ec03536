import dataclasses

import pytest

from stan_infer.checkpoints.presets import PRESETS, preset
from stan_infer.config import SETTINGS, StanConfig, default_heads
from stan_infer.errors import InputError
from tests.conftest import tiny_config


@pytest.mark.parametrize("name", PRESETS)
def test_presets_round_trip_through_json_types(name):
    config = preset(name)
    assert StanConfig.from_dict(config.to_dict()) == config


def test_a_mistyped_preset_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'stan-b32'"):
        preset("stan-b23")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "heads is 3; it must divide the width 32"),
        ({"branch_layers": 4}, "branch_layers is 4; allowed is 1 to 3"),
        ({"frames": 65}, "frames is 65; allowed is 1 to 64"),
        ({"frames": 0}, "frames is 0"),
        ({"short_side": 8}, "short_side is 8; allowed is 16"),
        ({"image_size": 17, "short_side": 20}, "not a multiple of patch"),
        ({"head": "mgu"}, "did you mean 'mug'"),
        ({"std": (1.0, 0.0, 1.0)}, "std .* is 0.0"),
        ({"std": (1.0, 1e-50, 1.0)}, "std .* is 1e-50"),
        ({"mean": (1e38, 0.0, 0.0)}, "mean .* is 1e.38"),
        ({"norm_eps": 1e300}, "norm_eps is 1e.300"),
        ({"mean": (float("nan"), 0.0, 0.0)}, "must be finite"),
        ({"context_length": 21}, "context_length is 21; allowed is 3 to 20"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"width": True}, "width"),
        ({"width": 10**9}, "width is 1000000000"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        tiny_config(**changes)


def test_settings_change_what_shapes_cannot_tell_and_nothing_else():
    config = tiny_config().replace({"frames": "8", "mean": "1,2,3", "head": "mug"})
    assert (config.frames, config.mean, config.head) == (8, (1.0, 2.0, 3.0), "mug")
    with pytest.raises(InputError, match="fixed by the checkpoint's tensor shapes"):
        config.replace({"width": 64})
    with pytest.raises(InputError, match="did you mean 'frames'"):
        config.replace({"frmaes": 8})
    with pytest.raises(InputError, match="it must be a whole number"):
        config.replace({"frames": "eight"})
    for wrong in ({"frames": "0_8"}, {"frames": " 8"}, {"norm_eps": "1e-0_5"}, {"mean": "1,2,٣"}):
        with pytest.raises(InputError, match="it must be"):
            config.replace(wrong)


def test_unknown_and_missing_keys_are_refused():
    values = tiny_config().to_dict()
    with pytest.raises(InputError, match="unknown keys: colour"):
        StanConfig.from_dict(values | {"colour": 1})
    del values["width"]
    with pytest.raises(InputError, match="lacks: width"):
        StanConfig.from_dict(values)


def test_every_setting_is_a_field():
    assert set(SETTINGS) <= {f.name for f in dataclasses.fields(StanConfig)}


def test_heads_that_cannot_be_told_name_the_option():
    assert default_heads(768, "heads") == 12
    with pytest.raises(InputError, match="--set heads=N"):
        default_heads(96, "heads")
