"""The C++ program's TensorRT back end, on a stand-in for NVIDIA's libraries that computes."""

import json
import re
import shutil

import pytest

from stan_infer.tensorrt_plans.build import build_plans
from stan_infer.tensorrt_plans.plan_file import sidecar_path
from tests.conftest import ROOT, edit_json, flip
from tests.cpp.conftest import Program
from tests.tensorrt_plans.conftest import put_in_place
from tests.tensorrt_plans.fake import World, fake_tensorrt


@pytest.fixture
def program(plain):
    """stan_classify with STAN_INFER_TENSORRT, against the stand-in's headers and library."""
    return plain


@pytest.fixture
def folder(exported, tmp_path, monkeypatch):
    """The exported demo with plans, as the stand-in of Python builds them for 10.16."""
    copy = shutil.copytree(exported, tmp_path / "motion")
    put_in_place(fake_tensorrt("tensorrt-10.16", World()), monkeypatch)
    build_plans(copy, "trt")
    return copy


def clip():
    return next((ROOT / "examples" / "motion" / "clips").glob("*.mp4"))


def test_the_plan_gives_what_onnx_runtime_gives(program, folder):
    texts = ("--text", "a shape moves left", "--text", "a shape grows")
    for options in ((), texts):
        wanted = program.json(folder, clip(), *options, "--json")
        got = program.json(folder, clip(), *options, "--json", "--engine", "tensorrt")
        session = got.pop("session")
        assert session["engine"] == "trt" and session["tensorrt"] == "10.16.1"
        wanted.pop("session")
        assert got == wanted and len(got["scores"]) == (2 if options else 5)


def test_the_self_test_runs_through_the_plans(program, folder):
    done = program.json(folder, "--self-test", "--json", "--engine", "tensorrt")
    assert all(stage["pass"] for stage in done["stages"])
    assert "TensorRT 10.16.1 (preprocessing and score: ONNX Runtime" in done["engine"]


@pytest.mark.parametrize(
    ("settings", "code", "words"),
    [
        ({"sm": "120"}, 2, "no plan for video is for TensorRT 10.16.1 on sm_120; there are"),
        ({"version": "101700"}, 2, "is for TensorRT 10.17.0 on sm_89; there are engines/video"),
        ({"version": "110400"}, 3, "TensorRT 11 is not the one that this program was built for"),
        ({"fault": "no gpu"}, 3, "no CUDA-capable device is detected; an NVIDIA GPU"),
        ({"fault": "memory"}, 3, "CUDA: memory: out of memory"),
        ({"fault": "deserialise"}, 3, "does not take engines/video.*version tag"),
        ({"fault": "context"}, 3, "TensorRT cannot run engines/video"),
        ({"fault": "run"}, 3, "cannot run engines/video.*an illegal memory access"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said(program, folder, settings, code, words):
    environment = {f"STAND_IN_{k.upper()}": v for k, v in settings.items()}
    here = Program(program.build, program.openvino, environment)
    done = here.run(folder, clip(), "--engine", "tensorrt")
    assert done.returncode == code, done.stderr
    assert re.search(words, done.stderr), done.stderr


def sidecar(folder, role="video"):
    (path,) = (folder / "engines").glob(f"{role}.*.plan")
    return path, sidecar_path(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": "2.0"}, "is malformed (the schema)"),
        ({"profiles": [{"video": [[1], [1, 2], [1]]}]}, "is malformed (a profile's ranks)"),
        ({"profiles": 3}, "is malformed"),
        ({"plan_bytes": -1}, "is malformed (a number)"),
        ({"plan_bytes": 7}, "7"),
        ({"trt_version": [1e300, 1, 1]}, "is malformed (a number)"),
        ({"trt_version": [10]}, "is malformed"),
        ({"built_on": None}, "is malformed"),
        ({"onnx_sha256": "0"}, "was built from another export than the folder's"),
        ({"manifest_sha256": "0"}, "was built from another export than the folder's"),
        ({"plan_sha256": "0" * 64}, "engines/video"),
        ({"flavor": "tensorrt_rtx"}, "holds no plan of TensorRT for video"),
    ],
    ids=str,
)
def test_sidecars_of_strangers(program, folder, changes, words):
    _, beside = sidecar(folder)
    edit_json(beside, **changes)
    done = program.run(folder, clip(), "--engine", "tensorrt")
    assert done.returncode in (2, 4) and words in done.stderr, done.stderr


def test_a_plan_that_was_changed_is_not_run(program, folder):
    path, _ = sidecar(folder)
    flip(path)
    done = program.run(folder, clip(), "--engine", "tensorrt")
    assert done.returncode in (2, 4) and "engines/video" in done.stderr
    path.write_bytes(path.read_bytes()[:100])
    done = program.run(folder, clip(), "--engine", "tensorrt")
    assert done.returncode == 2 and "100 bytes" in done.stderr
    path.unlink()
    path.symlink_to("/etc/passwd")
    done = program.run(folder, clip(), "--engine", "tensorrt")
    assert done.returncode == 2 and "engines/video" in done.stderr


def test_a_shape_outside_the_profiles(program, folder):
    _, beside = sidecar(folder)
    values = json.loads(beside.read_text())
    ((_, shapes),) = values["profiles"][0].items()
    small = [[1, 1, *s[2:]] for s in shapes]
    beside.write_text(json.dumps(values | {"profiles": [{"video": small}]}))
    done = program.run(folder, clip(), "--engine", "tensorrt")
    assert done.returncode == 2 and "has no profile for video" in done.stderr, done.stderr


def test_a_program_without_tensorrt_says_how_to_get_it(sanitized, folder):
    done = sanitized.run(folder, clip(), "--engine", "tensorrt")
    assert done.returncode == 3 and "-DSTAN_INFER_TENSORRT=ON -DTENSORRT_ROOT" in done.stderr
    done = sanitized.run(folder, clip(), "--engine", "tensort")
    assert done.returncode == 2 and "allowed are ort, openvino and tensorrt" in done.stderr
