from __future__ import annotations

import errno

import pytest

from stan_infer.atomic import new_file, new_folder
from stan_infer.errors import InputError


def listing(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(KeyboardInterrupt), new_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert listing(tmp_path) == []
    with new_file(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert listing(tmp_path) == ["a.npz"]


def test_a_full_disk_is_an_input_error_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.npz"
    path.write_text("old")
    with pytest.raises(InputError, match="No space left on device"), new_file(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"
    assert listing(tmp_path) == ["a.npz"]


def test_a_folder_replaces_an_earlier_result_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    for text in ("first", "second"):
        with new_folder(out, "manifest.json") as temporary:
            (temporary / "manifest.json").write_text(text)
    assert (out / "manifest.json").read_text() == "second"
    assert listing(tmp_path) == ["out"]
    with pytest.raises(ZeroDivisionError), new_folder(out, "manifest.json") as temporary:
        (temporary / "manifest.json").write_text("third")
        raise ZeroDivisionError
    assert (out / "manifest.json").read_text() == "second"
    assert listing(tmp_path) == ["out"]


def test_a_folder_of_the_users_is_never_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not empty"), new_folder(tmp_path, "manifest.json"):
        pytest.fail("entered")
    assert (tmp_path / "thesis.tex").exists()


def test_a_path_below_a_file_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"), new_file(tmp_path / "file" / "x"):
        pytest.fail("entered")
    with pytest.raises(InputError, match="a file of that name"):
        with new_folder(tmp_path / "file", "m"):
            pytest.fail("entered")
