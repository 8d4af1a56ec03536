"""stan-infer eval: figures equal a computation by hand, every engine, errors, resuming."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import stan_infer as si
from stan_infer.evaluation.metrics import class_figures, rank_figures, retrieval_ranks
from stan_infer.scores import cosine_scores
from stan_infer.system.csv_file import unguarded
from stan_infer.text.tokenizer import tokenize
from stan_infer.video.clip import read_clip_info
from stan_infer.video.spec import ClipSpec
from tests.benchmarking.test_page import fits, on_screen
from tests.conftest import python
from tests.examples.chromium import needs_browser
from tests.video import broken_videos as make

TEXTS = ["a red square", "a blue ring, moving left", "noise"]


@pytest.fixture(scope="module")
def retrieval_csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("annotations") / "pairs.csv"
    rows = [f'clip{i}.mp4,"{text}"\n' for i, text in enumerate(TEXTS)]
    path.write_text("video,text\n" + "".join(rows))
    return path


@pytest.fixture(scope="module")
def class_csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("annotations") / "classes.csv"
    path.write_text("video,label\nclip0,walk\nclip1,run\nclip2,walk\n")
    return path


def arguments(dataset, annotations, videos, *more):
    return ["--dataset", dataset, "--annotations", annotations, "--videos", videos, *more, "--json"]


def test_retrieval_equals_a_computation_by_hand(cli, checkpoint, videos, retrieval_csv):
    done = cli("eval", checkpoint, *arguments("retrieval", retrieval_csv, videos))
    (record,) = done.records
    session = si.open_session(checkpoint)
    clips = np.stack([session.read_clip(videos / f"clip{i}.mp4") for i in range(3)])
    scores = session.score(TEXTS, clips)
    for name, ranking in retrieval_ranks(scores, np.arange(3)).items():
        assert record["figures"][name] == pytest.approx(rank_figures(ranking))
        assert record["outcomes"][name] == ranking.ranks.tolist()
    protocol = record["protocol"]
    assert (protocol["frames"], protocol["text tokens"], protocol["ties"]) == (8, 32, "expected")
    assert (protocol["videos"], protocol["texts"], protocol["texts cut"]) == (3, 3, 0)
    assert record["session"]["engine"] == "eager"


def test_an_exported_folder_gives_the_same_figures(
    cli, checkpoint, artefact, videos, retrieval_csv
):
    given = arguments("retrieval", retrieval_csv, videos)
    own, got = (cli("eval", source, *given).records[0] for source in (checkpoint, artefact))
    assert got["figures"] == own["figures"]
    assert (own["session"]["engine"], got["session"]["engine"]) == ("eager", "ort")


def test_recognition_averages_the_probabilities_of_views(cli, checkpoint, videos, class_csv):
    more = arguments("recognition", class_csv, videos, "--views", "2x3", "--template", "to {}")
    (record,) = cli("eval", checkpoint, *more).records
    session = si.open_session(checkpoint)
    c = session.config
    text = session.embed_text(tokenize(["to run", "to walk"], c.context_length))
    scores = []
    for i in range(3):
        clip = read_clip_info(videos / f"clip{i}.mp4", ClipSpec.of(c, views=(2, 3)))
        assert clip.pixels.shape == (6, 8, 64, 64, 3)
        logits = 100 * cosine_scores(text, session.embed_video(clip.pixels)).T
        e = np.exp(logits.astype(np.float64))
        scores.append((e / e.sum(1, keepdims=True)).mean(0))
    found, _ = class_figures(np.array(scores), [1, 0, 1])
    assert record["figures"]["videos"] == pytest.approx(found)
    assert record["protocol"]["views"] == "2x3"


def test_out_holds_every_answer_and_the_record(cli, checkpoint, videos, class_csv, tmp_path):
    more = arguments("recognition", class_csv, videos, "-o", tmp_path / "new" / "out")
    (printed,) = cli("eval", checkpoint, *more).records
    out = tmp_path / "new" / "out"
    names = "classes.csv confusion.png confusion.svg index.html metrics.json ranks.png ranks.svg"
    names += " recognition.csv scores.npz"
    assert sorted(p.name for p in out.iterdir()) == names.split()
    assert json.loads((out / "metrics.json").read_text()) == printed
    with open(out / "recognition.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    with np.load(out / "scores.npz") as z:
        assert z["scores"].shape == (3, 2) and z["classes"].tolist() == ["run", "walk"]
        for i, row in enumerate(rows):
            order = np.argsort(-z["scores"][i])
            assert row["video"] == z["videos"][i] == f"clip{i}"
            assert row["label"] == z["classes"][z["right"][i]]
            assert [row["top 1"], row["top 2"]] == z["classes"][order].tolist()
            assert float(row["score 1"]) == pytest.approx(z["scores"][i].max(), rel=1e-6)
            assert float(row["rank"]) == 1 + order.tolist().index(z["right"][i])
    wrong = sum(row["top 1"] != row["label"] for row in rows)
    assert (out / "index.html").read_text().count("data:image/jpeg;base64,") == wrong > 0
    cli("eval", checkpoint, *more)  # over its own earlier result
    (out / "mine.txt").write_text("x")
    cli("eval", checkpoint, *more, code=2, says="it holds mine.txt, which is no part of")


def test_out_with_texts_categories_and_names_that_are_not_utf_8(cli, checkpoint, videos, tmp_path):
    folder, odd = tmp_path / "videos", os.fsdecode(b"caf\xe9")
    folder.mkdir()
    rows = []
    for i in range(3):
        (folder / f"{odd}{i}.mp4").write_bytes((videos / f"clip{i}.mp4").read_bytes())
        (folder / f"v{i}.mp4").symlink_to(f"{odd}{i}.mp4")
        rows.append({"video_id": f"v{i}", "caption": f"=<b>{i}"})
    table = tmp_path / "msrvtt.json"
    kinds = [{"video_id": f"v{i}", "category": i % 2 * 9} for i in range(3)]
    table.write_text(json.dumps({"videos": kinds, "sentences": rows}))
    out = tmp_path / odd
    more = arguments("msrvtt", table, folder, "--frames", 2, "-o", out, "--dual-softmax")
    (record,) = cli("eval", checkpoint, *more).records
    assert len(record["asked"]["text_to_video"]) == 3
    with open(out / "categories.csv", newline="") as f:
        found = {row["category"]: row["texts"] for row in csv.DictReader(f)}
    assert found == {"music": "2", "vehicles/autos": "1"}
    with open(out / "ranks.csv", newline="") as f:
        texts = [row["text"] for row in csv.DictReader(f)]
    assert texts == [f"'=<b>{i}" for i in range(3)]
    assert [unguarded(text) for text in texts] == [f"=<b>{i}" for i in range(3)]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<b>0" not in page and "=&lt;b&gt;" in page


@needs_browser
def test_the_page_fits_the_screen_of_a_phone(cli, checkpoint, videos, tmp_path):
    """With names that no line can be broken in, for there is no blank in them."""
    table, long, clips = tmp_path / "classes.csv", "x" * 180, tmp_path / "clips"
    clips.mkdir()
    for i in range(2):
        (clips / f"{long}{i}.mp4").write_bytes((videos / f"clip{i}.mp4").read_bytes())
    table.write_text(f"video,label,category\n{long}0,a{long},{long}\n{long}1,b{long},c\n")
    more = arguments("recognition", table, clips, "-o", tmp_path / "out")
    cli("eval", checkpoint, *more)
    seen = on_screen((tmp_path / "out" / "index.html").read_text(), tmp_path, 390)
    fits(seen)


def test_out_is_refused_before_the_work(
    cli, checkpoint, videos, retrieval_csv, tmp_path, monkeypatch
):
    def no_work(*given, **more):
        raise AssertionError("the work began")

    monkeypatch.setattr("stan_infer.evaluation.evaluate.evaluate", no_work)
    more = [*arguments("retrieval", retrieval_csv, videos), "-o"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    cli("eval", checkpoint, *more, tmp_path / "mine", code=2, says="it holds thesis.txt")
    cli("eval", checkpoint, *more, videos, code=2, says="it holds clip0.mp4")
    own = ("--cache", tmp_path / "o" / "cache")
    cli("eval", checkpoint, *more, tmp_path / "o", *own, code=2, says="the folder of --out")
    (tmp_path / "r.json").write_text("{}")
    other = ("--compare", tmp_path / "r.json")
    cli("eval", checkpoint, *more, tmp_path / "o", *other, code=2, says="no record of an eval")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = cli("eval", checkpoint, *more, tmp_path / "o", code=3)
    assert "pip install" in done.err and not (tmp_path / "o").exists()


def test_two_models_are_compared_on_the_same_texts(
    cli, checkpoint, artefact, videos, retrieval_csv, tmp_path
):
    more = arguments("retrieval", retrieval_csv, videos)
    cli("eval", checkpoint, *more, "-o", tmp_path / "a")
    (record,) = cli("eval", artefact, *more, "--compare", tmp_path / "a").records
    found = record["comparison"]
    assert found["shared"] == {"text_to_video": 3, "video_to_text": 3} and not found["differs"]
    assert found["differences"]["text_to_video"]["R@5"]["difference"] == 0
    done = cli("eval", artefact, *more[:-1], "--compare", tmp_path / "a" / "metrics.json")
    file = f"{found['sentence']}.".replace(str(tmp_path / "a"), str(tmp_path / "a/metrics.json"))
    assert done.out.splitlines()[-1] == file


def test_the_papers_views_are_taken_for_recognition_and_said(
    cli, checkpoint, videos, class_csv, tmp_path
):
    (tmp_path / "ssv2.csv").write_text(class_csv.read_text())
    more = arguments("ssv2", tmp_path / "ssv2.csv", videos)
    protocol = cli("eval", checkpoint, *more).records[0]["protocol"]
    assert (protocol["views"], protocol["views from"]) == ("1x3", "the paper")
    protocol = cli("eval", checkpoint, *more, "--views", "1x1").records[0]["protocol"]
    assert (protocol["views"], protocol["views from"]) == ("1x1", "--views")


def test_data_set_settings_are_used_and_said(cli, checkpoint, videos, tmp_path):
    path = tmp_path / "didemo.json"
    entries = [{"video": f"clip{i}.avi", "description": f"text {i % 2}"} for i in (0, 1, 1)]
    path.write_text(json.dumps(entries))
    (record,) = cli("eval", checkpoint, *arguments("didemo", path, videos)).records
    protocol = record["protocol"]
    assert (protocol["frames"], protocol["text tokens"], protocol["texts"]) == (64, 77, 2)
    assert protocol["resize, crop"] == "73, 64"  # 256 / 224 of the crop
    more = arguments("didemo", path, videos, "--frames", "4", "--text-length", "16")
    (record,) = cli("eval", checkpoint, *more).records
    assert (record["protocol"]["frames"], record["protocol"]["text tokens"]) == (4, 16)


def test_class_names_are_read_by_their_numbers(cli, checkpoint, videos, tmp_path):
    """The same figures whatever the form and the order of --labels."""
    numbers, labels = tmp_path / "val.txt", tmp_path / "labels"
    numbers.write_text("clip0.mp4 1\nclip1.mp4 0\nclip2.mp4 1\n")
    figures = []
    for text in ("run\nwalk_fast\n", "id,name\n1,walk fast\n0,run\n", '{"walk fast": 1, "run": 0}'):
        labels.write_text(text)
        more = ("--labels", labels, *(["--split-words"] if "_" in text else []))
        done = cli("eval", checkpoint, *arguments("recognition", numbers, videos, *more))
        figures.append(done.records[0]["figures"])
    assert figures[0] == figures[1] == figures[2]
    labels.write_text("run\n\nwalk\n")
    words = arguments("recognition", numbers, videos, "--labels", labels)
    cli("eval", checkpoint, *words, code=2, says="class number 1, but --labels has 2 names")


def test_a_split_is_not_named_by_guess_and_twins_are_told(cli, checkpoint, videos, tmp_path):
    pairs, subset = tmp_path / "pairs.csv", tmp_path / "list.txt"
    pairs.write_text("video,text\nclip0.mp4,a\nclip0,b\nclip1,c\nclip2,d\n")
    done = cli("eval", checkpoint, *arguments("msrvtt", pairs, videos))
    assert done.records[0]["protocol"]["split"] == "as in the file, 4 videos"
    assert "1 videos are there under two names" in done.err and "clip0.mp4 and clip0" in done.err
    subset.write_text("clip1\nclip2\nclip9\n")
    more = arguments("msrvtt", pairs, videos, "--subset", subset)
    done = cli("eval", checkpoint, *more)
    split = done.records[0]["protocol"]["split"]
    assert split == "as in the file, 2 videos, those of list.txt"
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "clip1.mp4").write_bytes((videos / "clip1.mp4").read_bytes())
    (tmp_path / "some" / "clip2.mp4").symlink_to("clip1.mp4")
    more = arguments("msrvtt", pairs, tmp_path / "some", "--allow-missing")
    assert "clip1 and clip2 are clip2.mp4" in cli("eval", checkpoint, *more).err
    (tmp_path / "some" / "clip2.mp4").unlink()
    (record,) = cli("eval", checkpoint, *more).records
    assert record["protocol"]["split"] == "as in the file, 4 videos, incomplete: 1 of 4"


def test_copies_of_a_video_are_told_beside_the_interval(cli, checkpoint, videos, tmp_path):
    """Captions that share a video are no copies of it."""
    (tmp_path / "v").mkdir()
    for name, clip in (("a", 0), ("b", 0), ("c", 0), ("d", 1)):
        (tmp_path / "v" / f"{name}.mp4").write_bytes((videos / f"clip{clip}.mp4").read_bytes())
    rows = "a,one\nb,two\nc,three\nd,four\nd,five\n"
    (tmp_path / "a.csv").write_text("video,text\n" + rows)
    given = arguments("retrieval", tmp_path / "a.csv", tmp_path / "v", "--out", tmp_path / "page")
    remark = "2 of 4 videos are copies of others: the interval takes them as independent"
    done = cli("eval", checkpoint, *given, says=remark)
    assert done.records[0]["protocol"]["copies"] == 2
    assert remark in (tmp_path / "page" / "index.html").read_text()
    assert f"{remark}." in cli("eval", checkpoint, *given[:-3]).out
    (tmp_path / "a.csv").write_text("video,text\na,one\nd,four\nd,five\n")
    done = cli("eval", checkpoint, *given)
    assert "copies" not in done.records[0]["protocol"] and "copies" not in done.err


def test_what_options_change_of_the_settings_is_said(cli, checkpoint, videos, class_csv):
    for more, changed in (
        ((), ""),
        (("--frames", 8), ""),
        (("--frames", 2, "--text-length", 16),
         "; --frames 2 in place of 8; --text-length 16 in place of 32"),
    ):  # fmt: skip
        done = cli("eval", checkpoint, *arguments("recognition", class_csv, videos, *more))
        found = done.records[0]["protocol"]["settings from"]
        assert found == f"the model's own config{changed}"


def test_a_table_with_intervals_and_the_protocol(cli, checkpoint, videos, retrieval_csv):
    more = arguments("retrieval", retrieval_csv, videos, "--dual-softmax")[:-1]
    done = cli("eval", checkpoint, *more)
    head = done.out.splitlines()[0].split()
    assert head == ["R@1", "R@5", "R@10", "MdR", "MnR"]
    assert "text to video" in done.out and " to 100.0)" in done.out
    assert "dual softmax" in done.out and "yes, temperature 0.01" in done.out


def test_a_broken_video_is_named_left_out_and_the_rest_counts(
    cli, checkpoint, videos, retrieval_csv, tmp_path
):
    folder = tmp_path / "videos"
    folder.mkdir()
    for i in range(2):
        (folder / f"clip{i}.mp4").write_bytes((videos / f"clip{i}.mp4").read_bytes())
    (folder / "clip2.mp4").write_text("no video")
    done = cli("eval", checkpoint, *arguments("retrieval", retrieval_csv, folder), code=2)
    (record,) = done.records
    assert [f["video"] for f in record["failures"]] == ["clip2.mp4"]
    assert "clip2.mp4" in done.err and "1 of 3 videos could not be read" in done.err
    assert (record["protocol"]["videos"], record["protocol"]["unreadable"]) == (2, 1)


def test_where_no_video_can_be_read_the_first_reasons_are_told(
    cli, checkpoint, retrieval_csv, tmp_path
):
    for i in range(3):
        (tmp_path / f"clip{i}.mp4").write_text("no video")
    more = arguments("retrieval", retrieval_csv, tmp_path)
    done = cli("eval", checkpoint, *more, code=2, says="none of the 3 videos could be read: ")
    assert "clip0.mp4" in done.err.splitlines()[-1]


def test_missing_videos_are_listed_or_left_out(cli, checkpoint, videos, retrieval_csv, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "clip1.mp4").write_bytes((videos / "clip1.mp4").read_bytes())
    done = cli("eval", checkpoint, *arguments("retrieval", retrieval_csv, folder), code=2)
    assert not done.out
    assert "2 of 3 videos" in done.err and "clip0.mp4, clip2.mp4" in done.err
    more = arguments("retrieval", retrieval_csv, folder, "--allow-missing")
    done = cli("eval", checkpoint, *more)
    assert done.records[0]["missing"] == ["clip0.mp4", "clip2.mp4"]
    assert done.records[0]["protocol"]["missing"] == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--views", "3"], "is not CLIPSxCROPS"),
        (["--views", "1x3"], "recognition only"),
        (["--ties", "author"], "did you mean 'authors'"),
        (["--dataset", "msvdd"], "did you mean 'msvd'"),
        (["--labels", "none.txt"], "no such file"),
        (["--subset", "none.txt"], "no such file"),
        (["--videos", "none"], "is not a folder"),
        (["--template", "no place"], "is neither a sentence with one {}"),
        (["--template", "a clip of {}"], "--template is of classes"),
        (["--truncation", "cut"], "truncation"),
        (["--text-length", "100"], "context_length is 100"),
        (["--engine", "trtt"], "unknown"),
    ],
)
def test_wrong_options_are_told(cli, checkpoint, videos, retrieval_csv, more, message):
    name, value = more
    given = {"--dataset": "retrieval", "--annotations": retrieval_csv, "--videos": videos}
    words = [word for pair in {**given, name: value}.items() for word in pair]
    done = cli("eval", checkpoint, *words, "--json", code=2)
    assert message in done.err
    assert not done.out


def test_the_cache_spares_videos_and_gives_the_same_figures(
    cli, checkpoint, videos, retrieval_csv, tmp_path, monkeypatch
):
    more = arguments("retrieval", retrieval_csv, videos, "--cache", tmp_path / "cache")
    first = cli("eval", checkpoint, *more).records[0]

    def no_reading(session, paths, *options, **more):
        assert not paths
        yield from ()

    monkeypatch.setattr("stan_infer.evaluation.evaluate.embed_videos", no_reading)
    assert cli("eval", checkpoint, *more).records[0] == first


def test_braces_of_a_template_are_text(cli, checkpoint, videos, class_csv):
    more = ("--template", "{} {x.y!r} {0}")
    cli("eval", checkpoint, *arguments("recognition", class_csv, videos, *more))


def test_views_are_one_or_three_crops(cli, checkpoint, videos, class_csv):
    words = ("eval", checkpoint, *arguments("recognition", class_csv, videos, "--views", "1x2"))
    cli(*words, code=2, says="crops are 1 or 3")


def test_killed_at_any_moment_it_resumes_to_the_same_figures(artefact, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    rows = ["video,text"]
    for i in range(150):
        make.make_clip(folder / f"v{i}.mp4", frames=10 + i % 7, size=(64, 64))
        rows.append(f"v{i}.mp4,text number {i}")
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(rows))
    run = [sys.executable, "-m", "stan_infer", "eval", str(artefact)]  # starts at once: no torch
    run += [str(a) for a in arguments("retrieval", table, folder)]
    start = time.monotonic()
    whole = json.loads(subprocess.run(run, capture_output=True, check=True).stdout)
    took = time.monotonic() - start
    run += ["--cache", str(tmp_path / "cache")]
    kills, parts = 0, set()
    rng = np.random.default_rng(0)
    for _ in range(60):
        process = subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        # From the imports to the last scores: later and later, so that some kill meets every stage.
        try:
            share = float(rng.uniform(0.2, 0.8 + kills / 20))  # of the time of a whole run
            out, _ = process.communicate(timeout=took * share)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            parts.add(len(list((tmp_path / "cache").glob("*/*.npz"))))
            continue
        assert process.returncode == 0
        break
    else:
        pytest.fail("it never came to its end")
    assert kills > 0 and max(parts) > 0  # some kill came after features had been kept
    resumed = json.loads(out)
    assert resumed["figures"] == whole["figures"]
    assert resumed["outcomes"] == whole["outcomes"]


def hostile(folder, good):
    """300 files that are no good videos, or good in odd ways; returns the names that must fail."""
    rng = np.random.default_rng(0)
    data = np.frombuffer(good.read_bytes(), np.uint8)
    must_fail = set()

    def write(name, content, *, fails=True):
        (folder / name).write_bytes(bytes(content))
        if fails:
            must_fail.add(name)

    for i in range(60):
        write(f"zero{i}.mp4", b"") if i < 5 else write(
            f"noise{i}.mp4", rng.integers(0, 256, int(rng.integers(1, 5000)), np.uint8)
        )
    for i, suffix in enumerate([".mp4", ".mkv", ".avi", ".webm", ".ts"] * 6):
        write(f"text{i}{suffix}", b"#EXTM3U\nhttp://127.0.0.1:9/x.ts\n" * (i + 1))
    for i in range(150):  # may still be readable: what counts is that nothing worse happens
        bad = data.copy()
        kind = i % 3
        if kind == 0:
            at = rng.integers(0, len(bad), int(rng.integers(1, 200)))
            bad[at] = rng.integers(0, 256, len(at))
        elif kind == 1:
            bad = bad[: int(rng.integers(1, len(bad)))]
        else:
            at = int(rng.integers(0, len(bad)))
            bad = np.insert(bad, at, rng.integers(0, 256, 300, np.uint8))
        write(f"fuzz{i}.mp4", bad, fails=False)
    # With its index in front, so that a cut loses pictures only.
    front = make.remux(good, folder.parent / "front.mp4", muxer={"movflags": "faststart"})
    builders = {
        "audio": (make.make_audio, True),
        "picture": (lambda p: make.make_png(p.with_suffix(".png")).rename(p), True),
        "count": (lambda p: make.lie_count(good, p, 2**31 - 1), True),
        "duration": (lambda p: make.lie_duration(good, p), False),
        "times": (lambda p: make.lie_times(good, p), False),
        "cut-index": (lambda p: make.cut_off(good, p, 0.5), True),
        "cut-data": (lambda p: make.cut_off(front, p), True),
        # Packet 1 is a picture that others are built on; what no chosen frame needs is no damage.
        "damaged": (lambda p: make.damage(good, p, 1), True),
        "pipe": (os.mkfifo, True),
        "dangling": (lambda p: p.symlink_to(folder / "nowhere"), True),
        "endless": (lambda p: p.symlink_to("/dev/zero"), True),
        "turned": (lambda p: make.turn(good, p, 90), False),
        "askew": (lambda p: make.turn(good, p, 37), False),
        "variable": (lambda p: make.make_clip(p, times=[i + i * i // 5 for i in range(30)]), False),
        "renamed": (lambda p: make.make_clip(p, container="matroska"), False),
    }
    for i in range(60):
        name, (build, fails) = list(builders.items())[i % len(builders)]
        path = folder / f"{name}{i}.mp4"
        build(path)
        if fails:
            must_fail.add(path.name)
    return must_fail


def test_300_hostile_inputs_give_errors_and_nothing_worse(checkpoint, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    good = make.make_clip(folder / "good.mp4", frames=24, size=(96, 96))
    must_fail = hostile(folder, good)
    names = sorted(p.name for p in folder.iterdir())
    assert len(names) == 301
    table = tmp_path / "pairs.csv"
    table.write_text("video,text\n" + "".join(f"{n},text {i}\n" for i, n in enumerate(names)))
    options = ("--timeout", 20, *arguments("retrieval", table, folder, "--workers", 2))
    done = python("-m", "stan_infer", "eval", checkpoint, *options, code=2)
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
    record = json.loads(done.stdout)
    failed = {f["video"] for f in record["failures"]}
    assert must_fail <= failed
    fine = ("good", "turned", "variable", "renamed")
    assert not [name for name in failed if name.startswith(fine)]
    assert all(f["video"] in f["error"] for f in record["failures"])
    assert record["protocol"]["videos"] == 301 - len(failed)
    # Nothing is left that decodes on.
    left = subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, text=True).stdout
    assert not left.strip()
