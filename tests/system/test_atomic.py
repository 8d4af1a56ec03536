"""Results appear whole and replace earlier results only; links, devices, modes, kills."""

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from stan_infer.artefacts.folder import read_manifest
from stan_infer.errors import InputError
from stan_infer.system import atomic
from stan_infer.system.atomic import check_file, check_folder, new_file, new_folder
from tests.conftest import python
from tests.hostile.kill import forked


def listing(folder):
    return sorted(p.name for p in folder.iterdir())


def write(path, text="new", *given, **named):
    with new_file(path, *given, **named) as temporary:
        temporary.write_text(text)


def make(out, text="new", **named):
    """Write a folder with one file, over whatever earlier result lies there."""
    with new_folder(out, lambda p: None, **named) as temporary:
        (temporary / "result").write_text(text)


def refused(new, path, words, *given, **named):
    with pytest.raises(InputError, match=words), new(path, *given, **named):
        pytest.fail("entered")


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(KeyboardInterrupt), new_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert listing(tmp_path) == []
    write(path, "whole")
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
    make(out, "first")
    make(out, "second")
    assert (out / "result").read_text() == "second" and listing(tmp_path) == ["out"]
    with pytest.raises(ZeroDivisionError), new_folder(out, lambda p: None) as temporary:
        (temporary / "result").write_text("third")
        raise ZeroDivisionError
    assert (out / "result").read_text() == "second" and listing(tmp_path) == ["out"]


def test_a_folder_that_must_stay_is_not_entered(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    words = "not be replaced, because it is mine"
    refused(new_folder, tmp_path, words, lambda p: "it is mine")
    assert listing(tmp_path) == ["thesis.tex"]


def test_a_file_that_arrives_meanwhile_saves_the_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match="because it is there"):
        with new_folder(out, lambda p: "it is there") as temporary:
            (temporary / "result").touch()
            (out / "mine").touch()
    assert listing(out) == ["mine"] and listing(tmp_path) == ["out"]


def no_exchange(monkeypatch):
    """As on a system that cannot exchange two names."""
    monkeypatch.setattr(atomic, "_rename_exchange", lambda a, b: False)


def at_second_rename(monkeypatch, act):
    """Have `act` done in place of the second call of os.rename."""
    original, calls = os.rename, []

    def rename(a, b, **given):
        calls.append(b)
        if len(calls) == 2:
            act()
        original(a, b, **given)

    monkeypatch.setattr(os, "rename", rename)


def test_the_earlier_folder_comes_back_when_the_exchange_fails(tmp_path, monkeypatch):
    def fail():
        raise OSError(errno.EIO, "Input/output error")

    out = tmp_path / "out"
    make(out, "first")
    no_exchange(monkeypatch)
    at_second_rename(monkeypatch, fail)
    with pytest.raises(InputError, match="Input/output error"):
        make(out)
    assert (out / "result").read_text() == "first" and listing(tmp_path) == ["out"]


def killed_between_the_renames(out):
    """In a child process: replace `out`, and die when it lies aside."""
    pid = os.fork()
    if pid == 0:
        at_second_rename(pytest.MonkeyPatch(), lambda: os.kill(os.getpid(), signal.SIGKILL))
        make(out, "second")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def test_a_folder_left_aside_by_a_kill_is_put_back(tmp_path, monkeypatch):
    no_exchange(monkeypatch)
    out = tmp_path / "out"
    make(out, "first")
    killed_between_the_renames(out)
    assert not out.exists()
    with pytest.raises(InputError, match="has no manifest"):
        read_manifest(out)  # a reader repairs it, too
    assert (out / "result").read_text() == "first" and listing(tmp_path) == ["out"]
    killed_between_the_renames(out)
    make(tmp_path / "another")
    assert (out / "result").read_text() == "first"
    assert listing(tmp_path) == ["another", "out"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs renameat2")
def test_readers_never_see_no_folder(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    if not atomic._rename_exchange(*(tmp_path / n for n in ("out", "out"))):
        pytest.skip("this file system cannot exchange")
    done, missed, looks = [], [], []

    def look():
        while not done:
            looks.append(1)
            if not os.path.isdir(out):
                missed.append(1)

    reader = threading.Thread(target=look)
    reader.start()
    for i in range(200):
        make(out, str(i))
    done.append(1)
    reader.join()
    assert not missed and looks
    assert (out / "result").read_text() == "199" and listing(tmp_path) == ["out"]


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    target, link, link2 = tmp_path / "there" / "target", tmp_path / "link", tmp_path / "link2"
    link.symlink_to("there/target")
    link2.symlink_to(link)
    for text in ("first", "second"):  # at first the link leads nowhere
        write(link2, text)
        assert target.read_text() == text and link.is_symlink() and link2.is_symlink()
    assert listing(tmp_path / "there") == ["target"]
    folder, other = tmp_path / "folder", tmp_path / "to_folder"
    other.symlink_to("folder")
    for text in ("first", "second"):
        make(other, text)
        assert (folder / "result").read_text() == text and other.is_symlink()
    loop = tmp_path / "loop"
    loop.symlink_to("loop")
    for new in (new_file, new_folder):
        refused(new, loop, "symbolic links", str)


def test_mode_and_owner_of_what_is_replaced_are_kept(tmp_path):
    path, out = tmp_path / "a", tmp_path / "out"

    def seen():
        return [(s.st_mode & 0o7777, s.st_uid, s.st_gid) for s in (path.stat(), out.stat())]

    mask = os.umask(0o027)
    try:
        for _ in range(2):
            write(path)
            make(out)
            assert [mode for mode, _, _ in seen()] == [0o640, 0o750]
    finally:
        os.umask(mask)
    path.chmod(0o600)
    out.chmod(0o711)
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
        os.chown(out, 1234, 4321)
    before = seen()
    write(path)
    make(out)
    assert seen() == before
    path.chmod(0o444)  # a result that must not be changed by mistake is still replaced whole
    write(path)
    assert seen()[0][0] == 0o444


def node(path, kind, major, minor):
    try:
        os.mknod(path, kind | 0o666, os.makedev(major, minor))
    except OSError as e:
        pytest.skip(f"cannot make a device: {e.strerror}")
    return path


def test_a_device_is_written_through(tmp_path, monkeypatch):
    null = node(tmp_path / "null", stat.S_IFCHR, 1, 3)
    try:
        null.open("wb").close()
    except OSError:
        pytest.skip("devices cannot be opened here")
    link = tmp_path / "link"
    link.symlink_to(null)
    for path in (null, link):
        write(path, "gone", lambda p: "it must not be asked")
        assert stat.S_ISCHR(null.stat().st_mode) and null.stat().st_rdev == os.makedev(1, 3)
    assert listing(tmp_path) == ["link", "null"] and link.is_symlink()
    full = node(tmp_path / "full", stat.S_IFCHR, 1, 7)
    for folder in (tempfile.gettempdir(), str(tmp_path)):
        monkeypatch.setenv("TMPDIR", folder)  # which is not to blame
        with pytest.raises(InputError) as caught:
            write(full)
        assert str(caught.value) == f"cannot write {full}: No space left on device"
    refused(new_folder, null, "a file of that name", str)


@pytest.mark.parametrize("is_bound", [False, True], ids=["tmpfs", "bound"])
def test_a_mount_point_is_refused(tmp_path, is_bound):
    """It cannot be renamed; one that is bound here lies in the same file system as its parent."""
    place, file, link = tmp_path / "a place", tmp_path / "file", tmp_path / "link"
    (tmp_path / "source").mkdir()
    (tmp_path / "source_file").touch()
    place.mkdir()
    file.touch()
    link.symlink_to(place)
    what = ["--bind", tmp_path / "source"] if is_bound else ["-t", "tmpfs", "tmpfs"]
    done = []
    try:
        for words in ([*what, place], ["--bind", tmp_path / "source_file", file]):
            if subprocess.run(["mount", *words], capture_output=True).returncode:
                pytest.skip("cannot mount here")
            done.append(words[-1])
        for name in (place, link):
            message = f"{name} is a mount point: give a folder in it, as in {name}/model"
            with pytest.raises(InputError, match=message):
                check_folder(name, str)
        check_folder(place / "model", str)
        with pytest.raises(InputError, match="file: it is a mount point; give another"):
            check_file(file)
        check_file(place / "file")
    finally:
        for name in done:
            subprocess.run(["umount", name], check=True)


def test_the_remedy_is_that_of_the_reason(tmp_path):
    for number, remedy in (
        (errno.ENOSPC, "free some space or give another place"),
        (errno.EDQUOT, "free some space or give another place"),
        (errno.EROFS, "give another place"),
        (errno.EACCES, "give another place"),
    ):
        with pytest.raises(InputError) as caught, new_file(tmp_path / "a"):
            raise OSError(number, os.strerror(number))
        assert str(caught.value).endswith(f"a: {os.strerror(number)}; {remedy}")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="; give another place$"):
        check_file(tmp_path / "loop")


def test_a_disk_is_refused(tmp_path):
    disk = node(tmp_path / "disk", stat.S_IFBLK, 7, 250)
    refused(new_file, disk, "it is a disk")


def test_a_pipe_is_written_through(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write(pipe, "x" * 300_000)
    reader.join()
    assert got == ["x" * 300_000] and stat.S_ISFIFO(pipe.stat().st_mode)
    assert listing(tmp_path) == ["pipe"]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1"])
def test_standard_output_keeps_its_place(tmp_path, name):
    code = (
        "from pathlib import Path; from stan_infer.system.atomic import new_file\n"
        "print('before')\n"
        f"with new_file(Path({name!r}), lambda p: 'no') as f: f.write_text('result\\n')\n"
        "print('after')"
    )
    assert python("-c", code).stdout == "before\nresult\nafter\n"
    path = tmp_path / "log"
    path.write_text("earlier\n")
    with path.open("a") as log:
        subprocess.run([sys.executable, "-c", code], stdout=log, check=True)
    assert path.read_text() == "earlier\nbefore\nresult\nafter\n"


def test_what_is_read_is_never_written(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.write_text("weights")
    folder.mkdir()
    (folder / "graph").write_text("graph")
    os.link(source, tmp_path / "hard")
    (tmp_path / "soft").symlink_to(source)
    (tmp_path / "to_folder").symlink_to(folder)
    for name in ("source", "hard", "soft", "folder/../source"):
        with pytest.raises(InputError, match="is also read"):
            write(tmp_path / name, sources=["no:name", source])
    for name in ("folder/new", "to_folder/new"):
        with pytest.raises(InputError, match="lies in"):
            write(tmp_path / name, sources=[folder])
    for name, read, why in (
        ("folder", folder, "is also read"),
        ("to_folder", folder, "is also read"),
        ("folder/deep/er", folder, "lies in"),
        ("folder", folder / "graph", "holds"),
    ):
        refused(new_folder, tmp_path / name, why, str, sources=[read])
    assert source.read_text() == "weights" and listing(folder) == ["graph"]
    assert len(listing(tmp_path)) == 5
    write(tmp_path / "new", sources=[source, folder])
    (tmp_path / "source2").mkdir()
    write(tmp_path / "source2" / "new", sources=[source])


def test_only_a_result_of_the_same_kind_is_replaced(tmp_path):
    path = tmp_path / "a"
    path.touch()  # as mktemp makes it
    write(path, "first", lambda p: "it is mine")
    words = "a will not be replaced, because it is mine: give"
    refused(new_file, path, words, lambda p: "it is mine")
    write(path, "second", lambda p: None)
    assert path.read_text() == "second"
    path.unlink()
    with pytest.raises(InputError, match="it is mine"):  # it comes while the work is done
        with new_file(path, lambda p: "it is mine") as temporary:
            temporary.write_text("new")
            path.write_text("mine")
    assert path.read_text() == "mine" and listing(tmp_path) == ["a"]


@pytest.mark.parametrize(
    "error", [RuntimeError("write failed: No space left on device (os error 28)"), OSError("short")]
)
def test_a_library_on_a_full_disk_is_an_input_error(tmp_path, error):
    for new in (new_file, new_folder):
        with pytest.raises(InputError, match="cannot write .*(No space left|short)"):
            with new(tmp_path / "a", str):
                raise error
    with pytest.raises(KeyError), new_file(tmp_path / "a"):  # another fault stays what it is
        raise KeyError("a fault of ours")


def test_places_that_cannot_be_written_are_told_before_the_work(tmp_path):
    with pytest.raises(InputError, match="no such folder: .*no; make it"):
        check_file(tmp_path / "no" / "x")
    check_folder(tmp_path / "no" / "x", str)  # missing ones are made
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)  # whatever the umask

    def refuse():
        for check, name in ((check_file, "x"), (check_folder, "x"), (check_folder, "a/b")):
            with pytest.raises(InputError, match="is read-only"):
                check(closed / name, str)

    run_as_nobody(tmp_path, refuse)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_a_place_whose_mode_lies_is_told_before_the_work():
    """As root, /proc can be written as far as its mode says."""
    for check in (check_file, check_folder):
        with pytest.raises(InputError, match="cannot write /proc/x: .*; give another place") as e:
            check(Path("/proc/x"), str)
        assert "free some space" not in str(e.value)


@pytest.mark.parametrize("name", ["manifest.json", "stan_infer.json"])
def test_nothing_is_added_to_a_folder_that_lists_its_files(tmp_path, name):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("folder/sub")
    (folder / name).write_text('{"tool": {"name": "stan_infer"}}')
    before = listing(folder)
    for place in (folder / "x", folder / "sub" / "x", tmp_path / "link" / "x"):
        for new in (new_file, new_folder):
            refused(new, place, "folder, an export that would no longer open", str)
    assert listing(folder) == before and listing(folder / "sub") == []
    with new_file(folder / "sub" / "x", part_of=folder):  # a plan
        pass
    with pytest.raises(InputError, match="an export that would"):
        with new_file(folder / "sub" / "x", part_of=folder / "sub"):
            pass
    for other in ('{"tool": {"name": "vite"}}', '{"tool": "stan_infer"}', "[]", "{", ""):
        (folder / name).write_text(other)  # somebody's project
        write(folder / "own")


def run_as_nobody(tmp_path, work):
    """Run as a user who is not root, in a child process."""
    folder = tmp_path
    while os.geteuid() == 0 and folder.parent != folder:
        folder.chmod(folder.stat().st_mode | 0o011)
        folder = folder.parent
        if folder == Path(tempfile.gettempdir()):
            break

    def as_nobody():
        if os.geteuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        work()

    forked(as_nobody)


def test_a_folder_of_a_containers_image_is_told_as_one(tmp_path):
    """overlayfs gives a folder of a lower layer no other name."""
    parts = [tmp_path / name for name in ("lower", "upper", "work", "merged")]
    for part in parts:
        part.mkdir()
    (parts[0] / "out").mkdir()
    (parts[0] / "out" / "old").touch()
    options = "lowerdir={},upperdir={},workdir={}".format(*parts[:3])
    words = ["mount", "-t", "overlay", "overlay", "-o", f"{options},redirect_dir=off", parts[3]]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("cannot mount an overlay here")
    try:
        out = parts[3] / "out"
        with pytest.raises(InputError, match="belongs to the image of this container; delete it"):
            make(out)
        assert listing(parts[3]) == ["out"] and listing(out) == ["old"]
    finally:
        subprocess.run(["umount", parts[3]], check=True)


def test_the_current_folder_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(new_folder, Path("."), "is the current one", str)
    assert listing(tmp_path) == []


def test_parents_made_for_a_result_go_with_it(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a" / "b" / "c", str):
        raise ZeroDivisionError
    assert listing(tmp_path) == []
    make(tmp_path / "a" / "b" / "c")
    assert listing(tmp_path / "a" / "b") == ["c"]


def test_a_path_below_a_file_is_an_input_error(tmp_path):
    (tmp_path / "file").write_text("")
    refused(new_file, tmp_path / "file" / "x", "cannot write")
    refused(new_folder, tmp_path / "file", "a file of that name", str)
    for name in ("x" * 5000, "y" * 300):
        for new in (new_file, new_folder):
            refused(new, tmp_path / name, "too long", str)
