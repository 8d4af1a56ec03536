"""An optional package that is absent or broken is a MissingError with the command that helps."""

import os

import pytest

from stan_infer.errors import InputError, MissingError, check_word, first_reasons, nearest
from stan_infer.system.packages import require
from tests.conftest import ROOT, python

MOTION = ROOT / "examples" / "motion"
MODEL, CLIPS = MOTION / "motion.safetensors", MOTION / "clips"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise RuntimeError('built for numpy 1')", "RuntimeError: built for numpy 1"),
        ("raise AttributeError('no such name')", "AttributeError: no such name"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        ("raise OSError('libx.so: cannot open')", "OSError: libx.so: cannot open"),
        ("import a_module_that_is_absent", "ModuleNotFoundError: No module named"),
        ("def f(:", "SyntaxError: "),
    ],
)
def test_a_package_that_does_not_load(tmp_path, monkeypatch, code, told):
    (tmp_path / "a_broken_package.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingError) as caught:
        require("a_broken_package", "a test", "cpu")
    message = str(caught.value)
    assert f"a test needs a_broken_package, which does not load ({told}" in message
    assert "): pip install --force-reinstall " in message


@pytest.mark.parametrize("module", ["a_module_that_is_absent", "a_module_that_is_absent.part"])
def test_a_package_that_is_absent(module):
    with pytest.raises(MissingError) as caught:
        require(module, "a test", "cpu")
    assert f"a test needs {module} (No module named" in str(caught.value)
    assert "pip install" in str(caught.value) and "--force-reinstall" not in str(caught.value)


@pytest.mark.parametrize("command", ["export", "calibrate"])
def test_commands_whose_onnx_does_not_load(tmp_path, command):
    (tmp_path / "onnx.py").write_text("raise RuntimeError('built for protobuf 3')")
    videos = ["--videos", CLIPS] if command == "calibrate" else []
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    words = (command, MODEL, *videos, "-o", tmp_path / "out")
    done = python("-m", "stan_infer", *words, env=env, code=3)
    assert "needs onnx, which does not load (RuntimeError: built for protobuf 3)" in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_monstrous_name_is_cut_in_the_middle_of_the_message():
    with pytest.raises(InputError) as caught:
        check_word("head", "mean\n" * 20_000, ["mean", "mug"])
    message = str(caught.value)
    assert len(message) < 2000 and message.isprintable()
    assert message.startswith("head 'mean") and message.endswith("is unknown (mean, mug)")


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("Vit-b-32", ["ViT-L-32", "EVA-b-32", "ViT-B-32"], "ViT-B-32"),
        ("vit-b-32", ["ViT-B-16", "ViT-B-32"], "ViT-B-32"),
        ("CPU", ["cuda", "cpu"], "cpu"),
        ("nothing", ["ViT-B-32"], None),
    ],
)
def test_the_nearest_word_is_found_whatever_its_case(word, known, meant):
    assert nearest(word, known) == (f"; did you mean '{meant}'?" if meant else "")


def test_reasons_are_all_told_up_to_a_number():
    assert first_reasons([], "no video was given") == "no video was given"
    assert first_reasons(["a: bad", InputError("b: worse"), "a: bad"], "") == "a: bad; b: worse"
    many = first_reasons((f"{i}: bad" for i in range(100)), "")
    assert many == "0: bad; 1: bad; 2: bad; 3: bad; 4: bad; and 95 more"
