"""A stranger's folder ends in one line and exit code 2 or 4, before a runtime sees it."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass

import onnx
import pytest

from stan_infer.checkpoints.load import save_model
from stan_infer.checkpoints.presets import preset
from stan_infer.network.model import Stan, init_random
from tests.conftest import write_video
from tests.exported import exported
from tests.hostile import folders as hostile

GIB = 2**30


@dataclass(frozen=True)
class Ended:
    code: int
    err: str
    peak: int  # bytes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    model = init_random(Stan(preset("stan-tiny")), seed=3)
    save_model(model, folder / "tiny.safetensors")
    (folder / "clean").symlink_to(exported(model))
    (folder / "clips").mkdir()
    for i in range(2):
        write_video(folder / "clips" / f"{i}.mp4", seed=i)
    return folder


def measured(*words) -> Ended:
    """Run a command to its end in a process that then knows its peak memory."""
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True)\n"
        "sys.stderr.buffer.write(done.stderr)\n"
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)\n"
    )
    command = [sys.executable, "-c", code, sys.executable, "-m", "stan_infer", *map(str, words)]
    done = subprocess.run(command, capture_output=True, timeout=300)
    numbers = done.stdout.split()
    return Ended(int(numbers[0]), done.stderr.decode(), int(numbers[1]))


@pytest.fixture(scope="module")
def clean(place):
    found = measured("embed", place / "clean", place / "clips", "-o", place / "clean.npz")
    assert found.code == 0, found.err
    return found


def check(ended, clean, codes=(2, 4)):
    assert ended.code in codes, ended.err
    *said, last = ended.err.splitlines()  # what was done before, and the error
    assert last.startswith("error: ") and not any("error" in line for line in said), ended.err
    assert all(line.isprintable() for line in (*said, last)), ended.err
    assert ended.peak <= clean.peak + GIB


# Graphs are refused before a runtime opens them, so a few of each kind suffice for the second.
BOTH = ("endless_loop", "outer", "grows_with_batch", "data_decides", "one_row", "escapes")
CASES = [*((c, "ort") for c in hostile.GRAPHS), *((c, "openvino") for c in BOTH)]


@pytest.mark.parametrize(("case", "engine"), CASES)
def test_graphs(place, clean, case, engine, tmp_path):
    folder = hostile.write(place / "clean", tmp_path / case, case)
    words = ["--engine", engine, "--batch", "2", "-o", tmp_path / "o.npz"]
    check(measured("embed", folder, place / "clips", *words), clean)
    assert not (tmp_path / "o.npz").exists()


# `run` and `inspect` open a folder through the same door; the others read more of it.
READERS = [
    *((c, "run") for c in hostile.FOLDERS),
    ("golden_elsewhere", "calibrate"),
    ("golden_bomb", "calibrate"),
    ("golden_bomb", "triton-server"),
    ("deep", "inspect"),
    ("sparse_graph", "inspect"),
]


@pytest.mark.parametrize(("case", "command"), READERS)
def test_folders(place, clean, case, command, tmp_path):
    folder = hostile.write(place / "clean", tmp_path / case, case)
    words = {
        "inspect": ["inspect", folder],
        "run": ["run", folder, place / "clips" / "0.mp4", "--text", "a"],
        "calibrate": [
            *("calibrate", folder, "--videos", place / "clips", "-o", tmp_path / "o", "--force")
        ],
        "triton-server": ["export", folder, "--format", "triton-server", "-o", tmp_path / "o"],
    }[command]
    ended = measured(*words)
    if case == "golden_bomb" and command != "calibrate":
        assert ended.code == 0 and ended.peak <= clean.peak + GIB  # nothing else reads it
        return
    check(ended, clean)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("case", ["endless_loop", "outer", "long_work", "reads_outside"])
def test_verify_says_which_step(place, clean, case, tmp_path):
    folder = hostile.write(place / "clean", tmp_path / case, case)
    ended = measured("verify", place / "tiny.safetensors", folder)
    assert ended.code == 4 and "Traceback" not in ended.err and ended.peak <= 2 * GIB
    assert "\x1b" not in ended.err


@pytest.mark.parametrize("number", [2, 15])
def test_a_runtime_that_keeps_the_main_thread_is_ended(number, place, tmp_path):
    """Ctrl-C and SIGTERM, while ONNX Runtime is in a loop of 2^62 rounds."""
    folder = hostile.write(place / "clean", tmp_path / "loop", "endless_loop")
    code = (
        "import sys, numpy, onnxruntime\n"
        "from stan_infer.system.signals import end_on_signals\n"
        "end_on_signals()\n"
        "session = onnxruntime.InferenceSession(sys.argv[1])\n"
        "print('running', flush=True)\n"
        "session.run(None, {'video': numpy.zeros((1, 2, 64, 64, 3), 'uint8')})\n"
    )
    command = [sys.executable, "-c", code, folder / "video.onnx"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"running\n"
        time.sleep(3)  # until the runtime has the main thread
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    how = {2: "interrupted", 15: "ended by SIGTERM"}[number]
    end = "nothing was written; the next start removes temporary files"
    assert err.decode() == f"{how}: {end}\n"


def test_openvino_that_keeps_pythons_lock_is_ended(tmp_path):
    """A chain that its front end takes a minute for, opened without the check that refuses it."""
    nodes = [onnx.helper.make_node("Sqrt", [f"v{i}"], [f"v{i + 1}"]) for i in range(30_000)]
    ends = [onnx.helper.make_tensor_value_info(n, 1, [1]) for n in ("v0", "v30000")]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, ir_version=10), tmp_path / "m.onnx")
    code = (
        "import sys, openvino\n"
        "from pathlib import Path\n"
        "from stan_infer.engines.ov_session import compiled_model\n"
        "from stan_infer.system.signals import end_on_signals\n"
        "end_on_signals()\n"
        "print('opening', flush=True)\n"
        "compiled_model(Path(sys.argv[1]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "m.onnx"], stdout=-1)
    try:
        assert process.stdout.readline() == b"opening\n"
        time.sleep(3)
        process.terminate()
        assert process.wait(timeout=120) in (-15, 128 + 15)
    finally:
        process.kill()
        process.wait()
