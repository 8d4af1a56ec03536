"""The public header: wrong arguments are typed errors, and frames in memory give Python's bytes."""

import numpy as np
import pytest

import stan_infer as si
from tests.cpp.conftest import MOTION, make_exported

av = pytest.importorskip("av")

from stan_infer.video.rgb import upright_rgb  # noqa: E402 (after importorskip)
from tests.video.test_rgb import made  # noqa: E402

CLIP = MOTION / "clips" / "red_cross_moves_left.mp4"
RIGHT = (
    "nothing wrong",
    "own embeddings",
    "an image",
    "a provider",
    "a call that cannot be cancelled",
    "the one that it was moved to",
)
CODES = {
    "a blank text": "bad_text",
    "a text of other bytes": "bad_text",
    "a video that is none": "bad_video",
    "a path with a zero": "bad_video",
    "no folder": "bad_folder",
    "no library": "missing",
    "a provider that this build has not": "missing",
    "a provider that is none": "missing",
    "a provider without name": "missing",
    "one video of two": "bad_video",
    "a call that was cancelled": "cancelled",
    "a call past its deadline": "deadline",
    **dict.fromkeys(RIGHT, "none"),
}


@pytest.fixture(params=["plain", "sanitized"])
def program(request):
    return request.getfixturevalue(request.param)


def misuse(program, folder):
    done = program.run("misuse", folder, face=True)
    assert done.returncode == 0 and said(done) == [], done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_what_callers_get_wrong_is_a_typed_error(program, small):
    found = misuse(program, small)
    assert len(found) >= 72 and {*CODES} <= {name for name, _, _ in found}
    for name, code, what in found:
        assert code == CODES.get(name, "bad_argument"), (name, code, what)
        assert name in RIGHT or what.isprintable() and what, name


@pytest.mark.parametrize("made", ["plain", "sanitized", "raced"])
def test_threads_share_a_model(request, made, small):
    program = request.getfixturevalue(made)
    done = program.run("threads", small, CLIP, face=True)
    assert done.returncode == 0 and said(done) == [], done.stderr


@pytest.fixture(scope="module")
def session(small):
    return si.open_session(str(small), engine="ort")


def clip_of(program, folder, path, raw, form, size, *, gap=0, options="sample", dtype=np.uint8):
    """The clip that the C++ library makes of frames in memory, as bytes of each."""
    path.write_bytes(raw)
    arguments = (form, size[1], size[0], gap, options, path)
    done = program.run("clip", folder, *map(str, arguments), face=True)
    assert done.returncode == 0 and said(done) == [], done.stderr
    return np.fromfile(path, dtype)


def said(done):
    """Lines of standard error, but for FFmpeg's own: its log level is the host's."""
    return [line for line in done.stderr.splitlines() if not line.startswith("[swscaler @")]


def pictures(count, size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


@pytest.mark.parametrize("order", ["rgb", "bgr"])
@pytest.mark.parametrize(
    ("count", "size", "gap"),
    [(1, (48, 64), 0), (3, (64, 64), 7), (30, (37, 113), 0), (9, (200, 90), 1), (20, (1, 1), 0)]
    + [(4, (16, 16), 0), (4, (16, 41), 3), (4, (39, 16), 0)],  # the model's own size
    ids=str,
)
def test_rgb_in_memory(program, small, session, tmp_path, order, count, size, gap):
    frames = pictures(count, size)
    got = clip_of(program, small, tmp_path / "clip", frames.tobytes(), order, size, gap=gap)
    assert got.tobytes() == session.prepare(frames, order=order).tobytes()


def test_all_frames_or_by_time(program, small, session, tmp_path):
    frames = pictures(5, (48, 64))
    got = clip_of(program, small, tmp_path / "a", frames.tobytes(), "rgb", (48, 64), options="all")
    assert got.tobytes() == session.prepare(frames, sample=False).tobytes()
    rng = np.random.default_rng(1)
    for count in (1, 2, 9, 40):
        frames = pictures(count, (64, 64), seed=count)
        times = np.sort(rng.choice(rng.uniform(0, 9, count + 3), count))
        options = " ".join(map(repr, times.tolist()))
        raw = frames.tobytes()
        got = clip_of(program, small, tmp_path / "t", raw, "rgb", (64, 64), options=options)
        assert got.tobytes() == session.prepare(frames, timestamps=times).tobytes()


def test_frames_for_a_graph_of_floats(program, model, tmp_path):
    folder = make_exported(model, input="float")
    session = si.open_session(str(MOTION / "motion.safetensors"))
    frames = pictures(12, (70, 64))
    raw, size = frames.tobytes(), (70, 64)
    got = clip_of(program, folder, tmp_path / "clip", raw, "rgb", size, dtype=np.float32)
    config = session.config
    mean, std = (np.array(v, np.float32) for v in (config.mean, config.std))
    wanted = (session.prepare(frames).astype(np.float32) - mean) / std
    np.testing.assert_array_equal(got, wanted.transpose(0, 3, 1, 2).reshape(-1))


def planes(frame):
    """Y, U and V of a frame, each [rows, columns]."""
    found = []
    for plane in frame.planes:
        lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        found.append(lines[:, : plane.width])
    return found


def raw_of(frame, form):
    y, u, v = planes(frame)
    parts = [y, np.stack([u, v], axis=-1)] if form == "nv12" else [y, u, v]
    return b"".join(np.ascontiguousarray(part).tobytes() for part in parts)


@pytest.mark.parametrize("form", ["i420", "nv12"])
def test_decoded_frames_give_the_clip_of_their_file(program, small, session, tmp_path, form):
    with av.open(str(CLIP)) as container:
        frames = list(container.decode(video=0))
    assert frames[0].format.name == "yuv420p"
    raw = b"".join(raw_of(frame, form) for frame in frames)
    size = (frames[0].height, frames[0].width)
    got = clip_of(program, small, tmp_path / "clip", raw, form, size, gap=3)
    assert got.tobytes() == session.read_clip(CLIP).tobytes()


@pytest.mark.parametrize("form", ["i420", "nv12"])
@pytest.mark.parametrize("size", [(48, 64), (47, 63), (2, 16), (1, 1)], ids=str)
@pytest.mark.parametrize("matrix", [(5, ""), (1, ":709"), (9, ":2020")], ids=lambda m: f"{m[0]}")
@pytest.mark.parametrize("limits", [(1, ""), (2, ":full")], ids=lambda m: f"{m[0]}")
def test_colours_are_those_of_a_video(plain, small, session, tmp_path, form, size, matrix, limits):
    frame = made("yuv420p", size[1], size[0], matrix=matrix[0], limits=limits[0])
    words = form + matrix[1] + limits[1]
    got = clip_of(plain, small, tmp_path / "clip", raw_of(frame, form), words, size, gap=5)
    assert got.tobytes() == session.prepare([upright_rgb(frame, CLIP)]).tobytes()
