"""Named videos are found in a folder, and nothing outside it."""

import pytest

from stan_infer.errors import InputError
from stan_infer.video.find import locate_videos, video_stem


def test_stems_lose_known_suffixes_only():
    assert video_stem("a/b.avi.mp4") == "b"
    assert (
        video_stem("1004_Juno_00.00.32.161-00.00.35.300") == "1004_Juno_00.00.32.161-00.00.35.300"
    )
    assert video_stem("x.MP4") == "x"
    assert video_stem(".mp4") == ".mp4"


def test_names_with_and_without_suffix_at_any_depth(tmp_path):
    for name in ("a.mp4", "deep/b.avi.mp4", "deep/er/1.00.5.mkv", "c/x.mp4", "d/x.mp4", "odd.dat"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    names = [
        "a",
        "a.webm",
        "b.avi",
        "1.00.5",
        "c/x.mp4",
        "none",
        "../a.mp4",
        "/etc/passwd",
        "odd.dat",
    ]
    found = locate_videos(tmp_path, names)
    below = [p and p.relative_to(tmp_path).as_posix() for p in found]
    one, other = "a.mp4", "deep/b.avi.mp4"
    assert below == [one, one, other, "deep/er/1.00.5.mkv", "c/x.mp4", None, one, None, "odd.dat"]


def test_an_ambiguous_name_is_told(tmp_path):
    for name in ("c/x.mp4", "d/x.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"x could be any of 2 files .*: c/x.mp4, d/x.mp4"):
        locate_videos(tmp_path, ["x"])
