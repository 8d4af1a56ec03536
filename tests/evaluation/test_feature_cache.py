"""Features are read as they were stored; damaged parts are not used; settings select the cache."""

import os

import numpy as np
import pytest

from stan_infer.errors import InputError
from stan_infer.evaluation.feature_cache import PART_ITEMS, FeatureCache, file_name, ids_name


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
        np.testing.assert_array_equal(again.get(f"n{i}", (4,)), v)
    assert again.get("other shape", (2, 3)).shape == (2, 3)
    assert again.get("other", (2, 3)) is None
    assert len(FeatureCache(tmp_path, {"a": 2})) == 0


NAMES, ONES = np.array(["n"]), np.ones((1, 3), np.float32)
ODD = {
    "empty": b"",
    "cut": b"PK\x03\x04 cut",
    # objects, which only pickle could read
    "objects": {"names": NAMES, "features": np.array([{}], object)},
    "names of objects": {"names": np.array(["n", 1], object), "features": ONES},
    "numbers as names": {"names": np.array([1]), "features": ONES},
    "a table of names": {"names": NAMES[None], "features": ONES},
    "one name": {"names": np.array("n"), "features": ONES},
    "too few names": {"names": NAMES, "features": np.ones((2, 3), np.float32)},
    "a name twice": {"names": np.array(["n", "n"]), "features": np.ones((2, 3), np.float32)},
    "a number": {"names": NAMES, "features": np.float32(1)},
    "float64": {"names": NAMES, "features": ONES.astype(np.float64)},
    "float16": {"names": NAMES, "features": ONES.astype(np.float16)},
    "other bytes' order": {"names": NAMES, "features": ONES.astype(">f4")},
    "NaN": {"names": NAMES, "features": ONES * np.float32(np.nan)},
    "infinity": {"names": NAMES, "features": ONES * np.float32(np.inf)},
    "no features": {"names": NAMES},
}


@pytest.mark.parametrize("name", ODD)
def test_a_damaged_part_is_told_and_not_used(tmp_path, caplog, name):
    content = ODD[name]
    cache = FeatureCache(tmp_path, {})
    cache.put("n", np.ones(3, np.float32))
    cache.flush()
    (part,) = tmp_path.glob("*/*.npz")
    if isinstance(content, dict):
        np.savez(part, **content)
    else:
        part.write_bytes(content)
    assert len(FeatureCache(tmp_path, {})) == 0
    assert f"{part} is damaged and is not used" in caplog.text


def test_features_of_another_shape_are_told_once_and_replaced(tmp_path, caplog):
    cache = FeatureCache(tmp_path, {})
    cache.put("n", np.ones((1, 3), np.float32))
    cache.flush()
    again = FeatureCache(tmp_path, {})
    assert again.get("n", (1, 4)) is None and again.get("n", (1, 4)) is None
    (part,) = tmp_path.glob("*/*.npz")
    assert caplog.text.count(f"{part} holds features that are not [1, 4]") == 1
    again.put("n", np.ones((1, 4), np.float32))
    again.flush()
    caplog.clear()
    assert FeatureCache(tmp_path, {}).get("n", (1, 4)).shape == (1, 4)
    assert not caplog.text


def test_a_folder_or_a_pipe_among_the_parts(tmp_path, caplog):
    FeatureCache(tmp_path, {})
    (folder,) = tmp_path.iterdir()
    (folder / "a.npz").mkdir()
    os.mkfifo(folder / "b.npz")
    assert len(FeatureCache(tmp_path, {})) == 0
    assert caplog.text.count("is damaged and is not used") == 2


def test_a_flipped_bit_is_told_or_changes_nothing(tmp_path):
    rng, told = np.random.default_rng(0), 0
    kept = {f"n{i}": rng.standard_normal((2, 5)).astype(np.float32) for i in range(6)}
    cache = FeatureCache(tmp_path, {})
    for name, features in kept.items():
        cache.put(name, features)
    cache.flush()
    (part,) = tmp_path.glob("*/*.npz")
    sound = part.read_bytes()
    for bit in rng.choice(8 * len(sound), 400, replace=False).tolist():
        flipped = bytearray(sound)
        flipped[bit // 8] ^= 1 << bit % 8
        part.write_bytes(flipped)
        found = FeatureCache(tmp_path, {})
        told += not len(found)
        for name, features in kept.items() if len(found) else ():
            np.testing.assert_array_equal(found.get(name, (2, 5)), features, err_msg=f"bit {bit}")
    assert 200 < told <= 400


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
    copy = tmp_path / "elsewhere.mkv"
    copy.write_bytes(b"one")
    assert file_name(copy, {"frames": 8}) == first
    path.write_bytes(b"two")
    assert file_name(path, {"frames": 8}) != first
    os.mkfifo(tmp_path / "pipe.mp4")
    assert file_name(tmp_path / "pipe.mp4", {}) != file_name(tmp_path / "none.mp4", {})
    assert ids_name(np.array([1, 2])) != ids_name(np.array([1, 3]))
