"""Calls that end early, and ONNX Runtime as the caller wants it."""

import re

import pytest

from tests.conftest import ROOT
from tests.cpp.conftest import MOTION, Program, build, unavailable

CLIP = MOTION / "clips" / "red_cross_moves_left.mp4"
HEADER = ROOT / "cpp/third_party/onnxruntime/onnxruntime_c_api.h"


@pytest.fixture(params=["plain", "sanitized", "raced"])
def program(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("what", ["calls", "loop", "own"])
def test_the_caller_decides(program, small, what):
    done = program.run(what, small, CLIP, other="runtime")
    assert done.returncode == 0, done.stderr  # FFmpeg logs what it was kept from


def test_openvino_ends_too(plain, small):
    if not plain.openvino:
        unavailable("openvino is not installed")
    here = Program(plain.build, True, {"ENGINE": "openvino"})
    done = here.run("loop", small, CLIP, other="runtime")
    assert done.returncode == 0, done.stderr  # FFmpeg logs what it was kept from


def test_reading_a_video_ends(program):
    done = program.run("cancel", CLIP, probe=True)
    assert done.returncode == 2 and done.stderr == "error: the call was cancelled\n"


def test_turns(program):
    found = program.json("turns", probe=True)
    assert found["together"] == 0 and found["taken"] == found["counted"] >= 100


def test_only_what_the_oldest_library_has_is_called():
    """The table of a library of version 18 ends with that version's last function."""
    text = HEADER.read_text()
    known = text[: text.index("ORT_API2_STATUS(AddExternalInitializersFromFilesInMemory")]
    source = (ROOT / "cpp/src/backend_ort.cpp").read_text()
    used = {*re.findall(r"\bapi_?\.(\w+)", source)}
    assert {"Run", "RunOptionsSetTerminate", "CreateSessionFromArray"} <= used
    functions = {*re.findall(r"(?:ORT_API2_STATUS\(|ORT_API_CALL ?\* ?)(\w+)", known)}
    releases = {f"Release{name}" for name in re.findall(r"ORT_CLASS_RELEASE\((\w+)\)", known)}
    assert used <= functions | releases


@pytest.mark.parametrize("name", ["CUDA", "cuda", "TensorRT", "XNNPACK", "CoreML", "NNAPI", "none"])
def test_a_provider_that_is_not_there_is_said(plain, small, name):
    done = plain.run(small, CLIP, "--provider", name)
    assert done.returncode == 3 and done.stdout == ""
    assert f"has no execution provider '{name}'; it has: " in done.stderr
    assert "CPU" in done.stderr


def test_a_provider_that_is_there(plain, small):
    wanted = plain.json(small, CLIP, "--json")
    assert plain.json(small, CLIP, "--json", "--provider", "cpu") == wanted
    done = plain.run(small, CLIP, "--provider", "cpu", "--engine", "openvino")
    assert done.returncode == 2 and "--provider" in done.stderr


def test_openvino_alone(plain, small, tmp_path):
    if not plain.openvino:
        unavailable("openvino is not installed")
    settings = ("STAN_INFER_ONNXRUNTIME=OFF", "STAN_INFER_TEXTS=OFF")
    made = build(tmp_path, *settings, openvino=True, source=ROOT / "cpp") / "stan_classify"
    assert b"OrtGetApiBase" not in made.read_bytes()
    alone = Program(tmp_path, True)
    wanted = plain.json(small, CLIP, "--json", "--engine", "openvino")
    assert alone.json(small, CLIP, "--json", "--engine", "openvino", other=made) == wanted
    done = alone.run(small, CLIP, other=made)
    assert done.returncode == 3 and "-DSTAN_INFER_ONNXRUNTIME=ON" in done.stderr
