"""stan_classify with many videos, folders and files of texts: as `stan-infer run`."""

import json
import shutil

import pytest

from tests.cpp.conftest import MOTION

CLIPS = MOTION / "clips"
LABELS = MOTION / "labels.txt"


@pytest.fixture
def videos(tmp_path):
    """A folder with folders, links, hidden and other files, and damaged videos."""
    folder = tmp_path / "videos"
    (folder / "b" / ".hidden").mkdir(parents=True)
    names = sorted(CLIPS.glob("*.mp4"))
    places = ("b/2.mp4", "a.MP4", "b/.hidden/x.mp4", ".y.mp4", "c.mkv")
    for place, clip in zip(places, names[:5], strict=True):
        shutil.copy(clip, folder / place)
    (folder / "b" / "1.mp4").write_bytes(names[0].read_bytes()[:3000])
    (folder / "d.mp4").write_bytes(b"")
    (folder / "notes.txt").write_text("x")
    (folder / "b" / "up").symlink_to(folder)
    (folder / "c").symlink_to(folder / "b")
    (folder / "e.avi").symlink_to("/nowhere")
    (folder / "z").mkdir()
    shutil.copy(names[5], folder / "z")
    (folder / "b" / "beside").symlink_to(folder / "z")  # seen in its own place
    return folder


def in_python(cli, *arguments):
    done = cli("run", *arguments, "--json", code=(0, 2))
    return done.code, [json.loads(line) for line in done.out.splitlines()]


def in_cpp(program, *arguments):
    done = program.run(*arguments, "--json")
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def same(mine, wanted):
    """Keys, their order, and all values but those of numbers and the two readers' own."""
    assert [*mine] == [*wanted]
    if "error" in wanted:
        assert mine["video"] == wanted["video"] and mine["schema"] == wanted["schema"]
        return
    assert [*mine["session"]] == [*wanted["session"]] and mine["session"] == wanted["session"]
    assert (mine["decoder"], wanted["decoder"]) == ("ffmpeg", "pyav")
    for key in ("schema", "video", "total_frames", "frame_indices", "hdr", "texts"):
        assert mine[key] == wanted[key], key
    for a, b in zip(mine["scores"], wanted["scores"], strict=True):
        assert [*a] == [*b]
        assert (a["rank"], a["text"], a["cut"]) == (b["rank"], b["text"], b["cut"])
        for key in ("score", "probability"):
            assert a[key] == pytest.approx(b[key], abs=1e-5), key


@pytest.mark.parametrize("batch", [1, 3])
def test_lines_are_those_of_stan_infer_run(cli, plain, exported, videos, batch):
    options = ("--labels", LABELS, "--top", "3", "--batch", str(batch), "--threads", "1")
    code, wanted = in_python(cli, exported, videos, CLIPS, *options)
    assert code == 2 and sum("error" in record for record in wanted) == 3
    ended, found = in_cpp(plain, exported, videos, CLIPS, *options)
    assert ended == code
    for mine, record in zip(found, wanted, strict=True):
        same(mine, record)


def test_one_text_and_a_text_that_is_cut(cli, plain, exported):
    clip = CLIPS / "red_cross_moves_left.mp4"
    for texts in (["a shape"], ["a shape", "very " * 40 + "long"]):
        options = [x for text in texts for x in ("--text", text)]
        for mine, wanted in zip(
            in_cpp(plain, exported, clip, *options, "--threads", "1")[1],
            in_python(cli, exported, clip, *options, "--threads", "1")[1],
            strict=True,
        ):
            same(mine, wanted)


def test_files_of_texts_and_of_videos(plain, exported, tmp_path):
    clips = sorted(CLIPS.glob("*.mp4"))[:3]
    (tmp_path / "list").write_text("".join(f"{clip}\n\n" for clip in clips))
    (tmp_path / "texts").write_bytes(b"\xef\xbb\xbfa shape grows\r\n  a shape blinks \n\n")
    code, mine = in_cpp(plain, exported, "--list", tmp_path / "list", "--texts", tmp_path / "texts")
    assert code == 0 and [r["video"] for r in mine] == [*map(str, clips)]
    options = ("--text", "a shape grows", "--text", "a shape blinks")
    assert mine == in_cpp(plain, exported, *clips, *options)[1]
    embeds = in_cpp(plain, exported, *clips, "--embed", "--batch", "2")[1]
    one = in_cpp(plain, exported, clips[2], "--embed")[1]
    assert embeds[2]["embedding"] == pytest.approx(one[0]["embedding"], rel=1e-4, abs=1e-5)


FILES = {
    "numbers before": (b"0 walk\n1 run\n", "numbers stand beside"),
    "numbers behind": (b"walk 0\nrun 1\n", "numbers stand beside"),
    "a table": (b"id,name\n0,walk\n", "the header of a table"),
    "a header": (b"Name\nwalk\n", "the header of a table"),
    "cells": (b"walk\t1\nrun\t2\n", "a row of a table"),
    "an empty cell": (b"walk;\nrun;\n", "a row of a table"),
    "JSON": (b'["walk", "run"]', "as JSON"),
    "a comment": (b"# classes\nwalk\n", "comment"),
    "twice": (b"walk\nwalk\n", "twice"),
    "nothing": (b" \n\n", "0 lines"),
    "UTF-16": ("walk\n".encode("utf-16"), "zero bytes"),
    "Latin-1": (b"caf\xe9\n", "not UTF-8"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("build", ["plain", "sanitized"])
def test_label_files_that_are_refused(request, exported, tmp_path, name, build):
    content, words = FILES[name]
    (tmp_path / "labels").write_bytes(content)
    done = request.getfixturevalue(build).run(
        exported, CLIPS / "green_bar_grows.mp4", "--labels", tmp_path / "labels"
    )
    assert done.returncode == 2 and words in done.stderr and done.stdout == "", done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["/nowhere.mp4"], "no such video file or folder: /nowhere.mp4"),
        ([MOTION / "labels.txt", "/nowhere"], "no such video file or folder: /nowhere"),
        (["EMPTY"], "holds no video"),
        (["FOLDER"], "it is an exported folder; give one of videos"),
        ([CLIPS, "--text", "a", "--labels", LABELS], "give either --text"),
        ([CLIPS, "--text", "a", "--text", "a"], "is there twice"),
        ([CLIPS, "--text", ""], "blank"),
        ([CLIPS, "--labels", "/nowhere"], "labels /nowhere is no file"),
        ([CLIPS, "--texts", "EMPTY"], "is no file"),
        ([CLIPS, "--list", "/nowhere"], "list /nowhere is no file"),
        ([CLIPS, "--batch", "0"], "batch is 0"),
        ([CLIPS, "--batch", "65"], "--batch is '65'"),
        ([CLIPS, "--timeout", "0"], "--timeout is '0'"),
        ([CLIPS, "--timeout", "nan"], "--timeout is 'nan'"),
        ([CLIPS, "--embed", "--labels", LABELS], "--embed takes no texts"),
        (["--self-test", "--labels", LABELS], "--self-test takes DIR"),
    ],
    ids=str,
)
def test_what_is_refused_before_the_work(plain, small, tmp_path, options, words):
    places = {"EMPTY": tmp_path, "FOLDER": small}
    done = plain.run(small, *(places.get(x, x) for x in options))
    assert done.returncode == 2 and words in done.stderr and done.stdout == "", done.stderr


def test_a_video_that_takes_too_long_is_left_out(plain, small):
    """Of the least time allowed some videos are read, or none; the line says which."""
    done = plain.run(small, CLIPS, "--timeout", "0.001", "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == len(list(CLIPS.glob("*.mp4")))
    late = [r for r in records if "error" in r]
    assert all(r["error"].endswith("was not read in time (--timeout)") for r in late)
    assert done.returncode == (2 if late else 0)
