"""Windows that slide: embeddings of the whole network, and what becomes of every frame."""

import json

import numpy as np
import pytest
import torch

import stan_infer as si
from stan_infer.artefacts.parts import CHUNK
from stan_infer.engines.stream import StreamCounts
from stan_infer.errors import InputError
from stan_infer.network.model import Stan, init_random
from tests.conftest import ROOT, clips, relative_error, tiny_config
from tests.exported import exported

FP32 = 2e-6  # relative to the largest value
# Times of frames, the numbers of those that each window takes, by its own first number, and counts.
# spans: where windows begin and end, if a frame stands for several times of the grid.
CASES = json.loads((ROOT / "tests/engines/stream_cases.json").read_text())


def windows_of(case):
    """Of each window its number, start and end."""
    times = case["times"]
    if spans := case.get("spans"):
        return [pytest.approx((int(k), *s), rel=0, abs=1e-9) for k, s in spans.items()]
    return [(int(k), times[n[0]], times[n[-1]]) for k, n in case["windows"].items()]


def frames_of(count, seed=0):
    """Frames [N, S, S, 3] which no two are alike."""
    return clips(1, count, 16, seed=seed)[0]


HEADS = [{"branch": "selfattn"}, {"branch": "conv"}, {"head": "mug"}]


def opened(kind, model):
    if kind == "eager":
        return si.open_session(model)
    folder = exported(model, split=True, input="float" if kind == "ort float" else "uint8")
    return si.open_session(folder, engine=kind.split()[0])


@pytest.fixture(scope="module", params=HEADS, ids=[next(iter(h.values())) for h in HEADS])
def model(request):
    return init_random(Stan(tiny_config(**request.param)), seed=1).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["eager", "ort", "ort float", "openvino"])
def session(request, model):
    with opened(request.param, model) as session:
        yield session


@pytest.mark.parametrize(("window", "stride"), [(1, 1), (3, 1), (3, 2), (4, 4), (2, 5), (12, 3)])
def test_equals_the_whole_network(session, window, stride):
    frames = frames_of(3 * window + 17, seed=window)
    stream, found = session.stream(window, stride), []
    dice = np.random.default_rng(stride)
    at = 0
    while at < len(frames):  # one, several, more than pass the trunk at once
        n = int(dice.integers(1, CHUNK + 4))
        given = frames[at : at + n].copy()
        found += stream.extend(given)
        given[:] = 0  # the caller's own again: the stream keeps what it needs
        at += n
    starts = [*range(0, len(frames) - window + 1, stride)]
    assert [w.first for w in found] == starts
    wanted = session.embed_video(np.stack([frames[i : i + window] for i in starts]))
    assert relative_error(np.stack([w.embedding for w in found]), wanted) < FP32
    assert stream.counts.taken == len(frames)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_cases(model, case):
    """tests/cpp/test_stream.py holds the C++ library to the same table."""
    times, t = case["times"], case["window"]
    frames = frames_of(len(times))
    with si.open_session(model) as session:
        stream = session.stream(t, case["stride"], interval=case["interval"])
        found = [w for frame, time in zip(frames, times, strict=True)
                 for w in stream.push(frame, time)]  # fmt: skip
        assert stream.counts == StreamCounts(**case["counts"])
        # 2 T K N D numbers of 4 bytes, and 8 frames of 3 S S bytes
        assert stream.bytes_held == 2 * t * 2 * 5 * 32 * 4 + 8 * 3 * 16 * 16
        numbers = [*case["windows"].values()]
        assert [(w.first, w.start, w.end) for w in found] == windows_of(case)
        for window, n in zip(found, numbers, strict=True):
            whole = session.embed_video(frames[n][None])[0]
            assert relative_error(window.embedding, whole) < FP32


def test_240_frames_a_second_pass_the_trunk_as_seldom_as_five(model):
    with si.open_session(model) as session:
        stream, frame = session.stream(3, 3, interval=0.2), frames_of(1)[0]
        found = [w for i in range(960) for w in stream.push(frame, i / 240)]
        assert stream.counts.taken == 20 and len(found) == 6
        assert found[1].start == pytest.approx(0.6, abs=1e-6)


def test_frames_between_the_times_of_the_grid_are_not_touched(model):
    with si.open_session(model) as session:
        stream = session.stream(2, interval=1.0)
        stream.push(frames_of(1)[0], 0.0)
        assert stream.push(None, 0.5) == [] and stream.counts.skipped == 1


def test_what_is_refused_changes_nothing(model):
    with si.open_session(model) as session:
        for given, word in (
            ({"window": 0}, "window"),
            ({"window": 65}, "window"),
            ({"stride": 0}, "stride"),
            ({"interval": 0}, "interval"),
            ({"interval": float("nan")}, "interval"),
            ({"interval": 1e-300}, "interval"),
            ({"at_once": 0}, "at_once"),
            ({"at_once": 9}, "at_once"),
            ({"order": "gbr"}, "order"),
        ):
            with pytest.raises(InputError, match=word):
                session.stream(**given)
        frames = frames_of(4)
        stream = session.stream(3)
        stream.extend(frames[:2])
        for bad in (frames[0].astype(np.float32), frames[0][..., 0], "x"):
            with pytest.raises(InputError):
                stream.extend([frames[2], bad])
        (window,) = stream.push(frames[2])
        assert relative_error(window.embedding, session.embed_video(frames[None, :3])[0]) < FP32
        timed = session.stream(3, interval=1.0)
        for times in (None, [1.0], [0.0, float("inf")], [0, "1"], [0, 1e308], [0, float("nan")]):
            with pytest.raises(InputError, match="time"):
                timed.extend(frames[:2], times)
    with pytest.raises(InputError, match="closed"):
        stream.push(frames[3])


def counting(session, monkeypatch):
    """The parts of a session, and of each trunk call how many frames it had."""
    parts, sizes = session._parts(), []
    trunk = parts.trunk
    monkeypatch.setattr(session, "_parts", lambda: parts)
    monkeypatch.setattr(parts, "trunk", lambda x: sizes.append(len(x)) or trunk(x))
    return parts, sizes


@pytest.mark.parametrize(
    ("stride", "at_once", "wanted"),
    [
        (1, 8, [8, 2, *[1] * 15]),
        (4, 8, [8, 2, 4, 4, 4]),  # the last three are in no window
        (12, 8, [8, 2, 8, 4]),
        (4, 3, [3, 3, 3, 1, 3, 1, 3, 1, 3, 1, 3]),
        (4, 1, [1] * 25),
    ],
)
def test_frames_wait_until_a_window_is_full(tiny_model, monkeypatch, stride, at_once, wanted):
    frames = frames_of(25)
    with si.open_session(tiny_model) as session:
        _, sizes = counting(session, monkeypatch)
        stream = session.stream(10, stride, at_once=at_once)
        found = {i: w for i, x in enumerate(frames) for w in stream.push(x)}
        assert sizes == wanted and [*found] == [*range(9, 25, stride)]
        for i, w in found.items():
            whole = session.embed_video(frames[None, i - 9 : i + 1])[0]
            assert relative_error(w.embedding, whole) < FP32
        last, whole = stream.last(), session.embed_video(frames[None, 15:])[0]
        if stride > 1:  # else it was given
            assert last.first == 15 and relative_error(last.embedding, whole) < FP32
        assert stream.last() is None


def test_windows_begin_anew_where_the_trunk_fails(tiny_model, monkeypatch):
    frames = frames_of(20)
    with si.open_session(tiny_model) as session:
        parts, _ = counting(session, monkeypatch)
        stream = session.stream(4, 2)
        assert [w.first for w in stream.extend(frames[:5])] == [0]
        with monkeypatch.context() as patch:
            patch.setattr(parts, "trunk", lambda x: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                stream.push(frames[5])
        assert stream.last() is None
        found = stream.extend(frames[6:])
        assert [w.first for w in found] == [*range(6, 17, 2)]
        for w in found:
            whole = session.embed_video(frames[None, w.first : w.first + 4])[0]
            assert relative_error(w.embedding, whole) < FP32


def test_a_folder_without_the_parts_says_what_helps(folder):
    with si.open_session(folder, engine="ort") as session:
        with pytest.raises(InputError, match="--split"):
            session.stream()


def test_a_folder_for_one_frame(tiny_model):
    with si.open_session(exported(tiny_model, split=True, frames=1, batch=1), engine="ort") as s:
        frames = frames_of(3)
        found = s.stream(1).extend(frames)
        wanted = np.concatenate([s.embed_video(frame[None, None]) for frame in frames])
        assert relative_error(np.stack([w.embedding for w in found]), wanted) < FP32


def test_a_folder_of_fixed_sizes(tiny_model):
    with si.open_session(exported(tiny_model, split=True, frames=3, batch=2), engine="ort") as s:
        with pytest.raises(InputError, match="window is 4; .* from 3 to 3"):
            s.stream(4)
        frames, stream = frames_of(11), s.stream(3, 4)
        found = stream.extend(frames)  # more than pass the trunk at once
        wanted = s.embed_video(np.stack([frames[i : i + 3] for i in (0, 4)]))
        got = np.stack([w.embedding for w in found[:2]])
        assert [w.first for w in found] == [0, 4, 8] and relative_error(got, wanted) < FP32


def test_the_window_of_the_model_is_the_default(model):
    with si.open_session(model) as session:
        found = session.stream().extend(frames_of(model.config.frames + 1))
        assert session.stream().window == model.config.frames and len(found) == 2


def test_the_order_of_channels(model):
    frames = frames_of(3)
    with si.open_session(model) as session:
        (window,) = session.stream(3, order="bgr").extend(frames[..., ::-1])
        assert relative_error(window.embedding, session.embed_video(frames[None])[0]) < FP32


def test_a_frame_that_is_refused_leaves_times_and_counts(model):
    """Also where frames before it in the same call were taken, skipped, late or behind a gap."""
    frames = frames_of(8)
    with si.open_session(model) as session:
        stream, other = (session.stream(2, interval=1.0) for _ in range(2))
        for one in (stream, other):
            one.extend(frames[:2], [0.0, 1.0])
        for times in ([2.0, 3.0], [1.5, 2.0], [0.5, 2.0], [3.0, 4.0], [50.0, 51.0], [-50.0, 2.0]):
            with pytest.raises(InputError):
                stream.extend([frames[2], "no frame"], times)
            assert stream.counts == other.counts
        rest = [1.7, 2.0, 3.0, 5.0, 20.0, 21.0]
        found, wanted = (one.extend(frames[2:], rest) for one in (stream, other))
        assert stream.counts == other.counts and len(found) > 3
        assert [w[:3] for w in found] == [w[:3] for w in wanted]


@pytest.mark.parametrize("kind", ["eager", "ort", "openvino"])
def test_take_and_last_are_of_an_open_session_and_of_whole_frames(model, kind):
    frames = frames_of(4)
    with opened(kind, model) as session:
        stream = session.stream(3, 3)
        for bad in (frames.astype(np.float32), frames[:, :-1], frames[0], frames[..., :1]):
            with pytest.raises(InputError, match="push takes others"):
                stream.take(bad)
        assert [w.first for w in stream.take(frames)] == [0]
    for call in (stream.last, lambda: stream.take(frames), lambda: stream.take(frames[:0])):
        with pytest.raises(InputError, match="closed"):
            call()


def test_the_end_of_a_recording_is_in_a_window_once(model):
    frames = frames_of(11)
    with si.open_session(model) as session:
        for stride, firsts, rest in ((5, [0, 5], 8), (2, [0, 2, 4, 6, 8], None), (9, [0], 8)):
            stream = session.stream(3, stride)
            assert stream.last() is None
            found = stream.take(frames)
            assert [w.first for w in found] == firsts
            last = stream.last()
            assert (last and last.first) == rest and stream.last() is None
            if last is not None:
                wanted = session.embed_video(frames[None, 8:])[0]
                assert relative_error(last.embedding, wanted) < FP32
            stream.restart()
            assert stream.take(frames[:2]) == [] and stream.last() is None
            (window,) = stream.take(frames[2:3])
            wanted = session.embed_video(frames[None, :3])[0]
            assert window.first == 11 and relative_error(window.embedding, wanted) < FP32


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision(model, precision):
    frames, size = frames_of(4), 3 * 2 * 5 * 32
    with si.open_session(model, precision=precision) as session:
        stream = session.stream(3)
        found = stream.extend(frames)
        assert stream.bytes_held == 2 * (2 * size) + 8 * 3 * 16 * 16  # of 16 bits; pixels
        assert found[0].embedding.dtype == np.float32
        wanted = session.embed_video(np.stack([frames[:3], frames[1:]]))
        assert relative_error(np.stack([w.embedding for w in found]), wanted) < 3e-2


def test_both_parts_are_compiled(model, monkeypatch):
    ran = []

    def compiled(call):
        return lambda *given: ran.append(call.__name__) or call(*given)

    monkeypatch.setattr(torch, "compile", compiled)
    frames = frames_of(3)
    with si.open_session(model, engine="compile") as session:
        (window,) = session.stream(3).extend(frames)
        assert ran == ["encode_trunk", "encode_branch"]
        assert relative_error(window.embedding, session.embed_video(frames[None])[0]) < FP32


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_parts_of_a_fixed_batch_give_the_rows_that_are_asked_for(tiny_model, engine):
    with si.open_session(exported(tiny_model, split=True, frames=3, batch=2), engine=engine) as s:
        parts, frames = s._parts(), frames_of(3)
        rows = [x[None] for x in parts.trunk(frames)]
        found = parts.branch(rows)
        assert len(found) == 1 and relative_error(found, s.embed_video(frames[None])) < FP32
