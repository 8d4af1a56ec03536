"""What a file is, by its first bytes: real heads, made here, and what users read about them."""

import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest

from stan_infer.errors import InputError
from stan_infer.system.file_kind import kind_of
from stan_infer.system.outside_file import kind_of_file, refuse_video


def zipped(name, data=b"x"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr(name, data)
    return out.getvalue()


def tarred():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as t:
        t.addfile(tarfile.TarInfo("a.mp4"))
    return out.getvalue()


def numpy_file():
    out = io.BytesIO()
    np.save(out, np.zeros(3))
    return out.getvalue()


def riff(kind):
    return b"RIFF\x24\x08\0\0" + kind + b"LIST"


def iso(brand):
    return b"\0\0\0\x1cftyp" + brand + b"\0\0\0\0mif1"


XML = b'<?xml version="1.0" encoding="UTF-8"?>\n'
HEADER = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
SAFETENSORS = len(HEADER).to_bytes(8, "little") + HEADER
KINDS = [
    (iso(b"isom"), "video", "MP4"), (iso(b"qt  "), "video", "MOV"), (iso(b"3gp4"), "video", "MP4"),
    (iso(b"avis"), "video", "MP4"), (b"\0\0\0\x08wide\0\0\1\0mdat", "video", "MOV"),
    (iso(b"avif"), "picture", "AVIF"), (iso(b"heic"), "picture", "HEIC"),
    (iso(b"M4A "), "sound", "M4A"), (b"\x1aE\xdf\xa3\x01", "video", "Matroska"),
    (riff(b"AVI "), "video", "AVI"), (riff(b"WAVE"), "sound", "sound"),
    (riff(b"WEBP"), "picture", "WebP"), (riff(b"CDXA"), "unsure", "Video CD"),
    (b"FLV\x01\x05", "video", "FLV"), (b"GIF89a", "video", "GIF"), (b"DKIF\0\0", "video", "IVF"),
    ((b"G" + bytes(187)) * 4, "video", "transport"),
    ((bytes(4) + b"G" + bytes(187)) * 4, "video", "transport"),
    (b"\0\0\x01\xba\x44", "video", "program stream"), (b".RMF\0\0\0\x12", "other", "RealMedia"),
    (b"\x1f\x07\0?\xf8", "other", "DV"), (b"YUV4MPEG2 W2", "other", "YUV4MPEG"),
    (b"OggS" + bytes(24) + b"\x80theora", "video", "Ogg"), (b"fLaC\0", "sound", "sound"),
    (b"OggS" + bytes(24) + b"\x01vorbis", "sound", "sound"), (b"ID3\x03\0", "sound", "MP3"),
    (b"\xff\xfb\x90\0", "sound", "MP3"), (b"\xff\xf1\x50", "sound", "AAC"),
    (b"\x89PNG\r\n\x1a\n", "picture", "PNG"), (b"\xff\xd8\xff\xe0", "picture", "JPEG"),
    (b"%PDF-1.7", "other", "PDF"), (zipped("a.txt"), "other", "archive"),
    (tarred(), "other", "archive"), (b"\x1f\x8b\x08\0", "other", "archive"),
    (zipped("archive/data.pkl"), "weights", "PyTorch"), (SAFETENSORS, "weights", "safetensors"),
    (pickle.dumps({"a": 1}), "weights", "pickle"), (numpy_file(), "other", "NumPy"),
    (zipped("x.npy"), "other", "NumPy"), (b"\x7fELF\x02", "other", "program"),
    (b"#!/bin/sh\n", "other", "program"), (b"hello\nworld\n", "other", "a text"),
    (b"#EXTM3U\n", "other", "playlist"), (b"\xef\xbb\xbf#EXTM3U\n", "other", "playlist"),
    (b"ffconcat version 1.0\n", "other", "playlist"), (b"[playlist]\nFile1=", "other", "playlist"),
    (b"v=0\r\no=- 0 0", "other", "playlist"), (XML + b'<MPD xmlns="x">', "other", "playlist"),
    (b"[InternetShortcut]\r\nURL=", "other", "playlist"),
    ("[InternetShortcut]\r\nURL=".encode("utf-16"), "other", "playlist"),
    (b"https://www.youtube.com/watch?v=x\n", "other", "addresses"),
    (b"<!DOCTYPE html>\n<html>", "other", "web page"), (b"\n <HTML lang=en>", "other", "web page"),
    (XML + b"<Error><Code>AccessDenied", "other", "XML"), (b'{"error": 403}', "other", "JSON"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "other", "git-lfs"),
    (b"../.git/annex/objects/Xx/", "other", "git-annex"), (b"WEBVTT\n", "other", "subtitles"),
    (b"1\r\n00:00:01,000 --> 00:00:02,000", "other", "subtitles"), (bytes(600), "unsure", "zeros"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "other", "office"),
    (zipped("[Content_Types].xml"), "other", "office"), (zipped("xl/a.xml"), "other", "office"),
]  # fmt: skip


@pytest.mark.parametrize(("head", "family", "words"), KINDS)
def test_kinds(head, family, words):
    kind = kind_of(head)
    assert kind is not None and kind.family == family and words in kind.what
    assert kind.help or family == "video"


@pytest.mark.parametrize(
    "head",
    [b"", bytes(40), b"\0\0\0\x01g\x42", b"\0\0\x01\xb0\x01", b"\0\0\x01\0\0\0\x01\x20",
     b"\x12\0\n\x0b", bytes(range(256))],
)  # fmt: skip
def test_unknown_kinds_are_left_to_ffmpeg(head):
    assert kind_of(head) is None


def test_time_and_memory_are_bounded(tmp_path):
    """Patterns are matched against 4 KB, and none of them repeats a repetition."""
    for fill in (b" ", b"<", b"[", b"\n", b"../", b"G", b"<!--", b"1\n"):
        kind_of(fill * 4096)
    path = tmp_path / "huge"
    with path.open("wb") as f:
        f.write(b"%PDF-")
        f.truncate(2**40)
    assert "PDF" in kind_of_file(path).what


def test_videos_where_a_checkpoint_is_expected(tmp_path):
    for head, family, words in KINDS:
        path = tmp_path / "model.pth"
        path.write_bytes(head)
        if family in ("video", "picture", "sound"):
            with pytest.raises(InputError, match=f"model.pth is .*{words}.*; give a checkpoint$"):
                refuse_video(path)
            with pytest.raises(InputError, match="; give the checkpoint first, then the videos$"):
                refuse_video(path, is_first=True)
        else:
            refuse_video(path)
    refuse_video(tmp_path / "none")
    refuse_video(tmp_path)
