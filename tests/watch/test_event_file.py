"""Events are appended to a file as whole lines, of ours alone, by one watch at a time."""

import errno
import json
import os

import pytest

from stan_infer.errors import InputError
from stan_infer.watch.event_file import EventFile


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def add(path, *numbers):
    with EventFile(path) as file:
        for number in numbers:
            file.add("watch-event", {"number": number})


def test_lines_are_appended(tmp_path):
    out = tmp_path / "e.jsonl"
    add(out, 1, 2)
    add(out, 3)
    assert [x["number"] for x in lines(out)] == [1, 2, 3]
    assert {x["schema"] for x in lines(out)} == {"stan-infer/watch-event/1"}


def test_what_another_program_left_of_a_line_is_ended(tmp_path):
    out = tmp_path / "e.jsonl"
    add(out, 1)
    with out.open("a") as file:
        file.write('{"schema": "stan-infer/wat')  # as after a loss of power
    add(out, 2)
    first, part, last = out.read_text().splitlines()
    assert json.loads(first)["number"] == 1 and json.loads(last)["number"] == 2
    assert part == '{"schema": "stan-infer/wat'


def test_a_file_of_another_kind_stays(tmp_path):
    out = tmp_path / "notes.txt"
    out.write_text("my notes\n")
    with pytest.raises(InputError, match="was not written by stan-infer watch"):
        EventFile(out)
    assert out.read_text() == "my notes\n"


def test_two_watches_do_not_share_a_file(tmp_path):
    pytest.importorskip("fcntl")
    out = tmp_path / "e.jsonl"
    with EventFile(out), pytest.raises(InputError, match="another watch appends to"):
        EventFile(out)
    assert not out.exists()  # it was new, and no line came
    add(out, 1)  # free again


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    out, real = tmp_path / "e.jsonl", os.write
    with EventFile(out) as file:
        file.add("watch-event", {"number": 1})

        def full(handle, data):
            if handle != file._file:
                return real(handle, data)
            if not full.written:
                full.written = real(handle, data[:10])
                return full.written
            raise OSError(errno.ENOSPC, "No space left on device")

        full.written = 0
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(InputError, match=r"cannot write .*No space left"):
            file.add("watch-event", {"number": 2, "text": "x" * 20 + "\u00e9"})
    monkeypatch.undo()
    assert [x["number"] for x in lines(out)] == [1]


def test_a_place_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        EventFile(tmp_path / "absent" / "e.jsonl")
