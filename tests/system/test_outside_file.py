"""Files from outside: regular ones within bounds; JSON that can be used as its type says."""

import os
import time
from pathlib import Path
from typing import TypedDict

import pytest

from stan_infer.errors import InputError
from stan_infer.system.json_file import MAX_DEPTH, checked, parse_json, read_object
from stan_infer.system.outside_file import (
    address_of,
    decode_text,
    odd_name,
    open_regular,
    read_bounded,
    read_text,
    stays_inside,
)


def test_bounds_and_names(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_bounded(path, 7) == path.read_bytes()
    assert read_text(path, 7) == "a\nb"
    with pytest.raises(InputError, match="^labels has 7 bytes; at most 6 are read; so$"):
        read_bounded(path, 6, name="labels", hint="; so")
    with pytest.raises(InputError, match="^labels: no such file; so$"):
        read_bounded(tmp_path / "none", 6, name="labels", hint="; so")
    path.write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"x\.txt is no UTF-8 text \(byte 0xe9 at position 3\)"):
        read_text(path, 6)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x89PNG\r\n\x1a\n\xff", "is a PNG picture, no text; so$"),
        (b"PK\x03\x04" + b"\xff" * 26 + b"a.txt", "is an archive, no text; so$"),
        (
            b"PK\x03\x04" + b"\xff" * 26 + b"[Content_Types].xml",
            "is a document of an office program",
        ),
        (b"\0\0\0\x20ftypisom\xff", "is an MP4 or MOV video, no text; so$"),
        (b"%PDF-1.7\n%\xff", "is a PDF, no text; so$"),
        ("a dog\n".encode("utf-16"), "is text in UTF-16: save it as UTF-8; so$"),
        ("a dog\n".encode("utf-16-le"), "has zero bytes, as text in UTF-16: save it as UTF-8; so$"),
        ("[1]\xe9".encode("latin-1"), "is no UTF-8 text"),
        (b"<!DOCTYPE html>\n<html>", "is a web page: a server sent it in place of the file"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a pointer of git-lfs.*: run git lfs pull$",
        ),
    ],
)
def test_what_is_no_text(data, words):
    with pytest.raises(InputError, match=f"^labels x {words}"):
        decode_text(data, name="labels x", hint="; so")


@pytest.mark.parametrize("text", ["MAC user", "FLV", "[a]", '{"a": 0}', "https://x.org/a.mp4", ""])
def test_text_that_begins_as_other_files_do(text):
    assert decode_text(text.encode(), name="x") == text


def test_names_that_are_no_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.mp4").touch()
    for name, words in {
        "https://x.org/a.mp4": "https://x.org/a.mp4 is an address, and nothing is fetched from one",
        "/x/s3:/b/a.mp4": "s3://b/a.mp4 is an address",  # a line of a list, below its folder
        "rtsp://camera/1": "`stan-infer watch` reads live pictures",
        "file:///x/a.mp4": "file:///x/a.mp4 is an address: give the path alone, /x/a.mp4",
        "*.mp4": "only outside quotes",
        "b*.mp4": "no file fits the pattern b",
        "~/a.mp4": "the shell replaces ~",
        "$DIR/a.mp4": "the shell replaces ~ and",
    }.items():
        assert words in odd_name(Path(name)), name
        with pytest.raises(InputError) as e:
            read_bounded(Path(name), 6, name="labels")
        assert odd_name(Path(name)) in str(e.value)
    for name in ("a.mp4", "c/b.mp4", "C:/a.mp4", "a b-c"):
        assert odd_name(name) == "" and address_of(name) is None


def test_only_regular_files_are_opened(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"abc")
    for path, what in ((tmp_path, "a folder"), (pipe, "a pipe"), ("/dev/zero", "device")):
        with pytest.raises(InputError, match=f"{what}.*not a regular file"):
            open_regular(path)
    with pytest.raises(InputError, match="not a path"):
        open_regular("a\0b")
    file, size = open_regular(link)
    assert (file.read(), size) == (b"abc", 3)
    file.close()
    with pytest.raises(OSError, match="symbolic link"):
        open_regular(link, follow=False)


@pytest.mark.parametrize("name", ["/a", "a/../b", "..", "C:a", "a//b", "", "a" * 201, "a\n"])
def test_names_that_leave_a_folder(name):
    assert stays_inside("a/b.c") and not stays_inside(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NaN", "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("1e999", "too large"),
        ("1" + "0" * 400, "401 digits"),
        ("1" * 100_000, "100000 digits"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' is there twice"),
        ('["\\ud800"]', "surrogates"),
        ("[" * 200_000, "nested too deeply"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "levels are nested"),
        ("{", "not JSON"),
        (b'"\xff"', "not JSON"),
        (b'"\xed\xa0\x80"', "not JSON"),
        ("", "not JSON"),
    ],
    ids=lambda v: str(v)[:20],
)
def test_what_nobody_can_use_is_refused(text, words):
    with pytest.raises(InputError, match=f"^FILE is not JSON.*{words}|^FILE.*{words}.*; so$") as e:
        parse_json(text, "FILE", "; so")
    assert str(e.value).endswith("; so") and len(str(e.value)) < 300


def test_what_can_be_used_comes_back():
    text = '{"a": [1, -2.5, 1e300, true, null, "\\u00e9\\ud83d\\ude00 caf\u00e9"]}'
    assert parse_json(text, "FILE") == {"a": [1, -2.5, 1e300, True, None, "é😀 café"]}
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert parse_json(deep.encode(), "FILE")


def test_its_work_is_that_of_its_size():
    doubled = "{" + ", ".join(f'"k{i}": 0' for i in range(200_000)) + ', "k199999": 1}'
    begin = time.process_time()
    with pytest.raises(InputError, match="'k199999' is there twice"):
        parse_json(doubled, "FILE")
    assert time.process_time() - begin < 20  # with a search for each key: hours


class Record(TypedDict):
    count: int
    parts: dict[str, list[float]]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"count": True, "parts": {}}, "FILE is malformed: count: Expected `int`, got `bool`; so"),
        ({"count": 1.5, "parts": {}}, "count: Expected `int`"),
        ({"count": "1", "parts": {}}, "count: Expected `int`, got `str`"),
        ({"count": 1}, "missing required field `parts`"),
        ({"count": 1, "parts": {"x": [1, "2"]}}, r"parts\[...\]\[1\]: Expected `float`, got `str`"),
        ([], "Expected `object`, got `array`"),
    ],
    ids=str,
)
def test_types_are_told_with_their_key(value, words):
    with pytest.raises(InputError, match=words):
        checked(value, Record, "FILE", "; so")


def test_further_keys_are_allowed_and_stay():
    value = {"count": 1, "parts": {"x": [1, 2.0]}, "later": None}
    assert checked(value, Record, "FILE") is value


def test_a_file_is_bounded(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    assert read_object(path, 8) == {"a": 1}
    with pytest.raises(InputError, match="has 8 bytes; at most 7 are read; so"):
        read_object(path, 7, "; so")
    with path.open("wb") as f:
        f.truncate(2**40)
    with pytest.raises(InputError, match=f"has {2**40} bytes"):
        read_object(path, 100)
    path.write_text("[1]")
    with pytest.raises(InputError, match="not a JSON object"):
        read_object(path, 100)
    with pytest.raises(InputError, match="cannot be read"):
        read_object(tmp_path, 100)
