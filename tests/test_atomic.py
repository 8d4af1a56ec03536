from __future__ import annotations

import errno
import os
from pathlib import Path

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
        with new_folder(out, lambda p: None) as temporary:
            (temporary / "result").write_text(text)
    assert (out / "result").read_text() == "second"
    assert listing(tmp_path) == ["out"]
    with pytest.raises(ZeroDivisionError), new_folder(out, lambda p: None) as temporary:
        (temporary / "result").write_text("third")
        raise ZeroDivisionError
    assert (out / "result").read_text() == "second"
    assert listing(tmp_path) == ["out"]


def test_a_folder_that_must_stay_is_not_entered(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not be replaced, because it is mine"):
        with new_folder(tmp_path, lambda p: "it is mine"):
            pytest.fail("entered")
    assert listing(tmp_path) == ["thesis.tex"]


def test_a_file_that_arrives_meanwhile_saves_the_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match="because it is there"):
        with new_folder(out, lambda p: "it is there") as temporary:
            (temporary / "result").touch()
            (out / "mine").touch()
    assert listing(out) == ["mine"] and listing(tmp_path) == ["out"]


def test_the_earlier_folder_comes_back_when_the_exchange_fails(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "result").write_text("first")
    original, calls = os.replace, []

    def fail_second(a, b):
        calls.append(b)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        original(a, b)

    monkeypatch.setattr(os, "replace", fail_second)
    with pytest.raises(InputError, match="Input/output error"):
        with new_folder(out, lambda p: None):
            pass
    assert (out / "result").read_text() == "first" and listing(tmp_path) == ["out"]


def test_the_current_folder_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is the current one"), new_folder(Path("."), str):
        pytest.fail("entered")
    assert listing(tmp_path) == []


def test_parents_made_for_a_result_go_with_it(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a" / "b" / "c", str):
        raise ZeroDivisionError
    assert listing(tmp_path) == []
    with new_folder(tmp_path / "a" / "b" / "c", str):
        pass
    assert listing(tmp_path / "a" / "b") == ["c"]


def test_a_path_below_a_file_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"), new_file(tmp_path / "file" / "x"):
        pytest.fail("entered")
    with pytest.raises(InputError, match="a file of that name"):
        with new_folder(tmp_path / "file", str):
            pytest.fail("entered")
    for name in ("x" * 5000, "y" * 300):
        with pytest.raises(InputError, match="too long"), new_file(tmp_path / name):
            pytest.fail("entered")
        with pytest.raises(InputError, match="too long"), new_folder(tmp_path / name, str):
            pytest.fail("entered")
