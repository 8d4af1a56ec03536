"""The motion demo: its generator, its recorded figures, and the committed weights themselves."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]

av = pytest.importorskip("av")
cv2 = pytest.importorskip("cv2")

from examples.motion import clips  # noqa: E402
from stan_infer.video.clip import read_clip, sample_indices  # noqa: E402

MOTION = ROOT / "examples" / "motion"
FRESH_SEED, FRESH_CLIPS = 20260, 200
# Three standard deviations of a share of 200 fresh clips: one false alarm in 700 sets.
DEVIATIONS = 3.0


@pytest.fixture(scope="module")
def bank():
    return clips.texture_bank("train", 4)


def draw(bank, *key, level=clips.FULL, motion=None):
    return clips.draw_clip(np.random.default_rng(key), bank, level, motion)


def test_generator_is_deterministic(bank) -> None:
    one, same, other = draw(bank, 5), draw(bank, 5), draw(bank, 6)
    assert one.frames.shape == (16, 64, 64, 3) and one.frames.dtype == np.uint8
    assert np.array_equal(one.frames, same.frames) and one.caption == same.caption
    assert not np.array_equal(one.frames, other.frames)


def test_banks_are_apart() -> None:
    train, held_out = clips.texture_bank("train"), clips.texture_bank("held-out")
    assert np.array_equal(train[:4], clips.texture_bank("train", 4))
    a, b = (x[:, ::4, ::4].reshape(len(x), -1) for x in (train, held_out))
    correlation = (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    assert np.abs(correlation).max() < 0.9


@pytest.mark.parametrize("motion", range(len(clips.MOTIONS)))
def test_reversed_clip_is_the_reversed_motion(bank, motion: int) -> None:
    easy = draw(bank, 1, level=clips.EASY, motion=motion)
    back = easy.reverse()
    assert np.array_equal(back.frames, easy.frames[::-1])
    assert (back.shape, back.colour) == (easy.shape, easy.colour)
    assert back.reverse().motion == easy.motion
    # Easy clips have a plain dark background, so what is bright is the shape.
    for clip in (easy, back):
        assert clips.MOTIONS[clip.motion] == seen_motion(clip.frames)


def seen_motion(frames) -> str:
    """Tell the motion of an easy clip by its bright pixels: size, strength and centre over time."""
    bright = frames.max(-1).astype(float)
    bright -= np.median(bright)
    area = (bright > 0.5 * bright.max((1, 2), keepdims=True)).sum((1, 2))
    peak = bright.max((1, 2))
    weight = np.where(bright > 10, bright, 0)
    total = np.maximum(weight.sum((1, 2)), 1)
    x = (weight * np.arange(64)).sum((1, 2)) / total
    y = (weight * np.arange(64)[:, None]).sum((1, 2)) / total
    dx, dy = x[-1] - x[0], y[-1] - y[0]
    jumps = np.abs(np.diff(peak)) > 0.4 * peak.max()
    if jumps.sum() >= 2:
        return "blinks"
    if abs(peak[-1] - peak[0]) > 0.4 * peak.max():
        return "fades in" if peak[-1] > peak[0] else "fades out"
    if max(abs(dx), abs(dy)) > 10:
        if abs(dx) > abs(dy):
            return "moves right" if dx > 0 else "moves left"
        return "moves down" if dy > 0 else "moves up"
    if abs(np.log(area[-1] / area[0])) > 0.5:
        return "grows" if area[-1] > area[0] else "shrinks"
    return "stays still"


def test_frames_are_sampled_as_the_product_samples(bank, tmp_path: Path) -> None:
    clip = draw(bank, 3)
    index = sample_indices(16, 8)
    assert index.tolist() == [0, 2, 4, 6, 8, 9, 11, 13]
    taken = clips.sample_frames(clip.frames, 8)
    assert np.array_equal(taken, clip.frames[index])
    path = tmp_path / "clip.mp4"
    clips.write_mp4(path, clip.frames)
    read = read_clip(path, frames=8, short_side=64, crop=64)
    assert read.shape == taken.shape
    error = np.abs(read.astype(float) - taken).mean((1, 2, 3))
    assert error.max() < 12  # crf 26 takes the noise away (mean 6.9) and little else
    shifted = np.abs(read.astype(float) - clip.frames[index + 1]).mean()
    assert error.mean() < shifted


def test_captions_and_labels() -> None:
    texts = clips.captions()
    assert len(texts) == len(set(texts)) == 400
    bank = clips.texture_bank("held-out", 2)
    for i in range(20):
        clip = clips.held_out_clip(9, i, bank)
        assert texts[clip.caption_index] == clip.caption and clip.motion == i % 10
    assert (MOTION / "labels.txt").read_text().splitlines() == clips.prompts()


def test_committed_files() -> None:
    assert (MOTION / "motion.safetensors").stat().st_size < 12e6
    samples = sorted((MOTION / "clips").glob("*.mp4"))
    assert len(samples) == 10 and sum(p.stat().st_size for p in samples) < 200_000
    bank, results = clips.texture_bank("held-out"), recorded()
    names = [clips.held_out_clip(results["seed"], i, bank).caption for i in range(10)]
    assert {p.stem for p in samples} == {n.removeprefix("a ").replace(" ", "_") for n in names}


def recorded() -> dict:
    return json.loads((MOTION / "results.json").read_text())


def test_the_picture_has_the_scores_of_the_committed_weights() -> None:
    """What it draws is what the model computes; only JPEG's bytes may differ by version."""
    pytest.importorskip("torch")
    from examples.motion.picture import CLIP, draw, scored

    clip, scores = scored()
    assert scores[0][1] > scores[0][0] and scores[1][0] > scores[1][1]  # as the reader sees
    shape = re.compile(r'href="data:[^"]*"')
    wanted = (MOTION / "order.svg").read_text()
    assert shape.sub("", draw(clip, scores)) == shape.sub("", wanted)
    assert CLIP.is_file()


def test_annotations_of_the_clips() -> None:
    rows = list(csv.DictReader((MOTION / "clips.csv").read_text().splitlines()))
    assert sorted(r["video"] for r in rows) == sorted(p.name for p in MOTION.glob("clips/*.mp4"))
    for row in rows:
        motion = row["video"].removesuffix(".mp4").split("_", 2)[2].replace("_", " ")
        assert row["label"] == f"a shape {motion}"


def test_recorded_figures() -> None:
    results = recorded()
    assert 0.85 <= results["model"]["motion"]["accuracy"] <= 0.97
    assert results["trunk_only"]["motion"]["accuracy"] < 0.6
    for share in results["model"]["motions"].values():
        assert share["accuracy"] == share["right"] / share["of"]


def test_the_page_has_the_recorded_figures() -> None:
    pytest.importorskip("torch")
    from examples.motion.publish import figures

    assert f"<!-- figures -->\n{figures(recorded())}<!-- /" in (MOTION / "README.md").read_text()


def test_committed_weights_on_fresh_clips() -> None:
    torch = pytest.importorskip("torch")
    from examples.motion.evaluate import evaluate

    torch.set_num_threads(1)
    results, fresh = recorded(), evaluate(FRESH_SEED, FRESH_CLIPS)
    for name in ("motion", "caption"):
        share = results["model"][name]["accuracy"]
        margin = DEVIATIONS * math.sqrt(share * (1 - share) / FRESH_CLIPS)
        assert fresh["model"][name]["accuracy"] > share - margin, (name, fresh["model"])
    # Order is what the branch sees: without it at most 60 % are left.
    assert fresh["shuffled"]["motion"]["accuracy"] < 0.6
    assert fresh["shuffled"]["pair"]["accuracy"] < fresh["model"]["pair"]["accuracy"] - 0.25
