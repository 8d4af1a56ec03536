"""Libraries that a stranger made: refused in one line, or shown without harm."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import stan_infer as si
from stan_infer.library.codes import CODES
from stan_infer.library.database import PASSPORT, ROWS, SCHEMA, VECTORS
from stan_infer.library.embed_library import embed_library
from stan_infer.library.inspect_library import inspect_library
from stan_infer.library.library import open_library
from stan_infer.library.verify_library import verify_library
from tests.conftest import ROOT, edit_json, python
from tests.library.fake_stack import FakeSession
from tests.video.broken_videos import make_clip

MANY = 3
FIRST = "WHERE CAST(path AS TEXT) LIKE '%0.mp4'"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "videos").mkdir()
    for i in range(MANY):
        make_clip(folder / "videos" / f"{i}.mp4", frames=8 + i, size=(32, 48))
    embed_library(FakeSession(), [folder / "videos"], folder / "library", workers=1)
    return folder


@pytest.fixture
def library(made, tmp_path):
    shutil.copytree(made / "library", tmp_path / "library")
    return tmp_path / "library"


def sql(*statements):
    def change(library):
        db = sqlite3.connect(library / ROWS, isolation_level=None)
        for statement in statements:
            db.execute(statement)
        db.close()

    return change


def schema(old, new):
    """Change the text of the schema itself, as a program that writes the file could."""
    assert any(old in statement for statement in SCHEMA), old
    return sql(
        "PRAGMA writable_schema = ON",
        f"UPDATE sqlite_master SET sql = replace(sql, '{old}', '{new}') WHERE sql LIKE '%{old}%'",
    )


def passport(change):
    return lambda library: edit_json(library / PASSPORT, change)


def of_text(old, new):
    def change(library):
        path = library / PASSPORT
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


def first_number(text):
    """Put something in place of the first number of a canary's vector."""

    def change(library):
        path = library / PASSPORT
        head, _, tail = path.read_text().partition('"vector": [')
        path.write_text(f'{head}"vector": [{text}{tail[tail.index(",") :]}')

    return change


def linked(name, target):
    def change(library):
        (library / name).unlink()
        (library / name).symlink_to(target)

    return change


def extra_file(library):
    db = sqlite3.connect(library / ROWS, isolation_level=None)
    db.execute("PRAGMA page_size = 65536")
    db.execute("CREATE TABLE more (x)")
    db.close()


# Nothing of these can be opened.
REFUSED = {
    "a generated column": schema(
        "frames INTEGER,", "frames INTEGER, more AS (zeroblob(1000000000)),"
    ),
    "a default that is a query": schema("crc INTEGER NOT NULL", "crc INTEGER DEFAULT (random())"),
    "a check that runs for ever": schema("frames INTEGER", "frames INTEGER CHECK (frames > 1)"),
    "an index with an expression": sql("CREATE INDEX evil ON files (hex(zeroblob(size)))"),
    "a table of a module": sql("CREATE VIRTUAL TABLE evil USING fts5(x)"),
    "one table more": extra_file,
    "statistics that mislead": sql("ANALYZE", "UPDATE sqlite_stat1 SET stat = '1 1'"),
    "tables named as ours in other letters": schema("CREATE TABLE rows", "CREATE TABLE ROWS"),
    "vectors from a device": linked(VECTORS, "/dev/zero"),
    "8 bits from a device": linked(CODES, "/dev/zero"),
    "a database from a device": linked(ROWS, "/dev/zero"),
    "a passport from a device": linked(PASSPORT, "/dev/zero"),
    "a passport of a gigabyte": lambda at: os.truncate(at / PASSPORT, 2**30),
    "a count beyond 64 bits": sql("UPDATE state SET vectors = 9e18"),
    "a negative count": sql("UPDATE state SET vectors = -1"),
    "vectors cut by a byte": lambda at: os.truncate(at / VECTORS, MANY * 24 * 4 - 1),
    "a canary that is NaN": first_number("NaN"),
    "a canary that is infinite": first_number("1e999"),
    "a canary that is null": first_number("null"),
    "a width that is text": passport(lambda p: p.update(width="24")),
    "a width of another number": passport(lambda p: p.update(width=True)),
    "facts that are a list": passport(lambda p: p.update(facts=[])),
    "a key twice": of_text('"batch":', '"batch": 1, "batch":'),
    "a canary a thousand times": passport(lambda p: p.update(canaries=p["canaries"] * 999)),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_in_one_line(made, library, kind):
    REFUSED[kind](library)

    def embed(at):
        embed_library(FakeSession(), [made / "videos"], at, workers=1)

    for use in (open_library, inspect_library, embed):
        with pytest.raises((si.InputError, si.CheckError)) as caught:
            use(library)
        assert "\n" not in str(caught.value) and str(caught.value).isprintable()


def extra_vectors(library):
    with (library / VECTORS).open("ab") as file:
        file.write(np.full(24 * 7, np.nan, np.float32).tobytes())


# These can be opened: what is odd is shown, or found by `library verify`.
SHOWN = {
    "vectors without rows": extra_vectors,
    "a path with ..": sql(f"UPDATE files SET path = x'2f2e2e2f2e2e2f6574632f706173737764' {FIRST}"),
    "a path that is relative": sql(f"UPDATE files SET path = x'2e2e2f78' {FIRST}"),
    "a path that is text": sql(f"UPDATE files SET path = '/x' {FIRST}"),
    "a reason with script": sql(
        "UPDATE files SET sha256 = NULL, error = '<script>' || char(27) || '[31m' || char(10)"
        f" {FIRST}"
    ),
    "rows of one content": sql("UPDATE rows SET clip = 1"),
    "a hash of another length": sql("UPDATE clips SET sha256 = x'00' WHERE id = 1"),
    "bounds of its own": passport(lambda p: p.update(searched=-1, mixed=-1, bounds=[0, 0])),
    "facts that are deep": passport(lambda p: p["facts"].update(x=[[[[["\x1b[2J"]]]]])),
    "times without an end": sql("UPDATE rows SET start_s = 9e999, end_s = NULL WHERE id = 0"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SHOWN)
def test_it_is_shown_without_harm(library, kind):
    SHOWN[kind](library)
    try:
        found = open_library(library)
        rows = [*found.videos]
        assert len(rows) == len(found.ids) <= MANY
        json.dumps(found.to_dict())
        inspect_library(library)
        verify_library(library)
        with pytest.raises(si.CheckError, match="made by another stack"):
            found.compare(FakeSession(seed=1)).check(0.99, library, "searching")
    except si.CheckError as e:
        assert "damaged" in str(e) and str(e).isprintable()
    done = python("-m", "stan_infer", "library", "inspect", library, code=None, cwd=ROOT)
    assert done.returncode in (0, 2, 4), done.stderr
    assert "\x1b" not in done.stdout + done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file system")
@pytest.mark.parametrize("kib", [4, 40, 72, 88, 120, 160])
def test_a_file_system_that_is_full(made, tmp_path, kib):
    """A real one: the run says so in one line, and goes on when there is room."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mount is not allowed here")
    try:
        words = ("-m", "tests.library.fake_stack", place / "library", made / "videos")
        words = (*words, "--", "workers=1", "commit=1")
        done = python(*words, code=None, cwd=ROOT)
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr
        assert done.returncode == 0 or "No space left" in done.stderr, done.stderr
        assert done.returncode == 2 or kib > 100
        subprocess.run(["mount", "-o", "remount,size=4m", str(place)], check=True)
        python(*words, cwd=ROOT)
        open_library(place / "library").check()
        names = [Path(row[0]).name for row in open_library(place / "library").videos]
        assert names == [f"{i}.mp4" for i in range(MANY)]
        right = (made / "library" / VECTORS).read_bytes()
        assert (place / "library" / VECTORS).read_bytes() == right
    finally:
        subprocess.run(["umount", str(place)], check=True)
