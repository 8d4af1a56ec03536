"""The passport notices another stack: planted changes, and none where there is none."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

import stan_infer as si
from stan_infer.library import passport, reading
from stan_infer.library.database import PASSPORT
from stan_infer.library.embed_library import embed_library
from stan_infer.library.library import open_library
from stan_infer.library.model_files import model_source
from stan_infer.video import clip, resize
from stan_infer.video.spec import ClipSpec
from tests.conftest import ROOT, edit_json, flip, tiny_config, zero_weight
from tests.exported import exported, rewrite
from tests.library.fake_stack import FakeSession
from tests.video.broken_videos import make_clip

MOTION = ROOT / "examples" / "motion" / "motion.safetensors"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("passport")
    (folder / "videos").mkdir()
    for i in range(3):
        make_clip(folder / "videos" / f"{i}.mp4", frames=8 + i, size=(32, 48))
    embed_library(FakeSession(), [folder / "videos"], folder / "library", workers=1)
    return folder


@pytest.fixture
def library(place, monkeypatch):
    """Canary clips are read in this process, so that a test can change how."""

    def here(paths, spec, **options):
        return ((p, clip.read_clip_info(p, spec)) for p in paths)

    monkeypatch.setattr(passport, "read_clips", here)
    return open_library(place / "library")


def config(**changes):
    return FakeSession(config=dataclasses.replace(tiny_config(), **changes))


SESSIONS = {
    "other weights": lambda: FakeSession(seed=1),
    "precision by name": lambda: FakeSession(precision="fp16"),
    "int8": lambda: FakeSession(round_to=30.0),
    "mean": lambda: config(mean=(120.0, 116.7, 104.0)),
    "std": lambda: config(std=(70.0, 70.0, 70.0)),
    "short side": lambda: config(short_side=18),
    "channels": lambda: FakeSession(flip=True),
    "engine": lambda: FakeSession(engine="ort"),
    "runtime": lambda: FakeSession(onnxruntime="1.2.3"),
}


@pytest.mark.parametrize("kind", SESSIONS)
def test_another_model_is_noticed(library, kind):
    found = library.compare(SESSIONS[kind]())
    assert not found.same and -1.01 < found.cosine < 1.01
    named = kind in ("precision by name", "engine", "runtime")
    assert named == (found.cosine > 1 - 1e-6), "the facts alone tell of it, or the vectors do too"


def test_other_pyav(library, monkeypatch):
    monkeypatch.setattr(reading, "_version", lambda package: "0.1")
    assert set(library.compare(FakeSession()).changed) == {"reading.decoder", "reading.numpy"}


def test_sampler(library, monkeypatch):
    sample = clip.sample_indices

    def late(n, *more):
        return np.minimum(sample(n, *more) + 1, n - 1)

    monkeypatch.setattr(clip, "sample_indices", late)
    found = library.compare(FakeSession())
    assert not found.same and not found.changed and len(found.pixels) == 4


def test_resize(library, monkeypatch):
    shrink = resize.resize_and_crop
    monkeypatch.setattr(clip, "resize_and_crop", lambda *how: shrink(*how) // 2 * 2)
    found = library.compare(FakeSession())
    assert not found.same and not found.changed and found.pixels


def test_no_false_alarm(library):
    assert all(library.compare(FakeSession()).same for _ in range(20))
    assert library.compare(FakeSession(threads=1)).same


def test_a_width_that_differs_is_said(library):
    with pytest.raises(si.CheckError, match="have 24 numbers, the model's 16"):
        library.compare(config(embed_dim=16))


def test_a_model_is_told_by_its_content(tmp_path, tiny_model):
    """A re-export and another name are the same model; other weights or precision are not."""
    for name in ("made", "again", "zeroed"):
        shutil.copytree(exported(tiny_model), tmp_path / name)
    rewrite(tmp_path / "again", lambda manifest: manifest.update(command="export -o again"))
    zero_weight(tmp_path / "zeroed" / "video.onnx", "video/branch/layer1/spatial/mlp/fc1/bias")
    rewrite(tmp_path / "zeroed")
    shutil.copytree(exported(tiny_model, precision="fp16"), tmp_path / "half")
    made, again, zeroed, half = (
        stack_of(tmp_path / name) for name in ("made", "again", "zeroed", "half")
    )
    assert (tmp_path / "made" / "manifest.json").read_text() != (
        tmp_path / "again" / "manifest.json"
    ).read_text()
    assert not passport.changed_facts(made, again) and made["checkpoint"] != again["checkpoint"]
    assert set(passport.changed_facts(made, zeroed)) == {"weights.model"}
    assert {"weights.model", "engine.precision"} <= set(passport.changed_facts(made, half))


def test_a_checkpoint_is_told_by_its_content(tmp_path):
    shutil.copy(MOTION, tmp_path / "renamed.safetensors")
    own, renamed = (model_source(str(p), {}) for p in (MOTION, tmp_path / "renamed.safetensors"))
    assert own["model"] == renamed["model"] and own["checkpoint_sha256"]
    flip(tmp_path / "renamed.safetensors")
    assert model_source(str(tmp_path / "renamed.safetensors"), {})["model"] != own["model"]


def stack_of(folder):
    with si.open_session(folder) as session:
        return passport.facts_of(
            session, model_source(str(folder), {}), ClipSpec.of(session.config)
        )


def test_which_of_several_weights_is_a_fact():
    session = FakeSession()
    session.reopened_by(None, None, None, {"settings": {"weights": "ema"}}, None)
    source = {"model": "x", "checkpoint_sha256": None}
    facts = passport.facts_of(session, source, ClipSpec.of(session.config))
    assert facts["weights.set"] == "ema" and facts["weights.scales"] is None


def test_rows_of_another_model_are_not_added(place):
    make_clip(place / "videos" / "new.mp4", frames=20, size=(32, 48))
    try:
        before = (place / "library" / "vectors.f32").read_bytes()
        for session in (FakeSession(seed=1), FakeSession(flip=True), FakeSession(round_to=30.0)):
            with pytest.raises(si.CheckError, match="made by another stack.*cosine.*near rows"):
                embed_library(session, [place / "videos"], place / "library", workers=1)
        assert (place / "library" / "vectors.f32").read_bytes() == before
        said = []
        embed_library(
            FakeSession(onnxruntime="2"), [place / "videos"], place / "library", workers=1,
            say=said.append,
        )  # fmt: skip
        assert "warning" in said[0] and "engine.onnxruntime None -> '2'" in said[0]
    finally:
        (place / "videos" / "new.mp4").unlink()


POISONED = {
    "another schema": lambda p: p.update(schema="stan-infer/library/9"),
    "a width beyond bounds": lambda p: p.update(width=2**40),
    "another width": lambda p: p.update(width=25),
    "no canaries": lambda p: p.update(canaries=[]),
    "a vector that is long": lambda p: p["canaries"][0].update(vector=[1e308] * 24),
    "a vector of text": lambda p: p["canaries"][0].update(vector=["x"] * 24),
    "a batch of 0": lambda p: p.update(batch=0),
}


@pytest.mark.parametrize("kind", POISONED)
def test_a_poisoned_passport_is_refused(place, tmp_path, kind):
    changed = shutil.copytree(place / "library", tmp_path / "library")
    edit_json(changed / PASSPORT, POISONED[kind])
    with pytest.raises(si.InputError, match=r"library\.json"):
        open_library(changed)


def test_facts_are_shown_in_one_line(library):
    facts = library.passport["facts"] | {"engine.engine": "\x1b[31m\n<script>" * 50}
    strange = dataclasses.replace(library, passport={**library.passport, "facts": facts})
    text = str(strange.compare(FakeSession()))
    assert text.isprintable() and len(text) < 2000
    assert json.dumps(strange.compare(FakeSession()).to_dict())


def nothing_new(place, session=None, source=None, **options):
    """What is said by a run that has nothing to embed."""
    said = []
    given = {"workers": 1} | options
    done = embed_library(
        source or session or FakeSession(), [place / "videos"], place / "library",
        say=said.append, **given,
    )  # fmt: skip
    assert done.unchanged == 3 and done.stack is None
    return said


def test_options_are_compared_where_nothing_is_new(place, tmp_path):
    assert nothing_new(place) == []
    (said,) = nothing_new(place, FakeSession(precision="fp16"))
    assert "engine.precision 'fp32' -> 'fp16'" in said and "were not used" in said
    (said,) = nothing_new(place, decoder="decord")
    assert "reading.decoder 'pyav" in said
    words = {"engine": "ort", "device": "cuda", "precision": "bf16", "provider": "cuda-graph"}
    shutil.copy(MOTION, tmp_path / "other.safetensors")
    (said,) = nothing_new(place, source=tmp_path / "other.safetensors", **words)
    for name in ("weights.model", *(f"engine.{word}" for word in words)):
        assert f"{name} " in said, said
    (said,) = nothing_new(
        place, source=MOTION, settings={"weights": "ema", "frames": 3}, device="cpu",
        precision="fp32", engine="eager",
    )  # fmt: skip
    assert "config.frames 6 -> 3" in said and "weights.set None -> 'ema'" in said
    assert "engine.device" not in said and "engine.precision" not in said
    for options, words in (
        ({"frames": 5}, "made with --batch 1, whole videos, --frames 6, this run has .*frames 5"),
        ({"batch": 3}, "made with --batch 1, whole videos, this run has --batch 3"),
        ({"source": MOTION, "engine": "eagr"}, "eagr.*eager"),
        ({"source": tmp_path / "absent.pt"}, "absent.pt: no such checkpoint"),
    ):
        with pytest.raises(si.InputError, match=words):
            nothing_new(place, **options)


def test_another_decoder_is_said(place):
    pytest.importorskip("decord")
    make_clip(place / "videos" / "new.mp4", frames=20, size=(32, 48))
    said = []
    try:
        done = embed_library(
            FakeSession(), [place / "videos"], place / "library", workers=1, decoder="decord",
            say=said.append,
        )  # fmt: skip
    finally:
        (place / "videos" / "new.mp4").unlink()
    assert set(done.stack.changed) == {"reading.decoder"} and "reading.decoder" in said[0]


def test_other_frames_of_the_model_are_refused(place):
    make_clip(place / "videos" / "new.mp4", frames=20, size=(32, 48))
    try:
        with pytest.raises(si.InputError, match="--frames 6, this run has .*--frames 3"):
            embed_library(config(frames=3), [place / "videos"], place / "library", workers=1)
    finally:
        (place / "videos" / "new.mp4").unlink()
