"""Windows that slide, in C++: those of Python's session.stream, frame by frame."""

import shutil
from typing import Any, NamedTuple

import numpy as np
import pytest

import stan_infer as si
from stan_infer.network.model import Stan, init_random
from tests.conftest import relative_error, tiny_config
from tests.cpp.conftest import Program, edit_manifest, make_exported, put
from tests.engines.test_stream import CASES, FP32, windows_of
from tests.hostile import parts as hostile
from tests.verification.folders import calibrated

RIGHT = (
    "nothing wrong",
    "stride > window",
    "windows without end between",
    "a skipped frame is not read",
    "a late frame is not read",
    "the one that it was moved to",
    "a stream of a model that was moved",
    "a stream whose model is gone",
)
CODES = {
    "a call that was cancelled": "cancelled",
    "a call past its deadline": "deadline",
    "a reset that was cancelled": "cancelled",
    "a folder without parts": "bad_folder",
    **dict.fromkeys(RIGHT, "none"),
}
COUNTS = ("taken", "skipped", "repeated", "late", "gaps")
TEXT = {"vocab_size": 49408, "context_positions": 77, "context_length": 32}


@pytest.fixture(params=["plain", "sanitized"])
def program(request):
    return request.getfixturevalue(request.param)


def tiny(seed=1, **changes):
    return init_random(Stan(tiny_config(**changes)), seed).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def split():
    return make_exported(tiny(), split=True, tower="video")


@pytest.fixture(scope="module")
def session(split):
    return si.open_session(split, engine="ort")


def pictures(count, size=(24, 40), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


class Window(NamedTuple):
    """embedding: [E]; frames: [T, E]; scores: of the labels, [n]."""

    first: int
    start: float | None
    end: float | None
    embedding: Any
    frames: Any
    scores: Any


def pushed(program, folder, place, frames, times, *given, order="rgb", embed_dim=24, labels=0):
    """The windows, counts and bytes of the C++ stream; given: window, stride, interval."""
    path = place / "frames"
    path.write_bytes(frames.tobytes())
    given = ["-" if value is None else value for value in given]
    words = [folder, *given, order, frames.shape[2], frames.shape[1], path]
    stdin = "\n".join("-" if time is None else repr(time) for time in times)
    done = program.run("push", *map(str, words), other="stream", stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    *heads, counts, held = [line.split() for line in done.stdout.splitlines()]
    values = np.fromfile(path, np.float32)
    rows = np.split(values, max(1, len(heads)))[: len(heads)]
    found = []
    for (_, first, *ends), row in zip(heads, rows, strict=True):
        mean, each, scores = np.split(row, [embed_dim, len(row) - labels])
        start, end = (None if time == "-" else float(time) for time in ends)
        found.append(Window(int(first), start, end, mean, each.reshape(-1, embed_dim), scores))
    return found, dict(zip(COUNTS, map(int, counts[1:]), strict=True)), int(held[1])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_cases_of_both_languages(program, split, session, tmp_path, case):
    times, t = case["times"], case["window"]
    frames = pictures(len(times))
    given = (t, case["stride"], case["interval"])
    found, counts, held = pushed(program, split, tmp_path, frames, times, *given)
    assert counts == dict.fromkeys(COUNTS, 0) | case["counts"]
    assert held == 2 * t * 2 * 5 * 32 * 4 + 8 * 3 * 16 * 16  # 2 T K N D numbers; pixels
    assert [window[:3] for window in found] == windows_of(case)
    for window, n in zip(found, case["windows"].values(), strict=True):
        whole = session.embed_video(session.prepare(frames[n], sample=False)[None])[0]
        assert relative_error(window.embedding, whole) < FP32
        assert relative_error(window.frames.mean(0), whole) < 1e-5


FORMS = {
    "selfattn": ({}, {}),
    "conv": ({"branch": "conv"}, {}),
    "mug": ({"head": "mug"}, {}),
    "float": ({}, {"input": "float"}),
    "fixed": ({}, {"batch": 2, "frames": 3}),
    "one frame": ({}, {"batch": 1, "frames": 1}),
    "fp16": ({}, {"precision": "fp16"}),
}


def compare(program, engine, folder, place, seed, error=FP32, window=None):
    """Push frames at random times, some late and some behind gaps, through both languages."""
    dice = np.random.default_rng(seed)
    window = window or int(dice.integers(1, 7))
    given = (window, int(dice.integers(1, window + 3)), dice.choice([None, 0.1]))
    steps = dice.choice([0.05, 0.1, 0.13, 0.31, -0.04, 0.1 * window + 1, -9.0], 60,
                        p=[0.2, 0.4, 0.2, 0.1, 0.05, 0.025, 0.025])  # fmt: skip
    times = (100 + np.cumsum(steps)).tolist()
    size = [(24, 40), (16, 16), (37, 16), (9, 70)][seed % 4]
    order = ["rgb", "bgr"][seed % 2]
    frames = pictures(len(times), size, seed)
    here = Program(program.build, True, {**program.environment, "ENGINE": engine})
    found, counts, held = pushed(here, folder, place, frames, times, *given, order=order)
    with si.open_session(folder, engine=engine) as session:
        stream = session.stream(given[0], given[1], interval=given[2], order=order)
        wanted = [w for f, time in zip(frames, times, strict=True) for w in stream.push(f, time)]
        is_mug = session.config.is_mug
    assert wanted and [w[:3] for w in found] == [pytest.approx(w[:3], rel=1e-12) for w in wanted]
    assert (counts, held) == (vars(stream.counts), stream.bytes_held)
    got = np.stack([w.frames if is_mug else w.embedding for w in found])
    assert relative_error(got, np.stack([w.embedding for w in wanted])) < error


@pytest.mark.parametrize("form", FORMS)
def test_equals_pythons_stream(plain, engine, tmp_path, form):
    config, options = FORMS[form]
    folder = make_exported(tiny(**config), split=True, tower="video", **options)
    window = options.get("frames")
    for seed in range(4):
        compare(plain, engine, folder, tmp_path, seed, window=window)


def test_a_folder_in_8_bits(plain, engine, tmp_path):
    folder = calibrated(tiny(), tmp_path / "int8", "int8", split=True)
    for seed in range(2):
        compare(plain, engine, folder, tmp_path, seed, error=1e-5)


def test_labels_in_the_graph(plain, labels, tmp_path):
    folder = make_exported(tiny(**TEXT), split=True, head="classify", labels=labels)
    frames, n = pictures(9), len(labels)
    found, *_ = pushed(plain, folder, tmp_path, frames, [None] * 9, None, 2, None, labels=n)
    with si.open_session(folder, engine="ort") as session:
        t = session.config.frames
        for window in found:
            clip = session.prepare(frames[window.first : window.first + t], sample=False)
            wanted = session.score(labels, clip[None])[:, 0]
            assert relative_error(window.scores, wanted) < 1e-5
    assert [window.first for window in found] == [0, 2]


def test_labels_by_their_embeddings(plain, labels, tmp_path):
    folder = make_exported(tiny(**TEXT, head="mug"), split=True, labels=labels)
    frames, n = pictures(4), len(labels)
    (found,), *_ = pushed(plain, folder, tmp_path, frames, [None] * 4, 4, 1, None, labels=n)
    with si.open_session(folder, engine="ort") as session:
        wanted = session.score(labels, session.prepare(frames, sample=False)[None])[:, 0]
    assert relative_error(found.scores, wanted) < 1e-5


def test_what_callers_get_wrong_is_a_typed_error(program, split, small):
    done = program.run("misuse", split, small, other="stream")
    assert (done.returncode, done.stderr) == (0, "")
    found = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(found) >= 70 and {*CODES} <= {name for name, _, _ in found}
    for name, code, what in found:
        assert code == CODES.get(name, "bad_argument"), (name, code, what)
        assert name in RIGHT or what.isprintable() and what, name
    said = {name: what for name, _, what in found}
    assert f"{small} has no trunk.onnx" in said["a folder without parts"]
    assert "--split" in said["a folder without parts"]
    assert said["window 0"] == "window is 0; allowed are 1 to 64"


def test_a_folder_of_fixed_sizes_is_checked_when_the_stream_is_made(plain, tmp_path):
    folder = make_exported(tiny(), split=True, tower="video", batch=2, frames=3)
    (tmp_path / "frames").write_bytes(b"")
    words = ("push", folder, "4", "1", "-", "rgb", "1", "1", tmp_path / "frames")
    done = plain.run(*words, other="stream", stdin="")
    assert done.stderr == "bad_argument: window is 4; allowed are 3 to 3\n"


def test_windows_longer_than_the_model_has(plain, split, tmp_path):
    folder = shutil.copytree(split, tmp_path / "folder")

    def change(manifest):
        (branch,) = (g for g in manifest["graphs"] if g["role"] == "branch")
        branch["dims"]["frames"] = [1, 65]

    edit_manifest(folder, change)
    (tmp_path / "frames").write_bytes(b"")
    words = ("push", folder, "65", "1", "-", "rgb", "1", "1", tmp_path / "frames")
    done = plain.run(*words, other="stream", stdin="")
    assert done.stderr.startswith("bad_folder: trunk.onnx and branch.onnx do not fit the config")


def test_tensorrt_says_that_it_does_not_stream(plain, split, tmp_path):
    here = Program(plain.build, True, {"ENGINE": "tensorrt"})
    (tmp_path / "frames").write_bytes(b"")
    words = ("push", split, "3", "1", "-", "rgb", "1", "1", tmp_path / "frames")
    done = here.run(*words, other="stream", stdin="")
    assert done.stderr.startswith("bad_argument: TensorRT ")
    assert "use ONNX Runtime or OpenVINO" in done.stderr


def test_memory_is_flat(program, split):
    done = program.run("memory", split, other="stream")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("made", ["plain", "sanitized", "raced"])
def test_threads_share_a_stream(request, made, split):
    done = request.getfixturevalue(made).run("threads", split, other="stream")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("made", ["plain", "sanitized", "raced"])
def test_a_push_that_ends_early_changes_nothing(request, made, split):
    done = request.getfixturevalue(made).run("stream", split, "", other="runtime")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("form", FORMS)
def test_the_self_test_covers_the_parts(plain, engine, form):
    config, options = FORMS[form]
    folder = make_exported(tiny(**config), split=True, tower="video", **options)
    found = plain.json(folder, "--self-test", "--json", "--engine", engine)["stages"]
    (parts,) = (stage for stage in found if stage["stage"] == "parts")
    assert parts["pass"] and parts["error"] < (1e-3 if form == "fp16" else FP32)


def test_the_self_test_finds_a_part_of_another_model(program, split, tmp_path):
    folder = shutil.copytree(split, tmp_path / "folder")
    other = make_exported(tiny(seed=2), split=True, tower="video")
    put(folder, "branch.onnx", (other / "branch.onnx").read_bytes())
    done = program.run(folder, "--self-test")
    assert done.returncode == 4 and "parts" in done.stdout + done.stderr


@pytest.mark.parametrize("role", ["trunk", "branch"])
def test_half_of_the_parts(plain, split, tmp_path, role):
    folder = shutil.copytree(split, tmp_path / "folder")
    (folder / f"{role}.onnx").unlink()

    def change(manifest):
        manifest["graphs"] = [g for g in manifest["graphs"] if g["role"] != role]
        del manifest["files"][f"{role}.onnx"]

    edit_manifest(folder, change)
    done = plain.run(folder, "--self-test")
    assert done.returncode == 2 and f"no {role}.onnx" in done.stderr and "--split" in done.stderr


@pytest.fixture(scope="module")
def more():
    """What hostile folders take parts from."""
    less = make_exported(tiny(branch_layers=1), split=True, tower="video")
    return {"other": make_exported(tiny(seed=2), split=True, tower="video"), "less": less}


# What a graph takes is measured in Python alone.
MEASURED = {f"a branch with {name}" for name in ("outer", "filled", "long_work")}


@pytest.mark.parametrize("case", sorted({*hostile.CASES} - MEASURED))
def test_hostile_parts_are_refused_as_in_python(plain, engine, split, more, tmp_path, case):
    """See tests/hostile/test_parts.py."""
    folder = hostile.write(split, tmp_path / "folder", case, more)
    here = Program(plain.build, True, {**plain.environment, "ENGINE": engine})
    (tmp_path / "frames").write_bytes(pictures(9).tobytes())
    words = ("push", folder, 3, 2, "-", "rgb", 40, 24, tmp_path / "frames")
    done = here.run(*map(str, words), other="stream", stdin="\n".join("-" * 9))
    assert done.returncode == 2 and done.stdout == "", (done.returncode, done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    codes = ("bad_folder: ", "bad_argument: ", "changed: ", "engine: ")
    assert line.isprintable() and line.startswith(codes), line
