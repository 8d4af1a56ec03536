"""The Python interface: what help() shows, the example of every public name, the results."""

import doctest
import importlib
import inspect
import json
import pydoc
import re
from types import SimpleNamespace

import numpy as np
import pytest

import stan_infer as si
from stan_infer.evaluation import from_files
from stan_infer.system.result import Result
from tests.conftest import ROOT, python

MODEL, CLIPS = "examples/motion/motion.safetensors", ROOT / "examples/motion/clips"
METHODS = "describe embed_video embed_text score score_embeddings read_clip prepare".split()
PUBLIC = {name: getattr(si, name) for name in dir(si)}
PUBLIC |= {f"Session.{name}": getattr(si.Session, name) for name in METHODS}


def test_help_fits_on_two_screens():
    text = pydoc.render_doc(si, renderer=pydoc.plaintext)
    assert len(text.splitlines()) <= 100
    table = re.findall(r"^    (\w+)  +\S", text, re.MULTILINE)
    errors = {"InputError", "MissingError", "CheckError"}  # in the line of StanError
    assert set(table) == set(dir(si)) - errors
    assert "session.prepare(" in text and "VERSION" in text


def test_a_type_checker_sees_every_name():
    source = (ROOT / "stan_infer/__init__.py").read_text()
    again = re.findall(r"from stan_infer\.(\S+) import (\w+) as \2$", source, re.MULTILINE)
    assert {name: home for home, name in again} == si._HOME


def sections(doc: str) -> set[str]:
    return set(re.findall(r"^ *(Args|Returns|Raises|Attributes|Example):$", doc, re.MULTILINE))


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_have_arguments_errors_and_an_example(name):
    value, found = PUBLIC[name], sections(inspect.getdoc(PUBLIC[name]) or "")
    assert "Example" in found
    if inspect.isfunction(value):
        given = [p for p in inspect.signature(value).parameters if p != "self"]
        assert not given or {"Args", "Raises"} <= found
        text = inspect.getdoc(value)
        assert [p for p in given if f"\n    {p}: " not in text] == []
        assert "Returns" in found or inspect.signature(value).return_annotation == "None"


@pytest.mark.parametrize("name", ["ModelEvaluation", "Embeddings", "Verification", "BenchResult"])
def test_results_describe_every_field(name):
    homes = {"ModelEvaluation": "evaluate", "Embeddings": "embed_videos", "Verification": "verify"}
    kind = getattr(importlib.import_module(PUBLIC[homes.get(name, "bench")].__module__), name)
    assert issubclass(kind, Result) and "Attributes" in sections(kind.__doc__)
    for field in kind.__dataclass_fields__:
        assert re.search(rf"^ +(\w+, )*{field}(, \w+)*: ", kind.__doc__, re.MULTILINE), field


QUICK = {"Session", "StanConfig", "StanError", "sample_indices", "tokenize", "Session.prepare"}
EXAMPLES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PUBLIC]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_every_name_runs(name, tmp_path, monkeypatch):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    (test,) = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, globs={})
    assert test.examples
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(test, out=said.append)
    assert not said, "".join(said)


def test_embeddings_are_those_of_the_session(tmp_path, monkeypatch):
    clips = sorted(CLIPS.iterdir())[:2]
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    said, steps = [], []

    class Bar:
        def __enter__(self):
            return lambda amount=1.0: steps.append(amount)

        def __exit__(self, *_):
            pass

    with si.open_session(ROOT / MODEL) as session:
        found = si.embed_videos(
            session,
            [clips[0], str(tmp_path / "bad.mp4"), clips[1]],
            tmp_path / "v.npz",
            say=said.append,
            progress=lambda title, total: Bar(),
            batch=2,
            workers=1,
        )
        wanted = session.embed_video([session.read_clip(clip) for clip in clips])
        assert np.allclose(found.embeddings, wanted, atol=1e-5)
        scores = session.score("a shape moves", [session.read_clip(clip) for clip in clips])
        assert np.allclose(session.score_embeddings("a shape moves", found.embeddings), scores)
        with pytest.raises(si.InputError, match="embeddings hold NaN"):
            session.score_embeddings("a shape moves", wanted * np.nan)
        for bad in (wanted[:, :5], wanted[None], np.zeros((2, 64), int), "text"):
            with pytest.raises(si.InputError, match=r"floats \[B, E\] with E = 64"):
                session.score_embeddings("a shape moves", bad)
        with pytest.raises(si.InputError, match="precision: the session was opened already"):
            si.embed_videos(session, clips, precision="fp16")
    assert found.paths == tuple(clips) and list(found.failed) == [str(tmp_path / "bad.mp4")]
    assert len(steps) == 3 and len(said) == 1 and said[0].startswith("error: ")
    assert str(found).endswith("on cpu, 1 could not be read") and len(repr(found)) < 200
    assert json.loads(json.dumps(found.to_dict()))["indices"] == found.indices.tolist()
    with np.load(tmp_path / "v.npz") as saved:
        assert np.array_equal(saved["embeddings"], found.embeddings)
    with pytest.raises(AttributeError):
        found.paths = ()
    with pytest.raises(si.InputError, match="this session is closed"):
        si.embed_videos(session, clips)


def test_a_session_is_not_replaced_by_what_it_writes(tmp_path):
    target = tmp_path / "model.npz"
    target.write_bytes(b"mine")
    with pytest.raises(si.InputError, match="model.npz"):
        si.embed_videos(ROOT / MODEL, CLIPS, target)
    assert target.read_bytes() == b"mine"


@pytest.mark.slow
def test_functions_print_nothing(tmp_path):
    code = f"""
import sys, stan_infer as si
model, clips = {str(ROOT / MODEL)!r}, {str(CLIPS)!r}
open("l.csv", "w").write("video,label\\nred_cross_moves_left,left\\ncyan_bar_blinks,blinks\\n")
found = si.evaluate(model, "recognition", "l.csv", clips, workers=1)
print("RESULT", found, file=sys.stderr)
assert found.to_dict()["model"] == model and found.facts["classes"] == 2
"""
    done = python("-c", code, cwd=tmp_path)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert all(line.startswith("RESULT") for line in lines), done.stderr
    assert lines[0].startswith("RESULT recognition, as in the file, 2 videos: videos top-1 ")


def test_the_cache_of_an_open_session_knows_its_weights(tmp_path):
    """One file with two sets of weights: the features of one are not those of the other."""
    with si.open_session(ROOT / MODEL, settings={"frames": 4}) as session:
        assert session.options["settings"] == {"frames": 4}
        assert session.source == ROOT / MODEL
        facts, config = session.describe(), session.config
    for weights in (None, "student", "teacher"):
        options = {"settings": {"weights": weights}} if weights else {}
        session = SimpleNamespace(options=options, describe=lambda: facts, config=config)
        from_files.open_cache(tmp_path, str(ROOT / MODEL), session)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(si.InputError, match="a cache belongs to a file of weights"):
        from_files.open_cache(tmp_path, None, session)


def model():
    return si.load_model(ROOT / MODEL)


WRONG_VALUES = [
    (lambda: si.embed_videos(ROOT / MODEL, CLIPS, workers="2"), "workers is '2'; give a whole"),
    (lambda: si.embed_videos(ROOT / MODEL, CLIPS, workers=True), "workers is True; give a whole"),
    (lambda: si.embed_videos(ROOT / MODEL, CLIPS, batch=1.5), "batch is 1.5; give a whole number"),
    (lambda: si.embed_videos(ROOT / MODEL, CLIPS, timeout_s="x"), "timeout_s is 'x'; give a num"),
    (lambda: si.embed_videos(ROOT / MODEL, CLIPS, timeout_s=0), "timeout_s is 0; give a number"),
    (lambda: si.embed_videos(ROOT / MODEL, CLIPS, threads="2"), "threads is '2'; give a whole"),
    (lambda: si.embed_videos(ROOT / MODEL, CLIPS, frames="8"), "frames is '8'; give a whole"),
    (lambda: si.embed_videos(ROOT / MODEL, CLIPS, frames=8.0), "frames is 8.0; give a whole"),
    (lambda: si.open_session(ROOT / MODEL, threads=0), "threads is 0; give a whole number from 1"),
    (lambda: si.read_clip("x.mp4", "8"), "frames is '8'; give a whole number from 1 to 64"),
    (lambda: si.read_clip("x.mp4", short_side="8"), "short_side is '8'; give a whole number"),
    (lambda: si.read_clip("x.mp4", crop=8.5), "crop is 8.5; give a whole number"),
    (lambda: si.sample_indices("9", 3), "total_frames is '9'; give a whole number"),
    (
        lambda: si.sample_indices(9, 3, clip=2, clips=2),
        "clip is 2; give a whole number from 0 to 1",
    ),
    (lambda: si.verify(ROOT / MODEL, ROOT / MODEL, frames=["2"]), "frames is '2'; give a whole"),
    (lambda: si.verify(ROOT / MODEL, ROOT / MODEL, tolerance="1"), "tolerance is '1'; give a num"),
    (lambda: si.bench(preset="stan-tiny", frames=["2"]), "--frames is '2'; give a whole"),
    (lambda: si.bench(preset="stan-tiny", repeats="2"), "repeats is '2'; give a whole number"),
    (lambda: si.bench(preset="stan-tiny", min_seconds="2"), "min_seconds is '2'; give a number"),
    (lambda: si.bench(preset="stan-tiny", threads="2"), "threads is '2'; give a whole number"),
    (lambda: si.calibrate(ROOT / MODEL, CLIPS, "x", samples="9"), "samples is '9'; give a whole"),
    (lambda: si.calibrate(ROOT / MODEL, CLIPS, "x", workers=0), "workers is 0; give a whole"),
    (lambda: si.calibrate(ROOT / MODEL, CLIPS, "x", min_cosine="1"), "min_cosine is '1'; give a"),
    (lambda: si.calibrate(ROOT / MODEL, CLIPS, "x", threads="1"), "threads is '1'; give a whole"),
    (lambda: si.export_model(model(), "x", opset="20"), "opset is '20'; allowed are 18 to 25"),
    (lambda: si.export_model(model(), "x", frames="8"), "frames is '8'; give a whole number"),
    (lambda: si.export_model(model(), "x", batch=("1", 2)), "batch is '1'; give a whole number"),
]


@pytest.mark.parametrize(("call", "message"), WRONG_VALUES, ids=[m for _, m in WRONG_VALUES])
def test_a_value_of_another_type_is_told_before_any_work(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(si.InputError, match=f"^{re.escape(message)}"):
        call()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["frames", "text_length"])
def test_evaluate_takes_whole_numbers(tmp_path, key):
    csv = tmp_path / "l.csv"
    csv.write_text("video,label\nred_cross_moves_left,left\n")
    with pytest.raises(si.InputError, match=f"{key} is '8'; give a whole number"):
        si.evaluate(ROOT / MODEL, "recognition", csv, CLIPS, **{key: "8"})


def test_evaluate_refuses_as_the_command_does(tmp_path):
    csv = tmp_path / "l.csv"
    csv.write_text("video,label\nnowhere,left\n")
    refused = {
        "unknown; did you mean 'recognition'": dict(dataset="recogniton"),
        "1 of 1 videos of .* are not in": dict(),
        "no video of .* is in": dict(allow_missing=True),
        "'1by3' is not CLIPSxCROPS": dict(views="1by3"),
        "--split-words changes the names": dict(split_words=True),
        "is not a folder": dict(videos=csv),
    }
    for message, changes in refused.items():
        given = dict(dataset="recognition", annotations=csv, videos=CLIPS) | changes
        with pytest.raises(si.InputError, match=message):
            si.evaluate(ROOT / MODEL, **given)
    for batch in (0, 65, "2", 1.5):
        with pytest.raises(si.InputError, match="batch is .*give a whole number from 1 to 64"):
            si.embed_videos(ROOT / MODEL, CLIPS, batch=batch)
    with pytest.raises(si.InputError, match=r"frames is 8; give a list, as in frames=\[8\]"):
        si.verify(ROOT / MODEL, ROOT / MODEL, frames=8)
    with pytest.raises(TypeError, match="no option presicion; did you mean 'precision'"):
        si.embed_videos(ROOT / MODEL, CLIPS, presicion="fp16")
    with pytest.raises(TypeError, match="no option widgets"):
        csv.write_text("video,label\nred_cross_moves_left,left\n")
        si.evaluate(ROOT / MODEL, "recognition", csv, CLIPS, widgets=3)
