"""Files that people give in place of a video: one message each, which says what they are."""

import os
import shutil
import subprocess

import pytest

from stan_infer.errors import InputError
from stan_infer.video.clip import read_clip, read_clip_info
from stan_infer.video.decode_pool import read_clips
from stan_infer.video.find import list_videos
from stan_infer.video.spec import ClipSpec
from tests.system.test_file_kind import KINDS

pytest.importorskip("av")
from tests.video import broken_videos as make  # noqa: E402 (after importorskip)

SPEC = ClipSpec(frames=4, short_side=32, crop=32)


def test_every_other_kind_is_named(tmp_path):
    paths = []
    for i, (head, family, _) in enumerate(KINDS):
        if family != "video":
            paths.append((tmp_path / f"{i}.mp4", KINDS[i][2]))
            paths[-1][0].write_bytes(head.ljust(3000, b"\0" if b"\0" in head else b" "))
    for path, words in paths:
        with pytest.raises(InputError, match=rf"{path.name} is .*{words}"):
            read_clip(path, 4, short_side=32, crop=32)


def test_a_song_with_a_cover(tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.skip("the ffmpeg program is not installed")
    make.make_png(tmp_path / "a.png")
    command = "ffmpeg -v error -f lavfi -i sine=d=1 -i a.png -map 0 -map 1 -c:v copy"
    for name in ("a.m4a", "a.mp3", "a.flac"):
        done = [*command.split(), "-disposition:v", "attached_pic", name]
        subprocess.run(done, cwd=tmp_path, check=True)
        words = "only audio and a cover picture" if name == "a.m4a" else "sound file"
        with pytest.raises(InputError, match=words):
            read_clip(tmp_path / name, 4, short_side=32, crop=32)


def test_a_text_before_a_good_video_is_a_playlist(tmp_path):
    """Older FFmpeg obeys it, newer finds the video; two programs must not see two things."""
    source = make.make_clip(tmp_path / "a.ts")
    path = tmp_path / "film.ts"
    path.write_bytes(b"#EXTM3U\nhttp://localhost/\n".ljust(188, b"\xff") + source.read_bytes())
    with pytest.raises(InputError, match="playlist"):
        read_clip(path, 4, short_side=32, crop=32)


@pytest.mark.parametrize("name", ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_standard_input_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"{name}: videos are not read from standard input"):
        list_videos([name])
    make.make_clip(tmp_path / "a.mp4", frames=1).rename(tmp_path / "-")
    assert list_videos(["-"])[0].name == "-"  # a file of that name


def test_pipes_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (_, result), = read_clips(list_videos([tmp_path / "pipe.mp4"]), SPEC)  # fmt: skip
    assert isinstance(result, InputError) and "it is a pipe" in str(result)


def test_an_exported_folder_in_the_place_of_the_videos(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="holds no video .*an exported one, which goes first"):
        list_videos([tmp_path])


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_zeros_before_a_stream_are_passed_over(tmp_path, suffix):
    size = (240, 320)
    source = make.make_clip(tmp_path / f"a.{suffix}", codec="mpeg2video", gop=6, size=size)
    padded = tmp_path / f"padded.{suffix}"
    padded.write_bytes(bytes(4096) + source.read_bytes())
    assert read_clip_info(padded, ClipSpec(frames=2)).total_frames == 30
    (tmp_path / "zeros.mp4").write_bytes(bytes(8192))
    with pytest.raises(InputError, match="begins with zeros only; its download did not finish"):
        read_clip_info(tmp_path / "zeros.mp4", ClipSpec(frames=2))
