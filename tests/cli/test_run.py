"""`stan-infer run`: rankings both ways, parts of videos, CSV, templates, an interrupt."""

import csv
import io
import sys

import numpy as np
import pytest

import stan_infer as si
from stan_infer.library import embed
from stan_infer.system.csv_file import unguarded
from stan_infer.text.templates import template_sets
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Window, Windows, plan_windows, read_windows
from tests.conftest import write_video
from tests.video.test_hdr import TRANSFERS, stored

TEXTS = ("--text", "a dog runs", "--text", "a red square", "--text", "nothing")


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """30 s, of which `--windows 5` makes six parts."""
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    write_video(path, seed=7, frames=300, size=64)
    return path


def rows_of(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_by_text_ranks_clips_and_by_video_texts(cli, checkpoint, videos, tmp_path):
    by_video = cli("run", checkpoint, videos, *TEXTS, "--json").records
    scores = {(r["video"], s["text"]): s["score"] for r in by_video for s in r["scores"]}
    out = tmp_path / "out.csv"
    more = ("--by", "text", "--top", "2", "--csv", out)
    records = cli("run", checkpoint, videos, *TEXTS, *more, "--json").records
    assert [r["text"] for r in records] == ["a dog runs", "a red square", "nothing"]
    for record in records:
        assert (record["schema"], record["clips"]) == ("stan-infer/run-by-text/1", 3)
        own = sorted((s for (_, text), s in scores.items() if text == record["text"]), reverse=True)
        assert [r["score"] for r in record["ranking"]] == own[:2]
        assert [scores[r["video"], record["text"]] for r in record["ranking"]] == own[:2]
    rows = rows_of(out)
    flat = [(r["text"], x["video"], x["rank"]) for r in records for x in r["ranking"]]
    assert [(r["text"], r["video"], int(r["rank"])) for r in rows] == flat
    assert [float(r["score"]) for r in rows] == [x["score"] for r in records for x in r["ranking"]]
    assert rows[0]["start_s"] == ""
    table = cli("run", checkpoint, videos, *TEXTS, *more).out.splitlines()
    assert table[0].split() == ["text", "rank", "video", "score"] and len(table) == 7


def test_top_holds_for_json_and_one_text_has_no_probability(cli, checkpoint, videos, tmp_path):
    clip = videos / "clip0.mp4"
    for top, count in ((1, 1), (0, 3), (9, 3)):
        (record,) = cli("run", checkpoint, clip, *TEXTS, "--top", top, "--json").records
        assert len(record["scores"]) == count and record["texts"] == 3
        # The probability is over all texts, whatever is shown.
        assert (sum(s["probability"] for s in record["scores"]) > 0.999999) == (count == 3)
    out = tmp_path / "one.csv"
    one = cli("run", checkpoint, clip, "--text", "a dog", "--csv", out)
    assert one.out.splitlines()[0].split() == ["video", "text", "score"]
    (row,) = rows_of(out)
    assert row["probability"] == "" and row["rank"] == "1" and "probability" not in one.out
    (record,) = cli("run", checkpoint, clip, "--text", "a dog", "--json").records
    assert record["scores"][0]["probability"] is None
    assert float(row["score"]) == record["scores"][0]["score"]


@pytest.mark.parametrize("by", ["video", "text"])
def test_windows_find_the_moment(cli, checkpoint, long, videos, tmp_path, by):
    out = tmp_path / "w.csv"
    more = ("--windows", "5", "--by", by, "--top", "0", "--csv", out, "--json")
    records = cli("run", checkpoint, long, videos, *TEXTS, *more, "--workers", 2).records
    rows = rows_of(out)
    assert len(rows) == 3 * (6 + 3)  # three short clips have one part each
    session = si.open_session(checkpoint)
    plan = plan_windows(long, Windows(seconds=5))
    assert [w[:2] for w in plan.windows] == [(5 * i, 5 * i + 5) for i in range(6)]
    clips = read_windows(long, ClipSpec.of(session.config), 300, plan.windows)
    wanted = np.concatenate(  # [Q, 6], one clip at a time as the command
        [np.asarray(session.score(list(TEXTS[1::2]), c.pixels[None])) for c in clips], axis=1
    )
    own = [r for r in rows if r["video"] == str(long)]
    for i, text in enumerate(TEXTS[1::2]):
        got = {float(r["start_s"]): float(r["score"]) for r in own if r["text"] == text}
        assert [got[5.0 * k] for k in range(6)] == wanted[i].tolist()
    if by == "text":
        ranking = records[0]["ranking"]
        assert len(records) == 3 and len(ranking) == 9 and {"start_s", "end_s"} <= ranking[0].keys()
    else:
        assert [r["start_s"] for r in records[:6]] == [0, 5, 10, 15, 20, 25]


def test_windows_on_a_grid_say_so(cli, checkpoint, artefact, long, videos):
    more = ("--windows", "5:2.5:grid", "--frames", 4, "--json", "--workers", 1)
    records = cli("run", checkpoint, long, videos / "clip0.mp4", *TEXTS, *more).records
    assert [r["start_s"] for r in records] == [2.5 * i for i in range(11)] + [0]
    assert [r["sampling"] for r in records] == ["grid"] * 11 + ["clip"]
    # 5 s / 4 frames are 12.5 frames: the middles of the steps are at 6.25, 18.75 and so on.
    assert records[0]["frame_indices"] == [6, 18, 31, 43]
    with si.open_session(checkpoint) as session:
        alone = [Window(0, 1, number, 1) for number in records[3]["frame_indices"]]
        frames = read_windows(long, ClipSpec.of(session.config, frames=1), 300, alone)
        pixels = np.concatenate([f.pixels for f in frames])
        wanted = np.asarray(session.score(list(TEXTS[1::2]), pixels[None]))[:, 0]
    got = {s["text"]: s["score"] for s in records[3]["scores"]}
    np.testing.assert_allclose([got[t] for t in TEXTS[1::2]], wanted, atol=1e-6)
    by = (*more, "--by", "text", "--top", 0)
    for record in cli("run", checkpoint, long, *TEXTS, *by).records:
        assert {r["sampling"] for r in record["ranking"]} == {"grid"}
    (record,) = cli("run", checkpoint, videos / "clip0.mp4", *TEXTS, "--json").records
    assert record["sampling"] == "clip"
    given = ("run", artefact, long, *TEXTS, "--windows", "5:2.5:grid", "--frames", 4)
    cli(*given, code=2, says="has no trunk.onnx, which a stream needs: stan-infer export CKPT -o ")
    off = ("--windows", "5:2:grid", "--frames", 4)
    cli("run", checkpoint, long, *TEXTS, *off, code=2, says="2 s are 1.6 of them: give")


def test_a_moment_is_shown_once_for_each_text(cli, checkpoint, long, videos, tmp_path):
    """Parts of 10 s, one every 5 s: 0, 5, 10, 15 and 20; of neighbours only the better one."""
    more = ("run", checkpoint, long, videos, *TEXTS, "--windows", "10:5", "--by", "text", "--json")
    every = cli(*more, "--top", 0).records
    assert [len(r["ranking"]) for r in every] == [5 + 3] * 3
    out = tmp_path / "moments.csv"
    distinct = cli(*more, "--csv", out).records
    assert cli(*more, "--top", 8, "--overlapping").records == every
    for got, full in zip(distinct, every, strict=True):
        wanted, starts = [], []
        for row in full["ranking"]:
            if row["video"] != str(long):
                wanted.append(row)
            elif all(abs(row["start_s"] - start) > 5 for start in starts):
                wanted.append(row)
                starts.append(row["start_s"])
        assert 2 <= len(starts) <= 3 and got["clips"] == 8
        assert got["ranking"] == [row | {"rank": i} for i, row in enumerate(wanted[:5], 1)]
    assert [(r["text"], float(r["score"])) for r in rows_of(out)] == [
        (record["text"], row["score"]) for record in distinct for row in record["ranking"]
    ]


def test_a_stretch_and_the_note_on_thin_sampling(cli, checkpoint, long):
    (record,) = cli("run", checkpoint, long, *TEXTS, "--start", 10, "--end", 20, "--json").records
    assert (record["start_s"], record["end_s"]) == (10, 20)
    assert 100 <= min(record["frame_indices"]) and max(record["frame_indices"]) < 200
    assert record["total_frames"] == 300
    thin = ("--frames", 2)  # 30 s: one frame in 15 s
    done = cli("run", checkpoint, long, long, *TEXTS, *thin)
    assert done.err.count("2 frames of 30 s are looked at, one every 15.0 s") == 1
    assert "looked at" not in cli("run", checkpoint, long, *TEXTS, *thin, "--windows", 5).err


def test_templates_are_averaged(cli, checkpoint, videos, tmp_path):
    clip = videos / "clip0.mp4"
    more = ("--template", "kinetics-16", "--template", "a clip of {}")
    (record,) = cli("run", checkpoint, clip, *TEXTS, *more, "--json").records
    session = si.open_session(checkpoint)
    sentences = (*template_sets()["kinetics-16"], "a clip of {}")
    video = session.embed_video(session.read_clip(clip)[None])[0].astype(np.float64)
    for found in record["scores"]:
        filled = [s.replace("{}", found["text"]) for s in sentences]
        rows = session.embed_text(filled).astype(np.float64)
        mean = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(0)
        cosine = mean @ video / np.linalg.norm(mean) / np.linalg.norm(video)
        assert found["score"] == pytest.approx(cosine, abs=1e-6)
    mug = ("--set", "head=mug")
    cli("run", checkpoint, clip, *TEXTS, *more, *mug, code=2, says="cannot be averaged")
    one = cli("run", checkpoint, clip, *TEXTS, *mug, "--template", "a clip of {}", "--json")
    plain = ("--text", "a clip of nothing", *mug, "--json")
    (wanted,) = cli("run", checkpoint, clip, *plain).records[0]["scores"]
    got = {s["text"]: s["score"] for s in one.records[0]["scores"]}
    assert got["nothing"] == pytest.approx(wanted["score"], abs=1e-6)


@pytest.mark.parametrize("by", ["video", "text"])
def test_an_interrupt_leaves_what_was_done(cli, checkpoint, videos, tmp_path, monkeypatch, by):
    real = embed.embed_videos

    def interrupted(*args, **more):
        readings = real(*args, **more)
        yield next(readings)
        readings.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(embed, "embed_videos", interrupted)
    out = tmp_path / "part.csv"
    more = ("--by", by, "--csv", out)
    done = cli("run", checkpoint, videos, *TEXTS, *more, code=130, says="results of 1 clips")
    assert done.out.count("clip0.mp4") == 3 == len(rows_of(out))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--by", "clip"], "'clip' is unknown"),
        (["--by", "text", "--overlapping"], "parts that are ranked: add --by text --windows 10"),
        (["--windows", "1", "--overlapping"], "parts that are ranked: add --by text"),
        (["--windows", "ten"], "SECONDS:STRIDE"),
        (["--windows", "5:0"], "stride of windows is 0"),
        (["--start", "100"], "it lasts 2.000 s"),
        (["--template", "kinetics16"], "did you mean 'kinetics-16'"),
        (["--csv", "CLIP"], "clip0.mp4"),
        (["--csv", "TEXTS"], "texts.txt"),
        (["--texts", "TEXTS"], "give either"),
    ],
)
def test_bad_options(cli, checkpoint, videos, tmp_path, more, says):
    texts = tmp_path / "texts.txt"
    texts.write_text("a\n")
    places = {"CLIP": videos / "clip0.mp4", "TEXTS": texts}
    words = [places.get(w, w) for w in more]
    cli("run", checkpoint, videos, *TEXTS, *words, code=2, says=says)
    assert texts.read_text() == "a\n"


def test_rows_appear_before_the_last_video_is_read(cli, checkpoint, videos, monkeypatch, capsys):
    real = embed.embed_videos
    shown = []

    def watched(*args, **more):
        for reading in real(*args, **more):
            sys.stdout.flush()
            shown.append(capsys.readouterr().out)
            yield reading

    monkeypatch.setattr(embed, "embed_videos", watched)
    cli("run", checkpoint, videos, *TEXTS)
    assert "clip0.mp4" in shown[1] and "clip1.mp4" in shown[2]


def test_texts_in_the_csv_are_no_formulas(cli, checkpoint, videos, tmp_path):
    out, texts = tmp_path / "rows.csv", ["=1+1", "a, b", "-5", "'=x"]
    words = [w for text in texts for w in ("--text", text)]
    cli("run", checkpoint, videos / "clip0.mp4", *words, "--csv", out)
    found = {row["text"] for row in rows_of(out)}
    assert found == {"'=1+1", "a, b", "-5", "''=x"}
    assert {unguarded(text) for text in found} == set(texts)


def test_exported_classes_are_those_averages(cli, checkpoint, videos, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("runs\nis red\nnothing\n")
    out, clip = tmp_path / "out", videos / "clip0.mp4"
    templates = ("--template", "kinetics-16", "--template", "a clip of {}")
    given = ("--labels", labels, *templates)
    cli("export", checkpoint, "-o", out, "--head", "classify", *given, "--threads", 1)
    (record,) = cli("run", checkpoint, clip, *given, "--json").records
    session = si.open_session(out)
    scores = session._opened["video"].run({"video": session.read_clip(clip)[None]}, ["scores"])
    wanted = {s["text"]: s["score"] for s in record["scores"]}
    names = labels.read_text().splitlines()
    assert scores["scores"][0] == pytest.approx([wanted[n] for n in names], abs=1e-5)
    found = cli("verify", checkpoint, out, "--json", "--frames", "8", "--threads", 1).records[0]
    (row,) = [r for r in found["stages"] if r["stage"] == "labels"]
    assert row["pass"] and row["max_rel"] < 1e-4
    # A template more is another model.
    import json

    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["labels"]["templates"]) == 17 and "template" not in manifest["labels"]
    manifest["labels"]["templates"][3] = "another {}"
    (out / "manifest.json").write_text(json.dumps(manifest))
    found = cli("verify", checkpoint, out, "--json", "--frames", "8", code=4).records[0]
    assert "labels" in [r["stage"] for r in found["stages"] if r["pass"] is False]
    mug = ("--set", "head=mug", *given)
    cli("export", checkpoint, "-o", tmp_path / "mug", *mug, code=2, says="cannot be averaged")


def test_the_transfer_of_hdr_is_named(cli, checkpoint, tmp_path):
    videos = [stored(tmp_path / f"{n}.mkv", t) for n, t in enumerate(TRANSFERS)]
    done = cli("run", checkpoint, *videos, "--text", "a", "--text", "b", "--json")
    assert [r["hdr"] for r in done.records] == [*TRANSFERS.values()]
    notes = [line for line in done.err.splitlines() if "is HDR" in line]
    assert [("(PQ)" in n, "(HLG)" in n) for n in notes] == [(True, False), (False, True)]
