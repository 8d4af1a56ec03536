"""Features come back as they were kept, damaged parts do not, other settings are another cache."""

from __future__ import annotations

import numpy as np
import pytest

from stan_infer.errors import InputError
from stan_infer.feature_cache import PART_ITEMS, FeatureCache, file_name, ids_name


def test_features_come_back(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2 * PART_ITEMS + 3, 4)).astype(np.float32)
    cache = FeatureCache(tmp_path, {"a": 1})
    for i, v in enumerate(vectors):
        cache.put(f"n{i}", v)
    # As a kill would leave it: full parts are there, the rest is not.
    assert len(FeatureCache(tmp_path, {"a": 1})) == 2 * PART_ITEMS
    cache.put("other shape", np.ones((2, 3), np.float32))
    cache.flush()
    again = FeatureCache(tmp_path, {"a": 1})
    for i, v in enumerate(vectors):
        np.testing.assert_array_equal(again.get(f"n{i}"), v)
    assert again.get("other shape").shape == (2, 3)
    assert again.get("other") is None
    assert len(FeatureCache(tmp_path, {"a": 2})) == 0


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", None])
def test_a_damaged_part_is_told_and_not_used(tmp_path, caplog, content):
    cache = FeatureCache(tmp_path, {})
    cache.put("n", np.ones(3, np.float32))
    cache.flush()
    (part,) = tmp_path.glob("*/*.npz")
    if content is None:  # objects, which only pickle could read
        np.savez(part, names=np.array(["n"]), features=np.array([{}], object))
    else:
        part.write_bytes(content)
    assert len(FeatureCache(tmp_path, {})) == 0
    assert "is damaged and is not used" in caplog.text


def test_a_file_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used"):
        FeatureCache(tmp_path / "file", {})


def test_names_follow_content_and_options(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    first = file_name(path, {"frames": 8})
    assert file_name(path, {"frames": 8}) == first
    assert file_name(path, {"frames": 9}) != first
    path.write_bytes(b"other")
    assert file_name(path, {"frames": 8}) != first
    assert ids_name(np.array([1, 2])) != ids_name(np.array([1, 3]))
