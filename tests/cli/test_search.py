"""`stan-infer search`: what it prints and writes, whose model it takes, what it refuses."""

import json
import re
import shutil
from pathlib import Path

import pytest

from stan_infer.errors import InputError
from stan_infer.library.embed_library import embed_library
from stan_infer.library.query import weighted
from tests.conftest import ROOT

MOTION = ROOT / "examples" / "motion"
TEXT = "a shape moves left"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The demo's model and clips, a library of them, and one of their moments."""
    place = tmp_path_factory.mktemp("search")
    shutil.copy(MOTION / "motion.safetensors", place)
    shutil.copytree(MOTION / "clips", place / "clips")
    embed_library(place / "motion.safetensors", [place / "clips"], place / "library", workers=1)
    return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """The folder in which commands run: a copy of the library, the model and the clips linked."""
    shutil.copytree(made / "library", tmp_path / "library")
    for name in ("motion.safetensors", "clips"):
        (tmp_path / name).symlink_to(made / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_scores_are_those_of_run(cli, place):
    done = cli("search", "library", TEXT, "--json", "--top", 10)
    (record,) = done.records
    assert record["schema"] == "stan-infer/search/1" and record["rows"] == 10
    assert record["stack"] is None and not done.err and len(record["hits"]) == 10
    run = cli("run", "motion.safetensors", "clips", "--text", TEXT, "--by", "text", "--json")
    ranking = run.records[0]["ranking"]
    for hit, row in zip(record["hits"], ranking, strict=False):
        assert Path(hit["video"]).name == Path(row["video"]).name
        assert hit["score"] == pytest.approx(row["score"], abs=1e-5)


def test_the_table_and_the_files(cli, place):
    done = cli("search", "library", TEXT, "--top", 2, "--csv", "x.csv", "--html", "p.html")
    lines = done.out.splitlines()
    assert lines[0].split() == ["rank", "score", "video"] and len(lines) == 3
    rows = (place / "x.csv").read_text().splitlines()
    assert rows[0] == "rank,score,video,start_s,end_s" and len(rows) == 3
    assert rows[1].endswith(".mp4,,") and rows[1].startswith("1,0.")
    assert (place / "p.html").read_text().count("<img") == 2 * 8
    cli("search", "library", TEXT, "--csv", "x.csv", "--html", "p.html")
    assert "no row passes the filters" in cli("search", "library", TEXT, "--longer", 99).out


@pytest.mark.parametrize(
    "more, says",
    [
        (("gr\udcf6n",), "QUERY 'gr\\udcf6n' is no UTF-8 text"),
        ((TEXT, "--text", "\udcff"), "--text '\\udcff' is no UTF-8 text"),
        ((TEXT, "--not", "\udcff"), "--not '\\udcff' is no UTF-8 text"),
        ((TEXT, "--csv", "x", "--html", "./x"), "x is given as --csv and as --html"),
        ((TEXT, "--path", "x" * 5000), "a pattern has at most 4096"),
    ],
)
def test_bad_input(cli, place, more, says):
    cli("search", "library", *more, code=2, says=says)
    assert not (place / "x").exists()


def test_texts_come_from_everywhere_and_are_combined(cli, place):
    (place / "texts.txt").write_text("a shape grows\n")
    words = ["search", "library", f"{TEXT}::2", "a bar", "--text", "a cross", "--texts"]
    words += ["texts.txt", "--not", "a square::0.5", "--like", "clips/green_bar_grows.mp4::0.3"]
    words += ["--like-frame", "clips/green_bar_grows.mp4@0.5", "--json"]
    (record,) = cli(*words).records
    assert [(t["kind"], t["value"], t["weight"]) for t in record["asked"]] == [
        ("text", TEXT, 2),
        ("text", "a bar", 1),
        ("text", "a cross", 1),
        ("text", "a shape grows", 1),
        ("without", "a square", 0.5),
        ("like", "clips/green_bar_grows.mp4", 0.3),
        ("like_frame", "clips/green_bar_grows.mp4@0.5", 1),
    ]
    assert all(len(hit["cosines"]) == 7 for hit in record["hits"])
    by_name = {Path(h["video"]).name: h for h in record["hits"]}
    assert by_name["green_bar_grows.mp4"]["cosines"][5] == pytest.approx(1, abs=1e-5)


def test_weights_stand_behind_two_colons():
    given = ["a dog", "at 12:30", "a dog::0.7", "C++ std::vector::1", "x::2"]
    values = [("a dog", 1), ("at 12:30", 1), ("a dog", 0.7), ("C++ std::vector", 1), ("x", 2)]
    assert weighted("--text", given) == values
    for wrong in (
        "std::vector",
        "a dog::nan",
        "a dog::-1",
        "a dog::0",
        "a dog::",
        "x:: 2",
        "x::1_0",
    ):
        with pytest.raises(InputError, match=f"^--not '{wrong}': behind :: stands a weight above"):
            weighted("--not", [wrong])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["library"], "nothing to search for"),
        (["library", " "], "is blank"),
        (["library", TEXT, "--text", ""], "--text is empty"),
        (["library", TEXT, "--top", 0], "--top is '0'"),
        (["library", f"{TEXT}::nan"], "behind :: stands a weight"),
        (["library", TEXT, "--not", "x::y"], "behind :: stands a weight"),
        (["library", TEXT, "--since", "soon"], "'soon' is no date"),
        (["clips", TEXT], "clips is not a library"),
        (["absent", TEXT], "absent is not a library"),
        (["library", TEXT, "--html", "library/p.html"], "which is also read"),
        (["library", TEXT, "--csv", "library/p.csv"], "which is also read"),
        (["library", TEXT, "--csv", "mine.csv"], "not written by stan-infer search"),
        (["library", TEXT, "--html", "mine.csv"], "not written by stan-infer search --html"),
        (["library", TEXT, "--html", "p.html", "--top", 201], "at most 200 rows"),
        (["library", TEXT, "--html", "clips/cyan_bar_blinks.mp4"], "not written by"),
        (["library", TEXT, "--model", "absent"], "absent"),
        (["library", TEXT, "--like", "absent.mp4"], "absent.mp4"),
        (["library", TEXT, "--like-frame", "mine.csv"], "it is not a picture that is read"),
    ],
)
def test_bad_input_is_one_line_and_leaves_all(cli, place, words, says):
    (place / "mine.csv").write_text("mine\n")
    before = sorted(p.name for p in place.iterdir())
    done = cli("search", *words, code=2)
    error = [line for line in done.err.splitlines() if not line.startswith(("Usage", "Try"))]
    assert re.search(says, done.err) and len([e for e in error if e.strip()]) == 1, done.err
    assert sorted(p.name for p in place.iterdir()) == before and not done.out
    assert (place / "mine.csv").read_text() == "mine\n"


def test_a_model_is_found_by_its_name_and_hash_only(cli, place, made, tmp_path):
    (place / "motion.safetensors").unlink()
    cli("search", "library", TEXT, code=2, says="made by motion.safetensors, which is neither here")
    other = bytearray((made / "motion.safetensors").read_bytes())
    other[-1] ^= 1
    (place / "motion.safetensors").write_bytes(other)
    cli("search", "library", TEXT, code=2, says="is not the motion.safetensors that made library")
    (place / "elsewhere").mkdir()
    shutil.move(place / "library", place / "elsewhere" / "library")
    shutil.copy(made / "motion.safetensors", place / "elsewhere")  # beside the library
    found = cli("search", "elsewhere/library", TEXT).out
    renamed = place / "renamed.safetensors"
    shutil.copy(made / "motion.safetensors", renamed)
    done = cli("search", "elsewhere/library", TEXT, "--model", renamed)
    assert done.out == found and not done.err


def test_another_engine_is_said_and_another_model_refused(cli, place, made, checkpoint):
    wanted = cli("search", "library", TEXT, "--json").records[0]
    folder = place / "folder"
    cli("export", "motion.safetensors", "-o", folder)
    done = cli("search", "library", TEXT, "--model", folder, "--json")
    assert "note: the library was made by engine eager in fp32 on cpu; this is ort" in done.err
    record = done.records[0]
    assert record["session"]["engine"] == "ort"
    assert [h["video"] for h in record["hits"]] == [h["video"] for h in wanted["hits"]]
    for got, right in zip(record["hits"], wanted["hits"], strict=True):
        assert got["score"] == pytest.approx(right["score"], abs=1e-5)
    like = ["--like", "clips/green_bar_grows.mp4", "--json"]
    done = cli("search", "library", "--model", folder, *like)
    assert done.records[0]["stack"]["cosine"] > 0.9999 and "warning: library" in done.err
    cli("search", "library", TEXT, "--model", checkpoint, code=4, says="made by another stack")
    words = ["--set", "frames=4", "--like", "clips/green_bar_grows.mp4"]
    done = cli("search", "library", *words, "--json")
    assert "not known whether this model made library" in done.err, "another config"


def test_results_are_json_that_names_no_float_as_text(cli, place):
    text = cli("search", "library", TEXT, "--top", 1, "--json").out
    hit = json.loads(text)["hits"][0]
    assert [*hit] == ["rank", "score", "video", "start_s", "end_s", "copies", "row", "cosines"]
    assert hit["start_s"] is None and isinstance(hit["score"], float)
