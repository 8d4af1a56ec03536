"""Temporary folders: one module makes them; those of ended processes are removed, no others."""

import ast
import errno
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from stan_infer.errors import InputError
from stan_infer.system import temporary
from stan_infer.system.temporary import clear, temporary_file, temporary_folder, workplace
from tests.conftest import ROOT
from tests.system.test_atomic import listing

NAME = ".stan-infer-work-abcdefgh"
pytestmark = pytest.mark.skipif(temporary.fcntl is None, reason="needs flock")


def test_nothing_else_makes_temporary_files():
    for folder in ("stan_infer", "kernels", "export"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "temporary.py":
                for node in ast.walk(ast.parse(path.read_text())):
                    names = [getattr(a, "name", a) for a in getattr(node, "names", [])]
                    assert "tempfile" not in [*names, getattr(node, "module", "")], path


def owner(tmp_path):
    """A process that holds a workplace in tmp_path with a file in it, until it is killed."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from stan_infer.system.temporary import workplace\n"
        "with workplace(Path(sys.argv[1])) as work:\n"
        "    (work / 'deep').mkdir(); (work / 'deep' / 'file').touch()\n"
        "    print(work.name, flush=True); time.sleep(1000)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    )
    return process, process.stdout.readline().strip()


def test_the_dead_are_cleared_and_the_living_are_not(tmp_path):
    process, name = owner(tmp_path)
    try:
        assert re.fullmatch(temporary.NAME, name)
        clear(tmp_path)
        with workplace(tmp_path):
            pass
        assert listing(tmp_path) == [name] and listing(tmp_path / name) == ["deep", "lock"]
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert listing(tmp_path) == [name]
        with workplace(tmp_path) as work:
            assert listing(tmp_path) == [work.name]
        assert listing(tmp_path) == []
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("has_lock", [False, True])
def test_a_kill_while_one_is_made_leaves_nothing_for_ever(tmp_path, has_lock):
    (tmp_path / NAME).mkdir()
    if has_lock:  # which says nothing yet
        (tmp_path / NAME / "lock").touch()
    clear(tmp_path)
    assert listing(tmp_path) == []


def test_what_is_not_provably_ours_stays(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "lock").write_bytes(b"stan-infer-work ")
    (mine / "thesis").write_text("years of work")
    place = tmp_path / "place"
    place.mkdir()
    (place / NAME).symlink_to(mine)
    (place / f"{NAME[:-1]}1").write_text("a file")
    for i, content in (("2", None), ("3", b"another's"), ("4", b"")):
        folder = place / f"{NAME[:-1]}{i}"
        folder.mkdir()
        (folder / "thesis").write_text("years of work")
        if content is not None:
            (folder / "lock").write_bytes(content)
    (place / f"{NAME[:-1]}5").mkdir()
    os.mkfifo(place / f"{NAME[:-1]}5" / "lock")
    (place / f"{NAME}x").mkdir()  # another pattern
    (place / ".out.abcdefgh.tmp").mkdir()
    if os.geteuid() == 0:
        folder = place / f"{NAME[:-1]}6"
        folder.mkdir()
        (folder / "lock").write_bytes(b"stan-infer-work ")
        os.chown(folder, 1234, 1234)
    before = sorted(map(str, place.rglob("*")))
    clear(place)
    assert sorted(map(str, place.rglob("*"))) == before
    assert listing(mine) == ["lock", "thesis"]


def test_a_left_over_with_links_in_it_takes_nothing_with_it(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("years of work")
    work = tmp_path / "place" / NAME
    (work / "deep").mkdir(parents=True)
    (work / "lock").write_bytes(b"stan-infer-work ../mine2")
    (work / "old").mkdir()
    (work / "link").symlink_to(tmp_path / "mine")
    (work / "deep" / "link").symlink_to(tmp_path / "mine")
    clear(work.parent)
    assert listing(work.parent) == [] and listing(tmp_path) == ["mine", "place"]
    assert listing(tmp_path / "mine") == ["thesis"]


def test_nobody_loses_his_own_to_others_that_start(tmp_path):
    code = (
        "import sys; from pathlib import Path; from stan_infer.system.temporary import workplace\n"
        "for i in range(300):\n"
        "    with workplace(Path(sys.argv[1])) as work:\n"
        "        (work / 'file').write_text(str(i))\n"
        "        assert (work / 'file').read_text() == str(i)"
    )
    command = [sys.executable, "-c", code, tmp_path]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert listing(tmp_path) == []


def test_a_place_without_locks_is_never_cleared(tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(temporary.fcntl, "flock", no_locks)
    with workplace(tmp_path) as work:
        clear(tmp_path)
        assert listing(tmp_path) == [work.name]
    assert listing(tmp_path) == []


def test_the_folder_is_that_of_tmpdir_and_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(ZeroDivisionError), temporary_folder("a test") as folder:
        assert folder.parent.parent == tmp_path and listing(folder) == []
        (folder / "file").touch()
        raise ZeroDivisionError
    with temporary_file() as f:
        f.write(b"x")
    assert listing(tmp_path) == []


@pytest.mark.parametrize("make", [lambda: temporary_folder("a test"), lambda: temporary_file()])
def test_a_tmpdir_that_cannot_be_used_is_named_and_no_other_is_taken(tmp_path, monkeypatch, make):
    (tmp_path / "file").touch()
    for place, why in (
        (tmp_path / "none", "No such file"),
        (tmp_path / "file", "Not a directory"),
        ("/proc", "No such file|not permitted|denied"),  # read-only, for root too
    ):
        monkeypatch.setenv("TMPDIR", str(place))
        message = rf"temporary folder {place} cannot take .*({why}).*; set TMPDIR to .* TMPDIR="
        with pytest.raises(InputError, match=message), make():
            pytest.fail("entered")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EROFS, "Read-only file system"),
        RuntimeError("[ONNXRuntimeError] : open file failed: No space left on device"),
    ],
)
def test_whatever_library_says_it_a_full_place_is_told(tmp_path, monkeypatch, error):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    message = rf"temporary folder {tmp_path} cannot take the graphs.*TMPDIR="
    with pytest.raises(InputError, match=message), temporary_folder("the graphs"):
        raise error
    with pytest.raises(InputError, match=message), temporary_folder("the graphs") as folder:
        from stan_infer.system.atomic import new_file

        with new_file(folder / "a"):
            raise error
    # Another place that is full is not blamed on this one, nor is another fault.
    (tmp_path / "out").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "out"))
    with pytest.raises(InputError, match=f"cannot write {tmp_path / 'a'}"):
        with temporary_folder("the graphs"), new_file(tmp_path / "a"):
            raise error
    with pytest.raises(KeyError), temporary_folder("the graphs"):
        raise KeyError("a fault of ours")


@pytest.fixture
def small_disk(tmp_path):
    """Mount `size` bytes of memory as a folder, where root may."""
    mounted = []

    def mount(size):
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("cannot mount a small disk here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        for _ in range(50):
            if subprocess.run(["umount", place], capture_output=True).returncode == 0:
                break
            time.sleep(0.1)


def test_numpy_on_a_full_disk(small_disk, monkeypatch):
    import numpy as np

    place = small_disk("64k")
    monkeypatch.setenv("TMPDIR", str(place))
    message = f"temporary folder {place} cannot take arrays: .*TMPDIR="
    for save in (np.save, np.savez):
        with pytest.raises(InputError, match=message), temporary_folder("arrays") as folder:
            save(folder / "a", np.ones(100_000))
        assert listing(place) == []


def test_a_disk_without_room_for_a_name(small_disk, monkeypatch):
    place = small_disk("4k,nr_inodes=2")
    (place / "file").touch()
    monkeypatch.setenv("TMPDIR", str(place))
    with pytest.raises(InputError, match=f"temporary folder {place} cannot take arrays"):
        with temporary_folder("arrays"):
            pytest.fail("entered")
    assert listing(place) == ["file"]
