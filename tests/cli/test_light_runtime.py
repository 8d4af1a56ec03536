"""A folder runs with extra `runtime` alone, and the command line imports nothing heavy."""

import json
import os

import numpy as np
import pytest

import stan_infer as si
from tests.conftest import ROOT, python
from tests.exported import exported
from tests.processes import run_commands

MOTION = ROOT / "examples" / "motion"
HEAVY = ("torch", "torchvision", "open_clip", "onnx", "onnxscript", "openvino")
FP32 = 1e-5

# Read by every Python that has this file's folder on its path, so the decoding child obeys as well.
BLOCK = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)", name=name)
sys.meta_path.insert(0, Absent())
"""

SESSION = f"""
import sys
import numpy as np
import stan_infer as si
folder, video, out = sys.argv[1:]
session = si.open_session(folder, engine="ort", threads=1)
clip = session.read_clip(video)
texts = ["a shape blinks", "a shape moves left"]
np.savez(out, video=session.embed_video(clip[None]), scores=session.score(texts, clip[None]))
print([m for m in {HEAVY!r} if m in sys.modules])
"""


@pytest.fixture(scope="module")
def folder():
    return exported(si.load_model(MOTION / "motion.safetensors"))


@pytest.fixture(scope="module")
def blocked(tmp_path_factory):
    """An environment in which the heavy packages cannot be imported, by any child either."""
    block = tmp_path_factory.mktemp("block")
    (block / "sitecustomize.py").write_text(BLOCK)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(block), str(ROOT)])}


def test_a_folder_runs_where_torch_cannot_be_imported(blocked, folder, tmp_path):
    """`run`, `embed` and open_session give what they give with everything installed."""
    video = MOTION / "clips" / "cyan_bar_blinks.mp4"
    main = ("-m", "stan_infer")
    labels = ("--labels", MOTION / "labels.txt")
    options = {"env": blocked, "cwd": tmp_path}
    done = python(*main, "run", folder, video, "--engine", "ort", *labels, "--json", **options)
    record = json.loads(done.stdout)
    assert record["scores"][0]["text"] == "a shape blinks"
    assert record["session"]["engine"] == "ort"

    arrays = tmp_path / "e.npz"
    python(*main, "embed", folder, video, "--engine", "ort", "-o", arrays, **options)
    session = si.open_session(folder, engine="ort")
    clip = session.read_clip(video)[None]
    wanted = session.embed_video(clip)
    assert np.abs(np.load(arrays)["embeddings"] - wanted).max() < FP32 * np.abs(wanted).max()

    assert python("-c", SESSION, folder, video, tmp_path / "s.npz", **options).stdout == "[]\n"
    found = np.load(tmp_path / "s.npz")
    assert np.abs(found["video"] - wanted).max() < FP32 * np.abs(wanted).max()
    scores = session.score(["a shape blinks", "a shape moves left"], clip)
    assert np.abs(found["scores"] - scores).max() < FP32


def test_a_file_that_is_no_checkpoint_is_told_before_torch(blocked, tmp_path):
    wrong = tmp_path / "wrong.txt"
    wrong.write_text("not weights")
    commands = (
        ["run", wrong, MOTION / "clips", "--text", "a shape blinks"],
        ["run", wrong, MOTION / "clips", "--text", "a", "--engine", "triton"],
        ["convert", wrong, tmp_path / "x.safetensors"],
        ["export", wrong, "-o", tmp_path / "x"],
        ["calibrate", wrong, "--videos", MOTION / "clips", "-o", tmp_path / "x"],
        ["embed", wrong, MOTION / "clips", "-o", tmp_path / "x.npz"],
        ["verify", wrong, MOTION / "motion.safetensors"],
        ["bench", wrong],
    )
    ended = run_commands(commands, env=blocked, cwd=tmp_path)
    assert len(ended) == len(commands)
    for err, code in ended:
        assert code == "2" and "wrong.txt" in err and "pip install" not in err, err


NOT_AT_START = "torch onnxruntime onnx cv2 av decord tokenizers open_clip numpy".split()


@pytest.mark.parametrize("args", [["--help"], ["bench", "--help"], ["--version"], []])
def test_help_imports_nothing_heavy(args):
    code = (
        "import sys; sys.argv = ['stan-infer', *sys.argv[1:]]\n"
        "from stan_infer.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [m for m in {NOT_AT_START!r} if m in sys.modules])"
    )
    done = python("-c", code, *args)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


def test_importing_the_package_is_light():
    code = f"import sys, stan_infer; print([m for m in {NOT_AT_START!r} if m in sys.modules])"
    assert python("-c", code).stdout.strip() == "[]"


def test_public_names_resolve():
    import stan_infer as si

    for name in dir(si):
        assert getattr(si, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'exprt_model'"):
        _ = si.exprt_model
