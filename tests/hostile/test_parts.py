"""A stranger's folder with trunk and branch ends in one line, before anything is written."""

import numpy as np
import pytest

import stan_infer as si
from stan_infer.network.model import Stan, init_random
from tests.conftest import ROOT, python, tiny_config
from tests.exported import exported
from tests.hostile.parts import CASES, write


def split(seed=1, **changes):
    model = init_random(Stan(tiny_config(**changes)), seed).eval().requires_grad_(False)
    return exported(model, split=True, tower="video")


@pytest.fixture(scope="module")
def more():
    return {"other": split(seed=2), "less": split(branch_layers=1)}


@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize("case", CASES)
def test_a_stream_is_refused(more, tmp_path, case, engine):
    folder = write(split(), tmp_path / "folder", case, more)
    frames = np.random.default_rng(0).integers(0, 256, (9, 24, 40, 3), np.uint8)
    with (
        pytest.raises((si.InputError, si.CheckError)) as error,
        si.open_session(folder, engine=engine) as session,
    ):
        session.stream(3, 2).extend(frames)
    said = str(error.value)
    assert said.isprintable() and 20 < len(said) < 1200, said
    assert any(w in said for w in ("trunk", "branch", "manifest", "config", "'dims'")), said


def test_a_folder_that_is_right_streams(more):
    frames = np.zeros((9, 24, 40, 3), np.uint8)
    for folder in (split(), *more.values()):
        with si.open_session(folder, engine="ort") as session:
            assert len(session.stream(3, 2).extend(frames)) == 4


@pytest.mark.parametrize(
    ("case", "out"), [("swapped files", "o.npz"), ("no trunk.onnx", "library")]
)
def test_the_command_writes_nothing(videos, more, tmp_path, case, out):
    folder = write(split(), tmp_path / "folder", case, more)
    words = ("embed", folder, videos, "--windows", "0.6:0.3:grid", "-o", tmp_path / out)
    done = python("-m", "stan_infer", *words, code=None, cwd=ROOT)
    assert done.returncode in (2, 4) and done.stderr.startswith("error: "), done.stderr
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / out).exists()
