"""The same stream in another form gives the same frames, or an error names the difference."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stan_infer.errors import InputError
from stan_infer.video.clip import read_clip_info
from stan_infer.video.spec import ClipSpec

av = pytest.importorskip("av")
from tests.video import broken_videos as make  # noqa: E402 (after importorskip)

SPEC = ClipSpec(frames=5, short_side=48, crop=48)
STREAMS = {
    "B frames": {"x264": "keyint=6:scenecut=0:bframes=2"},
    "open groups": {"x264": "open-gop=1:keyint=8:bframes=3:b-adapt=0:scenecut=0"},
    "one key": {"x264": "keyint=999:scenecut=0"},
    "uneven times": {"times": [i + i * i // 7 for i in range(30)]},
}
# Containers with times; the first name is FFmpeg's. What AVI and bare streams are read as is
# compared in test_against_ffmpeg.py.
FORMS = ("mp4", "mov", "matroska", "flv", "mpegts", "nut", "ismv")
CHUNKED = {
    "mp4": ({}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}),
    "matroska": ({}, {"cluster_size_limit": "500"}, {"live": "1"}),
    "mpegts": ({}, {"pat_period": "0.1"}, {"mpegts_m2ts_mode": "1"}),
}
NAMES = st.from_regex(r"[a-zA-Z0-9é %#?:*'\[-]{1,12}(\.(mp4|avi|ts|MKV|gif|txt|m3u8|[a-z]{3}))?",
                      fullmatch=True)  # fmt: skip


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forms")
    return {
        name: make.make_clip(folder / f"{i}.mp4", **how)
        for i, (name, how) in enumerate(STREAMS.items())
    }


def rewrite(source, target, form, muxer, *, offset, sound, title):
    """The packets of the video in another container, `offset` seconds later, perhaps with sound."""
    with (
        av.open(str(source)) as container,
        av.open(str(target), "w", format=form, options=muxer) as out,
    ):
        stream = container.streams.video[0]
        out.metadata["title"] = title
        if sound == "first":
            audio = out.add_stream("aac", rate=44100, layout="mono")
        copy = out.add_stream_from_template(stream)
        if sound == "last":
            audio = out.add_stream("aac", rate=44100, layout="mono")
        if sound != "none":
            silence = np.zeros((1, 1024), np.float32)
            for i in range(20):
                frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
                frame.sample_rate, frame.pts = 44100, i * 1024
                out.mux(audio.encode(frame))
            out.mux(audio.encode())
        for packet in container.demux(stream):
            if packet.size:
                packet.pts += int(offset / stream.time_base)
                packet.dts += int(offset / stream.time_base)
                packet.stream = copy
                out.mux(packet)


@settings(max_examples=40, deadline=None)
@given(
    stream=st.sampled_from(sorted(STREAMS)),
    form=st.sampled_from(FORMS),
    offset=st.sampled_from([0, 1, 10]),
    sound=st.sampled_from(["none", "first", "last"]),
    name=NAMES,
    chosen=st.randoms(),
)
def test_the_form_of_a_video_changes_nothing(
    streams, tmp_path_factory, stream, form, offset, sound, name, chosen: random.Random
):
    """Container, suffix and name, fragments and packets, start, title, sound."""
    expected = read_clip_info(streams[stream], SPEC)
    path = Path(tmp_path_factory.mktemp("form")) / name
    muxer = dict(chosen.choice(CHUNKED.get(form, ({},))))
    rewrite(
        streams[stream], path, form, muxer, offset=offset, sound=sound, title=chosen.choice("aé\n")
    )
    try:
        found = read_clip_info(path, SPEC)
    except InputError as e:
        pytest.fail(f"{form} {muxer} is refused: {e}")
    assert found.total_frames == expected.total_frames
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.pixels, expected.pixels)
