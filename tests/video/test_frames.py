"""Clips from frames that the caller has: the bytes of read_clip, and hostile frames."""

import collections
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import stan_infer as si
from stan_infer.config import StanConfig
from stan_infer.errors import InputError
from stan_infer.video.clip import read_clip_info, sample_indices
from stan_infer.video.frames import clip_of_frames, indices_in_time
from stan_infer.video.rgb import upright_rgb
from stan_infer.video.spec import ClipSpec
from tests.conftest import tiny_config, write_video

SPEC = ClipSpec(frames=5, short_side=40, crop=32)


def decoded(path):
    import av

    with av.open(str(path)) as container:
        return [upright_rgb(frame, path) for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("frames") / "v.mp4"
    write_video(path, frames=37, size=98)
    return path


@pytest.mark.parametrize("frames", [1, 2, 5, 12, 37, 64])
def test_all_frames_of_a_video_give_the_bytes_of_read_clip(video, frames):
    spec = ClipSpec(frames=frames, short_side=40, crop=32)
    wanted, images = read_clip_info(video, spec).pixels, decoded(video)
    stacked = np.stack(images)
    forms = {
        "list": images,
        "array": stacked,
        "tensor": torch.from_numpy(stacked),
        "list of tensors": list(map(torch.from_numpy, images)),
        "deque": collections.deque(images, maxlen=50),
        "memoryview": memoryview(stacked),
        "not contiguous": stacked[:, ::-1].copy()[:, ::-1],
    }
    for name, given_frames in forms.items():
        assert np.array_equal(clip_of_frames(given_frames, spec), wanted), name
    bgr = np.ascontiguousarray(stacked[..., ::-1])
    assert np.array_equal(clip_of_frames(bgr, spec, order="bgr"), wanted)
    even = 100 + np.arange(37) / 30
    assert np.array_equal(clip_of_frames(images, spec, timestamps=even), wanted)


def test_frames_of_decord_give_its_bytes(video):
    decord = pytest.importorskip("decord")
    reader = decord.VideoReader(str(video))
    spec = ClipSpec(frames=7, short_side=40, crop=32, decoder="decord")
    wanted = read_clip_info(video, spec).pixels
    for frames in (reader.get_batch(range(37)).asnumpy(), reader):
        assert np.array_equal(clip_of_frames(frames, spec), wanted)


def test_other_kinds_of_frames(video):
    image = pytest.importorskip("PIL.Image")
    images = decoded(video)
    wanted = clip_of_frames(images, SPEC)
    objects = np.empty(len(images), object)
    objects[:] = images
    assert np.array_equal(clip_of_frames(objects, SPEC), wanted)
    assert np.array_equal(clip_of_frames(list(map(image.fromarray, images)), SPEC), wanted)
    with pytest.raises(InputError, match="grey"):
        clip_of_frames([image.fromarray(i).convert("L") for i in images], SPEC)


def test_a_session_prepares_what_it_reads(tiny_model, video):
    with si.open_session(tiny_model) as session:
        wanted, images = session.read_clip(video), decoded(video)
        assert np.array_equal(session.prepare(images), wanted)
        assert session.embed_video(session.prepare(images[:1])[None]).shape == (1, 24)
        found = [None] * 4

        def work(i):
            found[i] = session.embed_video(session.prepare(images)[None])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        [t.start() for t in threads], [t.join() for t in threads]
        assert all(np.array_equal(x, found[0]) for x in found)
    for call in (session.prepare, session.read_clip, session.embed_text, session.score):
        with pytest.raises(InputError, match="this session is closed"):
            call(images, images)


def test_chosen_frames_are_all_taken():
    frames = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
    spec = ClipSpec(frames=9, short_side=32, crop=32)
    assert np.array_equal(clip_of_frames(frames, spec, sample=False), frames)
    assert len(clip_of_frames(frames[:3], spec, sample=False)) == 3
    assert not np.array_equal(clip_of_frames(frames, spec), frames)  # the rule repeats some


def test_frames_of_many_sizes_and_ten_thousand_of_them():
    sizes = [(50, 60), (60, 50), (32, 32), (1, 900), (33, 32)]
    frames = [np.full((*size, 3), 7 * i, np.uint8) for i, size in enumerate(sizes)]
    clip = clip_of_frames(frames, SPEC, sample=False)
    assert [int(c.max()) for c in clip] == [0, 7, 14, 21, 28]

    class Many:  # only the five that are needed are made
        made = 0

        def __len__(self):
            return 10_000

        def __getitem__(self, i):
            self.made += 1
            return np.full((40, 40, 3), i // 40, np.uint8)

    many = Many()
    clip = clip_of_frames(many, SPEC)
    assert many.made == 5
    assert clip[:, 0, 0, 0].tolist() == (sample_indices(10_000, 5) // 40).tolist()


@settings(max_examples=200, deadline=None)
@given(
    count=st.integers(1, 2000),
    frames=st.integers(1, 64),
    start=st.floats(-1e5, 1e5),
    rate=st.floats(1, 240),
)
def test_at_an_even_rate_time_chooses_the_same_frames(count, frames, start, rate):
    times = start + np.arange(count) / rate
    assert indices_in_time(times, count, frames).tolist() == sample_indices(count, frames).tolist()


def test_at_an_uneven_rate_the_clip_is_even_in_time():
    times = np.concatenate([np.arange(0, 1, 0.01), np.arange(1, 11)])  # 100 in one second, then 10
    chosen = times[indices_in_time(times, len(times), 10)]
    assert np.abs(np.diff(chosen) - 1).max() <= 0.6
    assert indices_in_time([5.0, 5.0, 5.0], 3, 2).tolist() == sample_indices(3, 2).tolist()
    assert indices_in_time([7.5], 1, 3).tolist() == [0, 0, 0]


GREY, RGBA = np.zeros((40, 50), np.uint8), np.zeros((40, 50, 4), np.uint8)
RGB = np.zeros((40, 50, 3), np.uint8)


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        ([], {}, "N is 0"),
        (np.zeros((0, 4, 4, 3), np.uint8), {}, "N is 0"),
        (RGB, {}, r"shape \[40, 50, 3\]: of one frame give \[frame\]"),
        (np.zeros((2, 3, 40, 40, 3), np.uint8), {}, "a batch clip by clip"),
        (torch.zeros(4, 3, 40, 40, dtype=torch.uint8), {}, "channels first.*permute"),
        ([RGB, RGB.transpose(2, 0, 1)], {}, "frame 1 is uint8 .*channels first"),
        ([RGB, GREY], {}, "frame 1 is uint8.*grey.*dstack"),
        ([GREY[..., None]] * 3, {}, "grey"),
        ([RGBA], {}, r"frame 0 .*fourth channel: frame\[:, :, :3\]"),
        ([RGB / 255.0], {}, r"float64.*255\)\.round"),
        ([torch.zeros(40, 40, 3)], {}, r"float32.*255\)\.round"),
        ([RGB.astype(np.uint16)], {}, "uint16"),
        ([np.zeros((0, 9, 3), np.uint8)], {}, r"uint8 \[0, 9, 3\]"),
        ([None], {}, "frame 0 is object"),
        ([[[1, 2], [3]]], {}, "frame 0, of type list, cannot be read as an array"),
        ([torch.zeros(4, 4, 3).bfloat16()], {}, "of type Tensor, cannot be read"),
        ([torch.zeros(4, 4, 3).to_sparse()], {}, "of type Tensor, cannot be read"),
        (torch.utils.data.Dataset(), {}, "of type Dataset"),
        (["a.mp4"], {}, "frame 0 is <U5"),
        ("video.mp4", {}, "of type str"),
        (3, {}, "of type int"),
        (iter([RGB]), {}, "of type list_iterator.*deque"),
        ({0: RGB}, {}, "of type dict"),
        ([RGB], {"order": "gbr"}, "did you mean"),
        ([RGB] * 65, {"sample": False}, "65 frames"),
        ([RGB], {"sample": False, "timestamps": [0]}, "give one"),
        ([RGB] * 3, {"timestamps": [0, 1]}, r"shape \[2\] for 3 frames"),
        ([RGB] * 3, {"timestamps": [0, 2, 1]}, "must not fall"),
        ([RGB] * 3, {"timestamps": [0, 1, np.nan]}, "finite"),
        ([RGB] * 3, {"timestamps": [-1e308, 0, 1e308]}, "finite"),
        ([RGB], {"order": None}, "order 'None' is unknown"),
        ([RGB] * 3, {"timestamps": "now"}, "no list of numbers"),
    ],
)  # fmt: skip
def test_frames_that_are_refused(frames, options, message):
    with pytest.raises(InputError, match=message):
        clip_of_frames(frames, SPEC, **options)


def test_read_clip_takes_a_config_or_says_its_sizes(video):
    config = tiny_config()
    clip = si.read_clip(video, config=config)
    assert np.array_equal(clip, read_clip_info(video, ClipSpec.of(config)).pixels)
    assert si.read_clip(video, 3, config=config).shape == (3, 16, 16, 3)
    assert si.read_clip(video).shape == (12, 224, 224, 3)
    with pytest.raises(InputError, match="config is of type dict"):
        si.read_clip(video, config=config.to_dict())
    with pytest.raises(InputError, match="crop is 100"):
        si.read_clip(video, config=config, crop=100)
    assert isinstance(config, StanConfig)
