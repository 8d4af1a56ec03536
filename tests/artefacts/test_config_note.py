"""The hash that graphs note: of doubles' bits, so that every language makes the same."""

import hashlib
import json

import pytest

from stan_infer.artefacts.config_note import config_sha256, is_of_config
from tests.conftest import tiny_config

MODEL = tiny_config().to_dict()


def test_the_text_that_is_hashed():
    text = b"frames=4018000000000000\nhead=mean\nmean=3ff0000000000000,bff8000000000000\n"
    known = {"mean": [1, -1.5], "head": "mean", "frames": 6}
    assert config_sha256(known) == hashlib.sha256(text).hexdigest()


def test_a_number_has_one_hash_however_it_is_spelled():
    spelled = json.dumps(MODEL).replace("122.771", "1227.71e-1").replace("100.0", "100")
    assert config_sha256(json.loads(spelled)) == config_sha256(MODEL)


@pytest.mark.parametrize("key", MODEL)
def test_every_key_counts(key):
    value = MODEL[key]
    other = [*value[:2], value[2] + 1e-12] if isinstance(value, list) else "x"
    other = other if isinstance(value, (str, list)) else value * 2 + 1
    noted, changed = config_sha256(MODEL), MODEL | {key: other}
    assert is_of_config(noted, {"schema": "1.1", "model": MODEL})
    assert not is_of_config(noted, {"schema": "1.1", "model": changed})
    assert not is_of_config(None, {"schema": "1.1", "model": MODEL})
