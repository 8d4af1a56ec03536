"""Files from outside: only regular ones are opened, only what the bounds allow is read."""

import os

import pytest

from stan_infer.errors import InputError
from stan_infer.system.outside_file import open_regular, read_bounded, read_text, stays_inside


def test_bounds_and_names(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_bounded(path, 7) == path.read_bytes()
    assert read_text(path, 7) == "a\nb"
    with pytest.raises(InputError, match="^labels has 7 bytes; at most 6 are read; so$"):
        read_bounded(path, 6, name="labels", hint="; so")
    with pytest.raises(InputError, match="^labels: no such file; so$"):
        read_bounded(tmp_path / "none", 6, name="labels", hint="; so")
    path.write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"x\.txt cannot be read as UTF-8 text"):
        read_text(path, 6)


def test_only_regular_files_are_opened(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"abc")
    for path, what in ((tmp_path, "a folder"), (pipe, "a pipe"), ("/dev/zero", "device")):
        with pytest.raises(InputError, match=f"{what}.*not a regular file"):
            open_regular(path)
    with pytest.raises(InputError, match="not a path"):
        open_regular("a\0b")
    file, size = open_regular(link)
    assert (file.read(), size) == (b"abc", 3)
    file.close()
    with pytest.raises(OSError, match="symbolic link"):
        open_regular(link, follow=False)


@pytest.mark.parametrize("name", ["/a", "a/../b", "..", "C:a", "a//b", "", "a" * 201, "a\n"])
def test_names_that_leave_a_folder(name):
    assert stays_inside("a/b.c") and not stays_inside(name)
