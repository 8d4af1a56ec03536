"""Named videos are found in a folder, and nothing outside it."""

import pytest

from stan_infer.errors import InputError
from stan_infer.video.find import list_videos, locate_videos, video_stem


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


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.mp4").touch()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "videos" / "again").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "up").symlink_to(tmp_path / "videos")
    found = list_videos([tmp_path / "videos"])
    assert found == [tmp_path / "videos" / "again" / "a.mp4"]
    assert locate_videos(tmp_path / "videos", ["a"]) == found


def test_all_suffixes_of_videos_count_and_others_are_told(tmp_path, caplog):
    names = ["a.m2ts", "b.MTS", "c.vob", "d.ogv", "e.mxf", "f.3g2", "g.asf", "h.f4v", "i.h264"]
    for name in [*names, "list.txt", "x.json", "y.json", "plain", ".hidden.txt"]:
        (tmp_path / name).touch()
    assert [p.name for p in list_videos([tmp_path])] == names
    assert "9 videos; 4 other files are passed over (.json: 2, .txt: 1, no suffix: 1)" in (
        caplog.text.replace("no suffix: 1, .txt: 1", ".txt: 1, no suffix: 1")
    )


def test_a_name_that_is_asked_for_may_have_any_suffix(tmp_path):
    for name in ("a.dat", "b.", "c.mov.mp4", "d"):
        (tmp_path / name).touch()
    found = locate_videos(tmp_path, ["a.dat", "b.", "c.mov", "d", "a.mp4"])
    assert [p and p.name for p in found] == ["a.dat", "b.", "c.mov.mp4", "d", None]


def test_a_link_up_and_folders_without_end(tmp_path):
    (tmp_path / "outside.mp4").touch()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").touch()
    (tmp_path / "videos" / "up").symlink_to("..")
    assert list_videos([tmp_path / "videos"]) == [tmp_path / "videos" / "a.mp4"]


def test_videos_that_differ_in_their_folders_only(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "001.mp4").touch()
    found = locate_videos(tmp_path, ["cat/001.mp4", "dog/001.mp4"])
    assert found == [tmp_path / "cat" / "001.mp4", None]
    assert locate_videos(tmp_path, ["val/001.mp4"]) == [tmp_path / "cat" / "001.mp4"]
