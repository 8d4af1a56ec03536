"""`library inspect | verify | migrate`: what they find, and what a stop may not spoil."""

import json
import os
import shutil
import sqlite3
import sys

import numpy as np
import pytest

import stan_infer as si
from stan_infer.library.database import FILES, PASSPORT, ROWS, VECTORS
from stan_infer.library.embed_library import embed_library
from stan_infer.library.inspect_library import inspect_library
from stan_infer.library.library import open_library
from stan_infer.library.migrate_library import migrate_library
from stan_infer.library.verify_library import verify_library
from stan_infer.video.windows import Windows
from tests.conftest import ROOT, edit_json, python
from tests.library.fake_stack import FakeSession
from tests.video.broken_videos import make_clip

OTHER = dict(seed=1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maintenance") / "videos"
    folder.mkdir()
    for i in range(4):
        make_clip(folder / f"{i}.mp4", frames=9 + i, size=(32, 48))
    shutil.copy(folder / "3.mp4", folder / "0-copy.mp4")
    (folder / "broken.mp4").write_text("no video")
    return folder


@pytest.fixture
def library(videos, tmp_path):
    embed_library(FakeSession(), [videos], tmp_path / "library", workers=1)
    return tmp_path / "library"


def change(library, statement):
    db = sqlite3.connect(library / ROWS)
    db.executescript(statement)
    db.close()


def write(library, at, value):
    vectors = np.memmap(library / VECTORS, "<f4", "r+")
    vectors[at] = value


def test_inspect_counts(library, videos, tmp_path):
    found = inspect_library(library)
    counts = {k: getattr(found, k) for k in ("rows", "files", "contents", "gone", "kept", "unused")}
    assert counts == {"rows": 4, "files": 6, "contents": 5, "gone": 0, "kept": 0, "unused": 0}
    assert list(found.failed) == [str(videos / "broken.mp4")] and found.waiting == 0
    change(library, "UPDATE files SET gone = 1 WHERE CAST(path AS TEXT) LIKE '%1.mp4'")
    change(library, "DELETE FROM rows WHERE id = 0; DELETE FROM clips WHERE id = 1")
    found = inspect_library(library)
    assert (found.rows, found.gone, found.kept, found.unused, found.waiting) == (2, 1, 1, 1, 2)
    with pytest.raises(si.InputError, match="not a library"):
        inspect_library(tmp_path)


def test_a_whole_library_has_nothing_wrong(library):
    found = verify_library(library, FakeSession(), files=True)
    assert (found.count, found.vectors, found.files, found.notes) == (0, 4, 6, ())
    assert found.stack.same
    found.check()


WRONG = {
    "a changed bit": (lambda at: write(at, 30, 0.5), "vector 1 was changed"),
    "not finite": (lambda at: sums(at, 30, np.nan), "vector 1 is not of length 1"),
    "another length": (lambda at: sums(at, slice(24, 48), 0.5), "vector 1 is not of length 1"),
    "a row of no content": (lambda at: change(at, "UPDATE rows SET clip = 9 WHERE id=2"), "1 row"),
    "a content without rows": (lambda at: change(at, "DELETE FROM rows WHERE id = 2"), "neither"),
    "times of a whole video": (lambda at: change(at, "UPDATE rows SET start_s=1,end_s=2"), "whole"),
    "an end before the start": (lambda at: change(at, "UPDATE rows SET start_s=2,end_s=1"), "end"),
    "a path that is not whole": (
        lambda at: change(at, "UPDATE files SET path = x'2e2e' WHERE size > 100 AND"
        " CAST(path AS TEXT) LIKE '%1.mp4'"), "not absolute",
    ),
    "a short hash": (lambda at: change(at, "UPDATE clips SET sha256 = x'00' WHERE id = 1"), "SHA"),
    "another canary": (
        lambda at: edit_json(at / PASSPORT, lambda p: p["canaries"][0].update(sha256="0" * 64)),
        "canary clip 0.mp4",
    ),
}  # fmt: skip


def sums(library, at, value):
    """Change a vector and its checksum with it."""
    import zlib

    write(library, at, value)
    vector = np.fromfile(library / VECTORS, "<f4").reshape(-1, 24)[1]
    change(library, f"UPDATE rows SET crc = {zlib.crc32(vector.tobytes())} WHERE id = 1")


@pytest.mark.parametrize("kind", WRONG)
def test_verify_finds_it(library, kind):
    spoil, words = WRONG[kind]
    spoil(library)
    found = verify_library(library)
    assert found.count and any(words in problem for problem in found.problems), found.problems
    with pytest.raises(si.CheckError, match="problems? .the first"):
        found.check()


def test_verify_finds_another_stack(library):
    assert "another stack made it" in verify_library(library, FakeSession(**OTHER)).problems[0]
    found = verify_library(library, FakeSession(onnxruntime="2"))
    assert found.count == 0 and "rows can be added" in found.notes[0]


def test_verify_hashes_the_videos_again(library, videos, tmp_path):
    moved = tmp_path / "videos"
    shutil.copytree(videos, moved)
    embed_library(FakeSession(), [moved], tmp_path / "other", workers=1)
    file = moved / "1.mp4"
    before = os.stat(file)
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    os.utime(file, ns=(1, before.st_mtime_ns))
    (moved / "2.mp4").unlink()
    found = verify_library(tmp_path / "other", files=True)
    assert found.count == 1 and "1.mp4: another content with the same size" in found.problems[0]
    assert "1 files are gone" in found.notes[0] and "2.mp4" in found.notes[0]


def test_what_a_stopped_run_left_is_a_note(library):
    with (library / VECTORS).open("ab") as file:
        file.write(b"x" * 100)
    found = verify_library(library)
    assert found.count == 0 and "ends with 100 bytes" in found.notes[0]


def migrate(library, session, **options):
    return migrate_library(library, session, **({"workers": 1} | options))


def names(library):
    return [[os.path.basename(p) for p in row] for row in library.videos]


def test_a_migrated_library_is_that_of_the_new_model(library, videos, tmp_path):
    before = open_library(library)
    old = np.array(before.vectors)
    done = migrate(library, FakeSession(**OTHER))
    assert (done.rows, done.embedded, done.lost) == (4, 4, {}) and done.stack.cosine < 0.9
    embed_library(FakeSession(**OTHER), [videos], tmp_path / "right", workers=1)
    after, right = open_library(library), open_library(tmp_path / "right")
    np.testing.assert_array_equal(after.vectors, right.vectors)
    assert names(after) == names(right) and after.failed == right.failed
    assert after.passport == right.passport
    np.testing.assert_array_equal(before.vectors, old, "whoever has it open keeps the old one")
    assert {p.name for p in library.parent.iterdir()} == {"library", "right"}
    assert verify_library(library, FakeSession(**OTHER), files=True).count == 0


def test_vectors_that_are_the_same_stay(library):
    vectors = (library / VECTORS).read_bytes()
    made = json.loads((library / PASSPORT).read_text())
    done = migrate(library, FakeSession(onnxruntime="2"))
    assert done.embedded == 0 and (library / VECTORS).read_bytes() == vectors
    now = json.loads((library / PASSPORT).read_text())
    assert now["facts"]["engine.onnxruntime"] == "2" and now["canaries"] == made["canaries"]
    assert open_library(library).compare(FakeSession(onnxruntime="2")).same
    assert migrate(library, FakeSession(onnxruntime="2"), everything=True).embedded == 4


def test_another_width_and_another_way(library):
    from tests.conftest import tiny_config

    narrow = FakeSession(config=tiny_config(embed_dim=16))
    assert migrate(library, narrow).stack is None
    assert open_library(library).vectors.shape == (4, 16)
    migrate(library, narrow, windows=Windows(seconds=0.2), batch=2, frames=3)
    found = open_library(library)
    assert found.passport["facts"]["reading.frames"] == 3 and found.passport["batch"] == 2
    assert len(found.ids) > 4 and not np.isnan(found.start).any()


def test_files_that_cannot_be_read_now_stop_it(videos, tmp_path):
    shutil.copytree(videos, tmp_path / "videos")
    library = tmp_path / "library"
    embed_library(FakeSession(), [tmp_path / "videos"], library, workers=1)
    (tmp_path / "videos" / "1.mp4").rename(tmp_path / "1.mp4")
    with pytest.raises(si.InputError, match=r"1 files of library.*1\.mp4.*--drop"):
        migrate(library, FakeSession(**OTHER))
    assert open_library(library).compare(FakeSession()).same, "the old one is as it was"
    (tmp_path / "1.mp4").rename(tmp_path / "videos" / "1.mp4")
    assert migrate(library, FakeSession(**OTHER)).embedded == 1, "it goes on"
    (tmp_path / "videos" / "1.mp4").unlink()
    done = migrate(library, FakeSession(), drop=True)
    assert list(done.lost) == [str(tmp_path / "videos" / "1.mp4")] and done.rows == 3


def test_a_migration_to_a_third_model_is_refused(library):
    part = library.with_name(".library.migrating")
    shutil.copytree(library, part)
    edit_json(part / PASSPORT, lambda p: p["facts"].update(x=1))
    with pytest.raises(si.CheckError, match="to begin it anew, delete it"):
        migrate(library, FakeSession(**OTHER))
    migrate(library, FakeSession())
    assert not part.exists(), "the library is what was asked for: nothing is left of another"


def test_a_migration_killed_at_every_step(library, tmp_path):
    migrate(library, FakeSession(**OTHER))
    right = (library / VECTORS).read_bytes(), names(open_library(library))
    migrate(library, FakeSession())
    command = ("-m", "tests.library.fake_stack")
    for step in range(1, 400):
        home = tmp_path / str(step)
        shutil.copytree(library, home / "library")
        words = (*command, home / "library", "--", "migrate=1", "workers=1", "commit=1")
        killed = python(*words, f"step={step}", f'at="{home}"', code=None, cwd=ROOT).returncode
        found = open_library(home / "library")
        assert any(found.compare(FakeSession(seed=seed)).same for seed in (0, 1)), step
        python(*words, cwd=ROOT)
        found = open_library(home / "library")
        assert ((home / "library" / VECTORS).read_bytes(), names(found)) == right, step
        assert os.listdir(home) == ["library"], step
        assert {p.name for p in (home / "library").iterdir()} <= FILES, step
        if killed == 0:
            break
        shutil.rmtree(home)
    assert killed == 0 and step > 20


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_strange_names_and_facts_are_shown_in_lines(library, capsys, monkeypatch):
    strange = "x'2f3c7363726970743e1b5b33316d0a2e6d7034'"  # /<script>ESC[31m\n.mp4
    change(library, f"UPDATE files SET path = {strange} WHERE CAST(path AS TEXT) LIKE '%broken%'")
    edit_json(library / PASSPORT, lambda p: p["facts"].update(evil="\x1b[2J" + "y" * 9999))
    from stan_infer.cli.library_inspect import inspect

    inspect(library)
    text = capsys.readouterr().out
    assert "\x1b" not in text and "/<script>\\x1b[31m\\n.mp4" in text
    assert max(map(len, text.splitlines())) < 300


def test_from_the_command_line(tmp_path):
    model, clips = "examples/motion/motion.safetensors", "examples/motion/clips"

    def run(*words, **more):
        return python("-m", "stan_infer", *words, cwd=ROOT, **more)

    library = tmp_path / "library"
    run("embed", model, clips, "-o", library, "--workers", "1")
    record = json.loads(run("library", "inspect", library, "--json").stdout)
    assert record["rows"] == 10 and record["schema"] == "stan-infer/library-inspect/1"
    assert "problems  0" in run("library", "verify", library, model).stdout
    done = json.loads(run("library", "migrate", library, model, "--frames", "4", "--json").stdout)
    assert (done["rows"], done["embedded"]) == (10, 10)
    assert "10 rows" not in run("library", "inspect", library).stderr
    write(library, 5, 9.0)
    assert "vector 0 was changed" in run("library", "verify", library, code=4).stderr
    assert "one" in run("library", "verify", library, "--engine", "ort", code=2).stderr
