"""A library: what is embedded, what is remembered, and what a stranger's files may not do."""

import json
import os
import shutil
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest

import stan_infer as si
from stan_infer.library.codes import CODES
from stan_infer.library.database import PASSPORT, ROWS, VECTORS, connect, errors_named
from stan_infer.library.embed_library import embed_library
from stan_infer.library.levels import normalised
from stan_infer.library.library import open_library
from stan_infer.library.place import locked
from stan_infer.library.store import File, Store
from stan_infer.system.json_file import json_line
from stan_infer.video.windows import Windows
from tests.library.fake_stack import FakeSession
from tests.video.broken_videos import make_clip

MANY = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Five short videos, 00.mp4 to 04.mp4, all different, and a library of them."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "videos").mkdir()
    for i in range(MANY):
        make_clip(folder / "videos" / f"{i:02}.mp4", frames=8 + i, size=(32, 48))
    run(folder, "library")
    return folder


@pytest.fixture
def place(made, tmp_path):
    """A copy of it; the files keep their times."""
    shutil.copytree(made / "videos", tmp_path / "videos")
    run(tmp_path, "library")
    return tmp_path


def run(place, name="library", session=None, **options):
    given = {"workers": 1} | options
    return embed_library(session or FakeSession(), [place / "videos"], place / name, **given)


def names(library):
    return [[Path(p).name for p in row] for row in library.videos]


def counts(done):
    kinds = ("rows", "unchanged", "embedded", "copies", "renamed", "gone")
    return {k: getattr(done, k) for k in kinds if getattr(done, k)}


def test_vectors_are_those_of_the_session(made):
    library = open_library(made / "library")
    library.check()
    assert names(library) == [[f"{i:02}.mp4"] for i in range(MANY)]
    assert library.ids.tolist() == list(range(MANY)) and not library.failed
    assert np.isnan(library.start).all() and np.isnan(library.end).all()
    session = FakeSession()
    for row in range(MANY):
        right = session.embed_video(session.read_clip(library.videos[row][0])[None])[0]
        np.testing.assert_array_equal(library.vectors[row], normalised(right, ""))
    assert json.loads(json_line(library.to_dict()))["ids"] == list(range(MANY))
    assert str(library) == f"5 rows of 24 in {made / 'library'}"


def test_it_is_read_without_the_library(made):
    db = sqlite3.connect(made / "library" / ROWS)
    asked = "SELECT rows.id, path FROM rows JOIN clips ON clips.id = clip JOIN files USING (sha256)"
    rows = dict(db.execute(asked))
    db.close()
    vectors = np.fromfile(made / "library" / VECTORS, "<f4").reshape(-1, 24)
    assert sorted(rows) == list(range(MANY)) and len(vectors) == MANY
    assert os.path.basename(rows[3]) == b"03.mp4"


def test_nothing_new_needs_no_model(place, monkeypatch):
    session = FakeSession()
    monkeypatch.setattr(session, "_video", None)
    done = run(place, session=session)
    assert counts(done) == {"rows": 5, "unchanged": 5} and done.stack is None


def test_only_what_is_new_or_changed_is_embedded(place):
    videos = place / "videos"
    before = open_library(place / "library")
    make_clip(videos / "05.mp4", frames=20, size=(32, 48))
    make_clip(videos / "01.mp4", frames=21, size=(32, 48))  # another content
    os.utime(videos / "02.mp4", ns=(1, 1))  # another time
    shutil.copy(videos / "03.mp4", videos / "03-copy.mp4")
    (videos / "04.mp4").rename(videos / "06.mp4")
    (videos / "00.mp4").unlink()
    done = run(place)
    assert counts(done) == {
        "rows": 5, "unchanged": 1 + 1, "embedded": 2, "copies": 1, "renamed": 1, "gone": 2,
    }  # fmt: skip
    assert done.stack.same
    after = open_library(place / "library")
    after.check()
    assert names(after) == [
        ["02.mp4"], ["03-copy.mp4", "03.mp4"], ["06.mp4"], ["01.mp4"], ["05.mp4"],
    ]  # fmt: skip
    assert after.ids.tolist() == [2, 3, 4, 5, 6]
    np.testing.assert_array_equal(after.vectors[:5], before.vectors)
    assert counts(run(place)) == {"rows": 5, "unchanged": 6}


def test_a_file_that_comes_back_is_known(place):
    (place / "videos" / "00.mp4").rename(place / "00.mp4")
    assert counts(run(place)) == {"rows": 4, "unchanged": 4, "gone": 1}
    (place / "00.mp4").rename(place / "videos" / "00.mp4")
    assert counts(run(place)) == {"rows": 5, "unchanged": 5}


def test_other_folders_are_left_alone(place):
    (place / "more").mkdir()
    make_clip(place / "more" / "x.mp4", frames=9, size=(48, 32))
    done = embed_library(FakeSession(), [place / "more"], place / "library", workers=1)
    assert counts(done) == {"rows": 6, "embedded": 1}
    assert names(open_library(place / "library"))[5] == ["x.mp4"]


def test_a_list_of_files(made, tmp_path):
    listed = [made / "videos" / "02.mp4", tmp_path / "absent.mp4", made / "videos" / "01.mp4"]
    (tmp_path / "list.txt").write_text("\n".join(map(str, listed)) + "\n")
    done = embed_library(FakeSession(), [tmp_path / "list.txt"], tmp_path / "out", workers=1)
    assert names(open_library(tmp_path / "out")) == [["02.mp4"], ["01.mp4"]]
    assert list(done.failed) == [str(tmp_path / "absent.mp4")]


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "names no video"),
        (b"\xef\xbb\xbf \r\n\r\n", "names no video"),
        ("a.mp4\n".encode("utf-16"), "UTF-16: save it as UTF-8"),
        ("a.mp4\n".encode("utf-16-le"), "UTF-16: save it as UTF-8"),
        ("a.mp4\n".encode("utf-32-be"), "UTF-16: save it as UTF-8"),
        (b"a.mp4\nb\0.mp4\n", "zero bytes"),
        (b"a.mp4\n" + b"x" * 5000, "line 2 has 5000 bytes; a path has at most 4096"),
    ],
)
def test_a_list_that_is_none(tmp_path, data, words):
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(si.InputError, match=f"list .*list.txt.*{words}"):
        embed_library(FakeSession(), [tmp_path / "list.txt"], tmp_path / "out", workers=1)
    assert os.listdir(tmp_path) == ["list.txt"]


def test_a_list_of_windows_with_any_bytes(made, tmp_path):
    """A byte order mark, ends of lines, blank lines; a name that is no UTF-8."""
    odd = os.fsencode(tmp_path) + b"/\xe4.mp4"
    shutil.copy(made / "videos" / "02.mp4", odd)
    good = os.fsencode(made / "videos" / "01.mp4")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\r\n" + odd)
    embed_library(FakeSession(), [tmp_path / "list.txt"], tmp_path / "out", workers=1)
    paths = [path for (path,) in open_library(tmp_path / "out").videos]
    assert [*map(os.fsencode, paths)] == [good, odd]


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_library_that_goes_while_it_is_written(place, how):
    """Its rows would go with it, or into another: no success is told."""
    session = FakeSession()
    video, folder, calls = session._video, place / "library", []

    def late(pixels):
        calls.append(len(pixels))
        if len(calls) == 5:  # behind the canary clips
            if how == "deleted":
                shutil.rmtree(folder)
            else:
                folder.rename(place / "elsewhere")
            if how == "replaced":
                shutil.copytree(place / "elsewhere", folder)
        return video(pixels)

    make_clip(place / "videos" / "09.mp4", frames=25, size=(32, 48))
    session._video = late
    with pytest.raises(si.InputError, match="was deleted, moved or replaced while"):
        run(place, session=session)
    if how == "moved":
        assert counts(run(place, "elsewhere")) == {"rows": 6, "unchanged": 5, "embedded": 1}


def test_failures_are_kept_and_tried_again(place, monkeypatch):
    (place / "videos" / "02a.mp4").write_text("no video")
    said = []
    done = run(place, say=said.append)
    assert list(done.failed) == [str(place / "videos" / "02a.mp4")]
    assert len(said) == 1 and "02a.mp4" in said[0] and "not a video" in said[0]
    again = run(place, say=said.append)
    assert again.failed == done.failed and len(said) == 1
    assert open_library(place / "library").failed == done.failed
    run(place, say=said.append, retry_failed=True)
    assert len(said) == 2
    shutil.copy(place / "videos" / "00.mp4", place / "videos" / "02a.mp4")
    done = run(place)
    assert not done.failed and counts(done) == {"rows": 5, "unchanged": 5, "copies": 1}


def test_a_file_that_changes_while_it_is_read_is_not_believed(place, monkeypatch):
    late = place / "videos" / "09.mp4"
    make_clip(late, frames=25, size=(32, 48))
    session = FakeSession()
    video = session._video
    calls = iter(range(9))

    def changing(pixels):
        if next(calls) == 4:  # behind the canary clips
            os.utime(late, ns=(5, 5))
        return video(pixels)

    monkeypatch.setattr(session, "_video", changing)
    done = run(place, session=session)
    assert "changed while it was read" in done.failed[str(late)] and done.rows == 5
    assert counts(run(place)) == {"rows": 6, "unchanged": 5, "embedded": 1}


def test_names_that_are_not_text(place):
    strange = os.fsencode(place / "videos") + b"/\xff\n.mp4"
    os.rename(place / "videos" / "00.mp4", strange)
    (place / "videos" / os.fsdecode(b"\xfe.mp4")).write_text("no video")
    done = run(place)
    assert counts(done) == {"rows": 5, "unchanged": 4, "renamed": 1, "gone": 1}
    library = open_library(place / "library")
    assert os.fsencode(library.videos[0][0]) == strange
    json_line(done.to_dict()), json_line(library.to_dict())


@pytest.mark.parametrize("batch", [1, 3])
def test_windows_are_rows_with_times(made, tmp_path, batch):
    (tmp_path / "videos").mkdir()
    make_clip(tmp_path / "videos" / "long.mp4", frames=60, size=(32, 48))  # 2.4 s
    shutil.copy(made / "videos" / "00.mp4", tmp_path / "videos" / "short.mp4")
    (tmp_path / "videos" / "no.mp4").write_text("no video")
    parts = Windows(seconds=1.0, stride=0.5)
    done = run(tmp_path, windows=parts, batch=batch)
    library = open_library(tmp_path / "library")
    assert names(library) == [["long.mp4"]] * 4 + [["short.mp4"]] and len(done.failed) == 1
    np.testing.assert_allclose(library.start, [0, 0.5, 1, 1.4, 0], atol=1e-6)
    np.testing.assert_allclose(library.end[:4], [1, 1.5, 2, 2.4], atol=1e-6)
    whole = Windows(seconds=1, stride=0.5)  # the same, as a whole number
    assert counts(run(tmp_path, windows=whole, batch=batch)) == {"rows": 5, "unchanged": 2 + 1}
    with pytest.raises(si.InputError, match=r"made with --batch \d, --windows 1:0.5, this run"):
        run(tmp_path, batch=batch)


def test_readers_leave_nothing_beside_the_database(place):
    def files():
        return sorted(p.name for p in (place / "library").iterdir())

    whole = ["library.json", "lock", "rows.db", "vectors.f32", "vectors.i8"]
    library = open_library(place / "library")
    library.check()
    assert len([*library.videos]) == MANY and files() == whole
    with locked(place / "library"), Store(place / "library", 24) as store:
        store.put_file(Path("/x.mp4"), File(1, 1, b"1" * 32))
        store.commit()
        open_library(place / "library").check()
        reader = connect(place / "library")
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM files").fetchone() == (MANY + 1,)
    assert f"{ROWS}-wal" in files(), "it is being read"
    reader.close()
    open_library(place / "library").check()
    make_clip(place / "videos" / "09.mp4", frames=20, size=(32, 48))
    run(place)
    assert files() == whole, "the next run clears it"


@pytest.mark.parametrize(
    "error, words",
    [
        (PermissionError(13, "Permission denied", "x"), "x: Permission denied; check the perm"),
        (FileNotFoundError(2, "No such file", "x"), "x: No such file; take it from a backup"),
        (OSError(30, "Read-only file system", "x"), "Read-only file system; check the perm"),
        (OSError(5, "Input/output error", "x"), "Input/output error; run the command again"),
        (OSError(28, os.strerror(28), "x"), "o space left.*free some space, and run the command"),
    ],
)
def test_an_error_of_the_disk_says_what_to_do(error, words):
    with pytest.raises(si.InputError, match=f"library here cannot be used: .*{words}"):
        with errors_named(Path("here")):
            raise error


def test_two_runs_at_once_are_refused(place):
    words = rf"another run \(process {os.getpid()} on .+\) is writing to library"
    with locked(place / "library"), pytest.raises(si.InputError, match=words):
        run(place)
    assert open_library(place / "library").ids.size == 5
    run(place)


def test_what_is_not_a_library_is_left_alone(place, tmp_path):
    for name, words in (("videos", "not empty"), ("list.txt", "is a file")):
        (tmp_path / "list.txt").write_text("mine")
        with pytest.raises(si.InputError, match=words):
            run(place, name)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(si.InputError, match="not empty and not a library: it holds mine"):
        run(place, "full")
    assert os.listdir(tmp_path / "full") == ["mine"]
    with pytest.raises(si.InputError, match="is not a library"):
        open_library(tmp_path / "full")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_place_where_nothing_can_be_made_is_named(place):
    with pytest.raises(si.InputError, match="cannot make library /proc/lib: .*another place"):
        embed_library(FakeSession(), [place / "videos"], "/proc/lib", workers=1)


def test_a_lock_of_a_stranger_is_not_believed(place):
    """What it says is not shown, and nothing is written through a link."""
    lock = place / "library" / "lock"
    with locked(place / "library"):
        lock.write_bytes(b"process 1 on \x1b[31m" + b"x" * 9999)
        with pytest.raises(si.InputError, match="another run is writing"):
            run(place)
    (place / "mine").write_text("mine")
    for link in (lock.symlink_to, lock.hardlink_to):
        lock.unlink()
        link(place / "mine")
        with pytest.raises(si.InputError, match="is a link"):
            run(place)
    lock.unlink()
    os.mkfifo(lock)
    with pytest.raises(si.InputError, match="a device"):
        run(place)
    assert (place / "mine").read_text() == "mine"


def test_a_run_that_cannot_begin_leaves_nothing(place, monkeypatch):
    session = FakeSession()
    monkeypatch.setattr(session, "_video", lambda video: np.full((len(video), 24), np.nan))
    with pytest.raises(si.CheckError, match="not finite for canary"):
        run(place, "new/library", session=session)
    assert not (place / "new").exists()


def sql(statement):
    def change(library):
        db = sqlite3.connect(library / ROWS)
        db.executescript(statement)
        db.close()

    return change


def linked(name):
    def change(library):
        outside = library.parent / f"outside-{name}"
        shutil.move(library / name, outside)
        (library / name).symlink_to(outside)

    return change


FIRST = "WHERE CAST(path AS TEXT) LIKE '%00.mp4'"
HOSTILE = {
    "a row beyond the vectors": sql("INSERT INTO rows VALUES (7, 1, NULL, NULL, 0)"),
    "a row before the first": sql("INSERT INTO rows VALUES (-1, 1, NULL, NULL, 0)"),
    "more vectors than there are": sql("UPDATE state SET vectors = 1000000000000"),
    "no count": sql("DELETE FROM state"),
    "a count that is text": sql("UPDATE state SET vectors = 'x'"),
    "a path that is a number": sql(
        "UPDATE files SET path = 5 WHERE CAST(path AS TEXT) LIKE '%00.mp4'"
    ),
    "a path with a zero": sql(
        "UPDATE files SET path = x'2f0041' WHERE CAST(path AS TEXT) LIKE '%00.mp4'"
    ),
    "times that are text": sql("UPDATE rows SET start_s = 'x' WHERE id = 1"),
    "a trigger": sql("CREATE TRIGGER t AFTER INSERT ON rows BEGIN DELETE FROM files; END"),
    "a view": sql("DROP TABLE state; CREATE VIEW state AS SELECT 0 AS id, 5 AS vectors"),
    "no table": sql("DROP TABLE files"),
    "a journal to play back": lambda at: (at / f"{ROWS}-journal").write_bytes(b"x" * 512),
    "no database": lambda at: (at / ROWS).write_bytes(b"SQLite format 3\0" + b"\2" * 100),
    "an empty database": lambda at: (at / ROWS).write_bytes(b""),
    "no vectors": lambda at: (at / VECTORS).unlink(),
    "fewer vectors": lambda at: os.truncate(at / VECTORS, 100),
    "linked vectors": linked(VECTORS),
    "linked 8 bits": linked(CODES),
    "a linked database": linked(ROWS),
    "a linked passport": linked(PASSPORT),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files_are_refused(place, kind):
    HOSTILE[kind](place / "library")
    make_clip(place / "videos" / "05.mp4", frames=20, size=(32, 48))
    outside = {p: p.read_bytes() for p in place.glob("outside-*")}
    for refused in (lambda: [*open_library(place / "library").videos], lambda: run(place)):
        if kind in ("a path that is a number", "a path with a zero", "times that are text"):
            if refused.__code__.co_names[0] == "run":
                continue  # never opens a path of the library, and does not look at its times
        with pytest.raises((si.InputError, si.CheckError)) as caught:
            refused()
        assert "\n" not in str(caught.value)
    assert outside == {p: p.read_bytes() for p in place.glob("outside-*")}


def test_paths_that_lead_out_are_only_shown(place):
    out = "CAST('/etc/../../x' AS BLOB)"
    sql(f"UPDATE files SET path = {out} {FIRST}")(place / "library")
    assert open_library(place / "library").videos[0] == ("/etc/../../x",)
    assert counts(run(place)) == {"rows": 5, "unchanged": 4, "copies": 1}


def test_a_changed_vector_is_found(place):
    with (place / "library" / VECTORS).open("r+b") as file:
        file.seek(300)
        file.write(b"\x01")
    with pytest.raises(si.CheckError, match="vector 3 was changed"):
        open_library(place / "library").check()
