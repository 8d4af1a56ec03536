"""Which videos set the ranges and which check: by content, whatever their names and order."""

import os
import shutil

import pytest

from stan_infer.evaluation.task import Task
from stan_infer.quantisation.bound import Bound
from stan_infer.quantisation.hold_out import divide
from stan_infer.quantisation.options import CalibrationOptions


def options(samples=256, **more):
    return CalibrationOptions(samples=samples, **more)


@pytest.fixture
def paths(tmp_path):
    """Files of 40 contents, of few sizes; nothing here decodes them."""
    return [write(tmp_path / f"clip{i:02d}.mp4", i) for i in range(40)]


def write(path, i):
    path.write_bytes(b"content %d" % i + bytes(i % 7))
    return path


def contents(side):
    return {path.read_bytes() for path in side}


def test_the_parts_share_no_content(paths, tmp_path):
    copies = [shutil.copy(path, tmp_path / f"a copy{i}.mp4") for i, path in enumerate(paths[:4])]
    os.symlink(paths[5], tmp_path / "link.mp4")
    parts = divide([*paths, *copies, tmp_path / "link.mp4", paths[0]], options())
    assert parts.is_checked and parts.copies == 5
    assert (len(parts.ranged), len(parts.held)) == (30, 10)
    assert not contents(parts.ranged) & contents(parts.held)
    assert len(contents(parts.ranged) | contents(parts.held)) == 40


def test_neither_order_nor_names_nor_folders_matter(paths, tmp_path):
    first = divide(paths, options())
    (tmp_path / "moved").mkdir()
    moved = [shutil.move(p, tmp_path / "moved" / f"{90 - i}.mp4") for i, p in enumerate(paths)]
    for some in (40, 10):  # all of them, and only so many as are wanted of more
        again = divide(moved[::-1], options(some))
        sides = contents(again.ranged), contents(again.held)
        wanted = divide(moved, options(some))
        assert sides == (contents(wanted.ranged), contents(wanted.held))
    assert contents(divide(moved, options()).held) == contents(
        [moved[paths.index(p)] for p in first.held]
    )


def test_a_video_more_moves_one_at_most(paths):
    for count in range(16, 40):
        one, two = divide(paths[:count], options()), divide(paths[: count + 1], options())
        assert len(set(one.held) - set(two.held)) <= 1
        assert len(set(two.held) & set(one.ranged)) <= 1


def test_the_seed_deals_anew(paths):
    assert divide(paths, options()).held != divide(paths, options(seed=1)).held


@pytest.mark.parametrize(
    ("count", "samples", "ranged", "held"),
    [(15, 256, 0, 0), (16, 256, 8, 8), (32, 256, 24, 8), (40, 256, 30, 10), (11, 3, 3, 8),
     (10, 3, 0, 0), (40, 3, 3, 8), (9, 1, 1, 8), (8, 1, 0, 0), (40, 24, 24, 8)],
)  # fmt: skip
def test_a_quarter_is_held_out_and_eight_at_least(paths, count, samples, ranged, held):
    parts = divide(paths[:count], options(samples))
    assert parts.is_checked == bool(held)
    if held:
        assert (len(parts.ranged[:samples]), len(parts.held)) == (ranged, held)
    else:
        assert parts.held == parts.ranged and f"{count} different videos" in parts.why


def test_a_task_keeps_a_quarter_of_its_videos_to_itself(paths):
    asked = paths[4:16]
    parts = divide(paths[:16], options(), asked)
    assert parts.is_checked and set(paths[:4]) < set(parts.ranged)
    assert set(parts.held) == set(asked) - set(parts.ranged) and len(parts.held) == 8
    for count, more in ((7, 30), (9, 6), (8, 7)):  # too few with labels; too few beside them
        few = divide(paths[: count + more], options(), paths[:count])
        assert not few.is_checked and f"{count} different videos with labels" in few.why
    assert divide(paths[:16], options(), paths[:8]).is_checked


def test_copies_of_labelled_videos_are_no_questions(paths, tmp_path):
    """Neither one in the ranges, under another name, nor one video under two names."""
    double = shutil.copy(paths[20], tmp_path / "a double.mp4")
    asked = [*paths[20:40], double]
    parts = divide([*paths[:20], *asked], options(8), asked)
    assert parts.double == {paths[20]: double} and len(parts.held) == 20
    twin = shutil.copy(paths[21], tmp_path / "a twin.mp4")  # has no label
    parts = divide([*paths[:20], twin, *asked], options(20), asked)
    assert set(parts.ranged) == set(paths[:20]) and parts.copies == 2
    assert parts.double == {paths[20]: double}

    labels = tuple(i % 2 for i in range(21))
    bound = Bound(task=Task(tuple(map(str, asked)), labels=labels, classes=("x", "y")), paths=asked)
    held = bound.on(parts)
    assert len(held.paths) == 20 == held.counts.sum() and paths[20] not in held.paths
    texts = Task(tuple(map(str, asked)), texts=("a",) * 42, owners=tuple(range(21)) * 2)
    held = Bound(task=texts, paths=asked, metric="r1").on(divide(asked, options(12), asked))
    assert len(held.paths) == 20, "a search has the videos of the ranges to choose from too"
    assert len(held.counts) == 40 and held.counts.sum() == 2 * 8
