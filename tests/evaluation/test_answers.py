"""Answers in rows, charts with a stranger's names, and two models compared answer by answer."""

import json

import numpy as np
import pytest

from stan_infer.errors import InputError
from stan_infer.evaluation.answers import (
    Answers,
    asked,
    best_answers,
    candidates,
    class_rows,
    confused,
    confusion,
    group_rows,
    query_rows,
)
from stan_infer.evaluation.compare import compared, read_other
from stan_infer.evaluation.metrics import best_columns, paired_interval, rank_right, rank_texts
from stan_infer.evaluation.page import WORST, charts, render_page, worst_videos
from stan_infer.evaluation.task import Task
from stan_infer.system.charts import image_files, inline_svg

HOSTILE = ("$\\frac{", "<script>alert(1)</script>", "猫\x1b[2J", "caf\udce9")


def recognised(scores, labels, classes, **more):
    task = Task(tuple(f"v{i}" for i in range(len(labels))), labels=tuple(labels), classes=classes)
    task = Task(**{**vars(task), **more})
    scores = np.array(scores, np.float32)
    rankings = {"videos": rank_right(scores, np.array(labels))}
    return Answers(task, scores, *best_answers(scores, labels), rankings)


def retrieved(scores, owners, **more):
    scores = np.array(scores, np.float32)
    task = Task(
        tuple(f"v{i}" for i in range(scores.shape[1])),
        texts=tuple(f"text {i}" for i in range(len(owners))),
        owners=tuple(owners),
    )
    task = Task(**{**vars(task), **more})
    rankings = {
        "text_to_video": rank_right(scores, np.array(owners)),
        "video_to_text": rank_texts(scores, np.array(owners)),
    }
    return Answers(task, scores, *best_answers(scores, owners), rankings)


def record(answers, **more):
    hits = {d: {n: h.tolist() for n, h in of.items()} for d, of in answers.hits.items()}
    found = {"schema": "stan-infer/eval/1", "model": "b.pth", "session": {}, "protocol": {}}
    found |= {"asked": asked(answers.task), "candidates": candidates(answers.task), "hits": hits}
    return {**found, **more}


def test_the_best_columns_are_those_of_a_sort():
    scores = np.random.default_rng(0).permuted(np.arange(70.0 * 40).reshape(70, 40), axis=1)
    scores[3, 5] = np.nan
    assert (best_columns(scores, 5) == np.argsort(-scores, axis=1, kind="stable")[:, :5]).all()
    scores[4] = np.nan
    assert best_columns(scores[:, :3], 5).shape == (70, 3)


def test_rows_hold_rank_right_score_and_the_first_five():
    answers = retrieved([[0.9, 0.1, 0.5], [0.6, 0.2, 0.7]], [0, 1], categories=("a", "", "a"))
    head, rows = query_rows(answers)
    assert head[:6] == ["query", "text", "video", "category", "rank", "right score"]
    assert head[6:] == ["top 1", "score 1", "top 2", "score 2", "top 3", "score 3"]
    assert rows[1] == [1, "text 1", "v1", "", "3", "0.2", "v2", "0.7", "v0", "0.6", "v1", "0.2"]
    by_group = {row["category"]: row for row in group_rows(answers)}
    assert by_group["a"]["texts"] == 1 and by_group["a"]["R@1"] == 100
    assert by_group["(none)"]["R@1"] == 0 and by_group["(none)"]["MdR"] == 3
    assert answers.worst.tolist() == [1] and worst_videos(answers) == [1, 2]


def test_classes_have_accuracy_and_the_class_that_they_are_taken_for():
    scores = [[3, 2, 1], [1, 2, 3], [1, 3, 2], [3, 2, 1], [1, 2, 3]]
    answers = recognised(scores, [0, 0, 0, 1, 2], ("cat", "dog", "ant"))
    assert confusion(answers).tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 1]]
    assert confused(answers) == [("cat", "dog", 1), ("cat", "ant", 1), ("dog", "cat", 1)]
    rows = {row["class"]: row for row in class_rows(answers)}
    assert rows["cat"]["top-1"] == pytest.approx(100 / 3) and rows["cat"]["videos"] == 3
    assert (rows["dog"]["taken for"], rows["dog"]["times"]) == ("cat", 1)
    assert (rows["ant"]["taken for"], rows["ant"]["times"]) == ("", 0)


def test_charts_take_any_name_and_are_the_same_bytes_each_time():
    answers = recognised(np.eye(4), [0, 1, 2, 2], HOSTILE)
    found = charts(answers)
    assert list(found) == ["ranks", "confusion"]
    for name, figure in found.items():
        files = image_files(figure, name)
        assert files["png"].startswith(b"\x89PNG") and files["svg"].startswith(b"<?xml")
        assert files == image_files(charts(answers)[name], name)
        assert "currentColor" in inline_svg(figure, name)
        assert b"<script" not in files["svg"] and "<script" not in inline_svg(figure, name)


def test_the_page_holds_a_strangers_text_as_text_and_fetches_nothing():
    from tests.benchmarking.test_page import Tags

    answers = retrieved(
        np.eye(4)[::-1], range(4), texts=HOSTILE, videos=HOSTILE, categories=HOSTILE
    )
    facts = {"split": HOSTILE[1], "videos": 4, "texts": 4, "frames": 8, "views": "1x1"}
    whole = record(answers, protocol=facts, figures={}, intervals={}, missing=[HOSTILE[1]])
    whole |= {"figures": {"text_to_video": {"R@1": 0.0}}, "intervals": {"text_to_video": {}}}
    whole["failures"] = [{"video": "x", "error": HOSTILE[1]}]
    picture = {HOSTILE[0]: "data:image/jpeg;base64,AAAA"}
    page = render_page(HOSTILE[1], whole, answers, [], picture)
    page.encode("utf-8")
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.names and tags.names.count("img") == 2
    assert all(value.startswith("data:") for _, _, value in tags.fetching)
    assert page.count("&lt;script&gt;") > 5 and "\x1b" not in page
    for word in ("R@k", "MdR, MnR", "rank", "95 % interval", "views"):
        assert f"<dt>{word}</dt>" in page


def test_the_worst_are_few_and_the_worst_of_all():
    scores = np.random.default_rng(0).standard_normal((300, 90))
    answers = retrieved(scores, np.arange(300) % 90)
    ranks = answers.ranking.ranks
    assert ranks[answers.worst[0]] == ranks.max() and (np.diff(ranks[answers.worst]) <= 0).all()
    assert len(worst_videos(answers)) <= 2 * WORST


def test_a_comparison_pairs_the_answers_of_shared_questions(tmp_path):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)
    mine, theirs = (recognised(rng.standard_normal((60, 3)), labels, ("a", "B c", "d"))
                    for _ in range(2))  # fmt: skip
    kept = theirs.task.keep(range(20, 60))
    there = recognised(theirs.scores[20:], kept.labels, ("a", "b_C", "d"), videos=kept.videos)
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(record(there, protocol={"frames": 8, "videos": 40})))
    for place in (path, tmp_path):
        other = read_other(place)
        other.check(mine.task)
        found = compared(mine, {"frames": 12, "videos": 60}, other)
    assert found["shared"] == {"videos": 40} and found["asked"] == {"videos": [60, 40]}
    a, b = (x.ranking.ranks == 1 for x in (mine, theirs))
    gained, lost = int((a & ~b)[20:].sum()), int((b & ~a)[20:].sum())
    one = found["differences"]["videos"]["top-1"]
    assert one["difference"] == pytest.approx(100 * (gained - lost) / 40)
    assert one["interval"] == pytest.approx([100 * x for x in paired_interval(gained, lost, 40)])
    assert (one["only this"], one["only the other"]) == (gained, lost)
    assert found["differs"]["frames"] == [12, 8] and "videos" not in found["differs"]
    assert "the 40 videos that both answered (of 60 here and 40 there)" in found["sentence"]
    assert "frames: 12 here, 8 there" in found["sentence"]


def test_a_tie_counts_in_part_and_same_answers_cannot_be_told_apart(tmp_path):
    tied, plain = retrieved(np.ones((4, 4)), range(4)), retrieved(np.eye(4), range(4))
    path = tmp_path / "r.json"
    path.write_text(json.dumps(record(tied)))
    found = compared(plain, {}, read_other(path))
    assert found["differences"]["text_to_video"]["R@1"]["difference"] == pytest.approx(75)
    path.write_text(json.dumps(record(plain)))
    same = compared(plain, {}, read_other(path))
    low, high = same["differences"]["text_to_video"]["R@1"]["interval"]
    assert low == pytest.approx(-high) and high > 40
    assert "cannot be told apart" in same["sentence"] and "the same 4 texts" in same["sentence"]


def test_names_of_questions_do_not_depend_on_the_order_or_the_form_of_a_file():
    a = Task(("x", "y"), texts=("one", "two", "one"), owners=(0, 1, 0))
    b = Task(("y", "x"), texts=("two", "one", "one"), owners=(0, 1, 1))
    for name, ids in asked(a).items():
        assert sorted(ids) == sorted(asked(b)[name]) and len(set(ids)) == len(ids)
    assert candidates(a) == candidates(b)


def test_records_that_cannot_be_compared_are_refused(tmp_path):
    answers, other = retrieved(np.eye(3), range(3)), recognised(np.eye(3), [0, 1, 2], ("a",) * 3)
    path = tmp_path / "r.json"
    bad = {
        "no record of an evaluation": {"schema": "stan-infer/bench/1"},
        "older version": {"schema": "stan-infer/eval/1"},
        "is malformed": record(answers, hits={"text_to_video": {"R@1": [1]}}),
        "is not in 0 to 1": record(
            answers,
            hits={d: {n: [2.0] * 3 for n in of} for d, of in answers.hits.items()},
        ),
        "hits": record(answers, hits=[]),
    }
    for message, content in bad.items():
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            read_other(path)
    path.write_text(json.dumps(record(other)))
    with pytest.raises(InputError, match="is a record of recognition, this is retrieval"):
        read_other(path).check(answers.task)
    path.write_text(json.dumps(record(retrieved(np.eye(3), range(3), texts=("x", "y", "z"),
                                                videos=("a", "b", "c")))))  # fmt: skip
    with pytest.raises(InputError, match="answers other questions"):
        read_other(path).check(answers.task)
    with pytest.raises(InputError, match="no such file"):
        read_other(tmp_path / "none.json")
