"""Windows on a grid slide: vectors of the whole network, each frame through the trunk once."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
import torch

import stan_infer as si
from stan_infer.engines.stream import CHUNK, Parts
from stan_infer.engines.torch_session import TorchSession
from stan_infer.library import embed_library, sliding
from stan_infer.library.embed import embed_videos
from stan_infer.library.library import open_library
from stan_infer.library.readings import EmbedOptions
from stan_infer.library.row_reader import RowReader
from stan_infer.network.fold import fold_video
from stan_infer.network.model import Stan, init_random
from stan_infer.network.torch_ops import encode_branch, encode_trunk, encode_video
from stan_infer.video import grid
from stan_infer.video.clip import read_clip_info
from stan_infer.video.grid import plan_grid, read_frames
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Windows
from tests.conftest import relative_error, tiny_config
from tests.exported import exported
from tests.verification.folders import calibrated
from tests.video import broken_videos as make

FP32 = 2e-6  # relative to the largest value
ONE = EmbedOptions(workers=1)
HEADS = [{"branch": "selfattn"}, {"branch": "conv"}, {"head": "mug"}, {"short_side": 20}]


def made(**changes):
    model = init_random(Stan(tiny_config(**changes)), seed=1)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=HEADS, ids=[next(iter(h)) for h in HEADS])
def model(request):
    return made(**request.param)


@pytest.fixture(scope="module", params=["eager", "ort"])
def session(request, model):
    source = model if request.param == "eager" else exported(model, split=True)
    with si.open_session(source, engine=request.param) as session:
        yield session


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """20 s, 25 frames a second, a group of pictures each second."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return make.make_clip(path, frames=500, gop=25, x264="scenecut=0:bframes=0")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Of 30 frames, so that windows lie in several. Of this process only: workers have theirs."""
    monkeypatch.setattr(grid, "_MOST", 30)


def in_this_process(monkeypatch, read=read_frames):
    """Read videos here, by `read`; what fails comes in its place, as of worker processes."""

    def grids(paths, spec, windows, **_):
        for path in paths:
            try:
                plan = plan_grid(path, windows, spec)
            except si.InputError as e:
                yield path, e
                continue
            yield path, plan
            for piece in plan.pieces():
                try:
                    yield path, read(path, spec, plan.total_frames, piece)
                except si.InputError as e:
                    yield path, e

    monkeypatch.setattr(sliding, "read_grids", grids)


def clips_of(path, windows, spec):
    """The windows, and their clips [windows, T, S, S, 3], read one by one."""
    plan = plan_grid(path, windows, spec)
    numbers = [plan.frames[w.first : w.first + spec.frames] for w in plan.windows]
    clips = [read_frames(path, spec, plan.total_frames, n).pixels for n in numbers]
    return plan, numbers, np.stack(clips)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_whole_network(session, film, monkeypatch, seed):
    """Strides, lengths and starts at random; in the last case no windows overlap."""
    in_this_process(monkeypatch)
    dice = np.random.default_rng(seed)
    t, seconds = int(dice.integers(2, 13)), float(dice.uniform(0.5, 6))
    apart = int(dice.integers(1, t + 1)) if seed < 3 else t + 3
    start, end = float(dice.uniform(0, 5)), float(dice.uniform(13, 30))
    windows = Windows(seconds=seconds, stride=apart * seconds / t, start=start, end=end, grid=True)
    spec = ClipSpec.of(session.config, frames=t)
    found = [*embed_videos(session, [film], ONE, spec=spec, windows=windows)]
    plan, numbers, clips = clips_of(film, windows, spec)
    assert [r.clip.seconds for r in found] == [w[:2] for w in plan.windows] and len(found) > 1
    assert [r.clip.indices.tolist() for r in found] == numbers
    assert {r.clip.sampling for r in found} == {"grid"}
    wanted = np.concatenate([session.embed_video(c[None]) for c in clips])
    assert relative_error(np.stack([r.features for r in found]), wanted) < FP32


class DoubleParts(Parts):
    """The fused network in fp64."""

    def __init__(self, model):
        self.weights = fold_video(model.double(), dtype=torch.float64)
        self.windows, self.at_once = (1, 64), CHUNK
        self.frames = self.calls = 0

    def check_open(self):
        pass

    def trunk(self, frames):
        self.frames += len(frames)
        return encode_trunk(self.weights, torch.from_numpy(frames))

    def branch(self, rows):
        self.calls += 1
        return encode_branch(self.weights, rows)[0]

    def room(self, frames):
        tokens, width = self.weights.patches.table.shape
        size = (frames, tokens + 1, width)
        return [torch.empty(size, dtype=torch.float64) for _ in self.weights.branch]


def test_fp64_and_each_frame_passes_the_trunk_once(film, monkeypatch):
    in_this_process(monkeypatch)
    model = made()
    parts = DoubleParts(made())
    monkeypatch.setattr(TorchSession, "_parts", lambda self: parts)
    windows = Windows(seconds=3, stride=0.5, grid=True)
    with si.open_session(model) as session, torch.inference_mode():
        spec = ClipSpec.of(session.config)
        found = [*embed_videos(session, [film, film], ONE, spec=spec, windows=windows)]
        plan, _, clips = clips_of(film, windows, spec)
        wanted = encode_video(parts.weights, torch.from_numpy(clips))[0].numpy()
    got = np.stack([r.features for r in found])
    assert relative_error(got[: len(got) // 2], wanted) < 1e-13
    np.testing.assert_array_equal(got[: len(got) // 2], got[len(got) // 2 :])  # begun anew
    assert parts.frames == 2 * len(plan.frames) == 2 * 40  # 20 s in steps of 0.5 s
    assert parts.calls == len(found) == 2 * 35


def test_8_bits_within_rounding(tmp_path, film, monkeypatch):
    in_this_process(monkeypatch)
    folder = calibrated(made(), tmp_path / "int8", "int8", split=True)
    with si.open_session(folder, engine="ort") as session:
        spec, windows = ClipSpec.of(session.config), Windows(seconds=3, stride=1, grid=True)
        found = [*embed_videos(session, [film], ONE, spec=spec, windows=windows)]
        _, _, clips = clips_of(film, windows, spec)
        wanted = session.embed_video(clips)
    assert relative_error(np.stack([r.features for r in found]), wanted) < 1e-5


def test_what_is_held_does_not_grow_with_the_video(film, monkeypatch):
    """Of a video ten times as long: as many frames at once, and as many bytes of rows."""
    held, windows = {}, Windows(seconds=0.48, stride=0.08, grid=True)
    for end in (2.0, 20.0):
        sizes, streams = [], []

        def read(path, spec, total, frames, sizes=sizes):
            sizes.append(len(frames))
            return read_frames(path, spec, total, frames)

        in_this_process(monkeypatch, read)
        with si.open_session(made()) as session:
            own = session.stream
            session.stream = lambda *given, own=own, at=streams: at.append(own(*given)) or at[-1]
            part = dataclasses.replace(windows, end=end)
            found = [*embed_videos(session, [film], ONE, windows=part)]
        assert not any(r.clip.pixels.size for r in found)
        held[end] = len(found), max(sizes), [s.bytes_held for s in streams]
    (few, *short), (many, *long) = held.values()
    assert many > 10 * few and short[0] == long[0] == 25
    assert short[1] == long[1] == [2 * 6 * 2 * 5 * 32 * 4 + 8 * 3 * 16 * 16]


@pytest.mark.parametrize("strides", [1, 2, 5])
def test_damage_costs_its_windows_only(film, tmp_path, monkeypatch, strides):
    in_this_process(monkeypatch)
    hurt = tmp_path / "hurt.mp4"
    make.damage(film, hurt, packet=260)
    windows = Windows(seconds=1.5, stride=strides * 0.25, grid=True)
    with si.open_session(made()) as session:
        spec = ClipSpec.of(session.config)
        found, whole = (
            [*embed_videos(session, [p], ONE, spec=spec, windows=windows)] for p in (hurt, film)
        )
    assert len(found) == len(whole)
    for a, b in zip(found, whole, strict=True):
        lost = any(260 <= i < 275 for i in b.clip.indices)  # the rest of its group of pictures
        if a.error is None:
            assert a.clip.seconds == b.clip.seconds
            assert relative_error(a.features, b.features) < FP32
        else:
            assert lost and "damaged" in a.error
    assert 1 <= sum(r.error is not None for r in found) < 10


@pytest.mark.parametrize("at", [0, 7, 13, -1])
@pytest.mark.parametrize("strides", [1, 4, 9])
def test_any_frame_may_be_lost(film, monkeypatch, at, strides):
    """Exactly the windows that have it are, also where a piece does not come at all."""
    windows = Windows(seconds=3, stride=strides * 0.5, grid=True)
    found = {}
    for what in ("frame", "piece", "nothing"):

        def read(path, spec, total, frames, what=what):
            good = read_frames(path, spec, total, frames)
            lost = plan_grid(path, windows, spec).frames[at]
            if what == "nothing" or lost not in frames:
                return good
            if what == "piece":
                raise si.InputError("it took too long")
            place = frames.index(lost)
            return good._replace(pixels=np.delete(good.pixels, place, 0), errors={place: "no"})

        in_this_process(monkeypatch, read)
        with si.open_session(made()) as session:
            spec = ClipSpec.of(session.config)
            found[what] = [*embed_videos(session, [film], ONE, spec=spec, windows=windows)]
    plan = plan_grid(film, windows, spec)
    at %= len(plan.frames)
    pieces = np.cumsum([0, *map(len, plan.pieces())])
    of_piece = max(p for p in pieces if p <= at), min(p for p in pieces if p > at)
    for what, (low, high) in (("frame", (at, at + 1)), ("piece", of_piece)):
        for w, a, b in zip(plan.windows, found[what], found["nothing"], strict=True):
            lost = w.first < high and w.first + 6 > low
            assert (a.error is not None) == lost
            assert lost or relative_error(a.features, b.features) < FP32
            assert lost or a.clip.seconds == w[:2]


def test_values_that_are_not_finite_are_errors(film):
    model = made()
    model.visual.proj.data[:] = float("nan")
    with si.open_session(model) as session:
        windows = Windows(seconds=10, grid=True)
        found = [*embed_videos(session, [film], ONE, windows=windows)]
    assert [r.error for r in found] == [f"{film}: the model gives values that are not finite"] * 2


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_value_that_is_not_finite_is_an_error(film, monkeypatch, value):
    in_this_process(monkeypatch)
    with si.open_session(made()) as session:
        parts = session._parts()

        def branch(rows, own=parts.branch):
            found = own(rows).clone()
            found[0, 3] = value
            return found

        parts.branch = branch
        monkeypatch.setattr(TorchSession, "_parts", lambda self: parts)
        windows = Windows(seconds=10, grid=True)
        found = [*embed_videos(session, [film], ONE, windows=windows)]
    assert len(found) == 2 and all("not finite" in r.error for r in found)


def test_frames_that_lie_far_apart_are_said_once(film, monkeypatch, caplog):
    in_this_process(monkeypatch)
    monkeypatch.setattr("stan_infer.video.gaps.LONG_S", 1.5)
    for seconds, said in ((10.0, 1), (4.0, 0)):
        caplog.clear()
        with si.open_session(made()) as session:
            windows = Windows(seconds=seconds, grid=True)
            list(embed_videos(session, [film], ONE, windows=windows))
        assert len(caplog.records) == said


def test_a_package_that_is_missing_ends_the_run(film, monkeypatch):
    def grids(*given, **more):
        yield film, si.MissingError("no PyAV")

    monkeypatch.setattr(sliding, "read_grids", grids)
    with si.open_session(made()) as session, pytest.raises(si.MissingError, match="no PyAV"):
        list(embed_videos(session, [film], ONE, windows=Windows(seconds=4, grid=True)))


@pytest.fixture
def place(film, tmp_path):
    """Three videos: the film, one that is shorter than a window, and none."""
    (tmp_path / "videos").mkdir()
    shutil.copy(film, tmp_path / "videos" / "0-film.mp4")
    make.make_clip(tmp_path / "videos" / "1-short.mp4", frames=30)
    (tmp_path / "videos" / "2-no.mp4").write_text("no video")
    return tmp_path


PARTS = Windows(seconds=4.0, stride=2.0, grid=True)


def embed(place, name="library", session=None, **options):
    with si.open_session(session or made()) as session:
        given = {"workers": 1, "windows": PARTS} | options
        return si.embed_library(session, [place / "videos"], place / name, **given)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_library_of_windows_on_a_grid(place, workers):
    done = embed(place, workers=workers)
    assert done.rows == 10 and done.embedded == 2 and len(done.failed) == 1
    library = open_library(place / "library")
    np.testing.assert_allclose(library.start, [*range(0, 17, 2), 0])
    model = made()
    with si.open_session(model) as session:
        spec = ClipSpec.of(session.config)
        _, _, clips = clips_of(place / "videos" / "0-film.mp4", PARTS, spec)
        short = read_clip_info(place / "videos" / "1-short.mp4", spec).pixels
        wanted = session.embed_video(np.concatenate([clips, short[None]]))
        wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
        assert library.compare(session).cosine > 1 - 1e-6
    assert relative_error(library.vectors[library.ids], wanted) < FP32
    again = embed(place, workers=workers)
    assert again.rows == 10 and again.embedded == 0


def test_a_run_that_is_stopped_within_a_video_goes_on(place, monkeypatch):
    shutil.copy(place / "videos" / "0-film.mp4", place / "videos" / "0-film-again.mp4")
    with (place / "videos" / "0-film-again.mp4").open("ab") as file:
        file.write(b"\0\0\0\x08free")  # another content
    calls = []

    def read(path, spec, total, frames):
        calls.append(path.name)
        if len(calls) in stops:
            raise KeyboardInterrupt
        return read_frames(path, spec, total, frames)

    in_this_process(monkeypatch, read)
    monkeypatch.setattr(grid, "_MOST", 5)
    monkeypatch.setattr(embed_library, "COMMIT_ROWS", 1)
    stops: set[int] = set()
    embed(place, "whole")
    pieces = calls.count("0-film.mp4")
    stops = {2, 2 + pieces + 3}  # in the second piece, and after all of a film in the third
    calls.clear()
    for rows in (0, 9):
        with pytest.raises(KeyboardInterrupt):
            embed(place)
        assert len(open_library(place / "library").ids) == rows
    done = embed(place)
    assert done.rows == 19 and done.embedded == 2 and done.unchanged == 1
    whole, again = (open_library(place / name) for name in ("whole", "library"))
    np.testing.assert_array_equal(whole.vectors, again.vectors)
    np.testing.assert_array_equal(whole.start, again.start)


def test_a_library_never_mixes_the_two(place):
    embed(place)
    with pytest.raises(
        si.InputError, match=r"made with .*--windows 4:2:grid, this run has .*--windows 4:2"
    ):
        embed(place, windows=dataclasses.replace(PARTS, grid=False))
    embed(place, "own", windows=dataclasses.replace(PARTS, grid=False))
    with pytest.raises(si.InputError, match=r"made with .*--windows 4:2, this run has .*:grid"):
        embed(place, "own")
    own, on_grid = (open_library(place / name) for name in ("own", "library"))
    assert on_grid.passport["windows"]["grid"] and not own.passport["windows"]["grid"]
    assert np.abs(own.vectors[0] - on_grid.vectors[0]).max() > 1e-3
    np.testing.assert_array_equal(own.start, on_grid.start)


def test_migrating_keeps_the_grid_or_leaves_it(place):
    from stan_infer.library.migrate_library import migrate_library

    embed(place)
    before = open_library(place / "library").vectors.copy()
    with si.open_session(made()) as session:
        assert migrate_library(place / "library", session, drop=True, workers=1).embedded == 0
        again = migrate_library(place / "library", session, everything=True, workers=1)
        assert again.embedded == 2
        np.testing.assert_array_equal(open_library(place / "library").vectors, before)
        parts = dataclasses.replace(PARTS, grid=False)
        assert migrate_library(place / "library", session, windows=parts, workers=1).embedded == 2
    assert open_library(place / "library").passport["windows"]["grid"] is False


def test_a_row_is_read_again_as_it_was_embedded(place):
    embed(place)
    library = open_library(place / "library")
    spec = ClipSpec.of(tiny_config())
    _, numbers, clips = clips_of(place / "videos" / "0-film.mp4", PARTS, spec)
    with RowReader(library.path, spec, 60.0) as reader:
        for row in (0, 3, 8):
            path = place / "videos" / "0-film.mp4"
            clip = reader.read(path, library.start[row], library.end[row])
            assert clip.indices.tolist() == numbers[row] and clip.sampling == "grid"
            np.testing.assert_array_equal(clip.pixels, clips[row])
        clip = reader.read(place / "videos" / "1-short.mp4", library.start[9], library.end[9])
        assert (
            clip.sampling == "clip" and clip.indices.tolist() == si.sample_indices(30, 6).tolist()
        )


def test_a_passport_of_a_stranger_is_one_line(place):
    embed(place)
    path = place / "library" / "library.json"
    told = json.loads(path.read_text())
    for windows in ({"seconds": "4", "grid": True}, {"grid": True}, {"no": 1}, {"seconds": [1]}):
        path.write_text(json.dumps(told | {"windows": windows}))
        with pytest.raises(si.InputError, match="windows"):
            embed(place)


@pytest.mark.parametrize("seed", range(8))
def test_segments_give_the_same_windows(session, film, monkeypatch, seed):
    """Each by itself and in any order, also where frames or pieces are lost."""
    dice = np.random.default_rng(seed)
    monkeypatch.setattr(grid, "_MOST", int(dice.integers(2, 40)))
    t, seconds = int(dice.integers(2, 13)), float(dice.uniform(0.5, 3))
    apart = int(dice.integers(1, t + 1)) if seed % 4 else t + 3
    windows = Windows(seconds=seconds, stride=apart * seconds / t, grid=True)
    spec = ClipSpec.of(session.config, frames=t)
    plan = plan_grid(film, windows, spec)
    pieces: list = []
    for numbers in plan.pieces():
        piece = read_frames(film, spec, plan.total_frames, numbers)
        if seed > 3 and dice.random() < 0.2:
            piece = si.InputError(f"piece {len(pieces)} is lost")
        elif seed > 3:
            lost = [i for i in range(len(numbers)) if dice.random() < 0.05][: len(numbers) - 1]
            errors = {i: f"frame {numbers[i]} is lost" for i in lost}
            piece = piece._replace(pixels=np.delete(piece.pixels, lost, 0), errors=errors)
        pieces.append(piece)
    read = ((film, result) for result in (plan, *pieces))
    monkeypatch.setattr(sliding, "read_grids", lambda *_, **__: read)
    wanted = [*embed_videos(session, [film], ONE, spec=spec, windows=windows)]
    stream = sliding.stream_of(session, spec, windows)
    parts = [*sliding.segments(plan, pieces)]
    found = {}
    for i in dice.permutation(len(parts)):
        found[i] = sliding.embed_segment(stream, film, pickle.loads(pickle.dumps(parts[i])))
    assert len(parts) > 1
    for a, b in zip(wanted, [r for i in range(len(parts)) for r in found[i]], strict=True):
        assert a.error == b.error
        if a.clip is not None:
            assert relative_error(b.features, a.features) < FP32
            assert a.clip.seconds == b.clip.seconds
            assert a.clip.indices.tolist() == b.clip.indices.tolist()
    assert any(r.error for r in wanted) == (seed > 3)
    most = max(len(n) for n in plan.pieces()) + t
    assert max(len(p.plan.frames) for p in parts) <= most


def test_a_folder_without_the_parts_says_what_makes_them(place):
    folder = exported(made())
    with pytest.raises(si.InputError, match=r"no trunk.onnx, .* stan-infer export CKPT -o"):
        embed(place, session=folder)
    assert not (place / "library" / "library.json").exists()
    with pytest.raises(si.InputError, match="0.6667 s; 0.5 s are 0.75 of them"):
        embed(place, windows=Windows(seconds=4, stride=0.5, grid=True))
    assert not (place / "library" / "library.json").exists()
