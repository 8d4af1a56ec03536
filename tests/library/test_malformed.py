"""300 inputs that are broken or no videos: an error for each, and nothing left over."""

import contextlib
import gc
import os
import random
import shutil
import socket
import sys
import threading
from collections import Counter

import pytest

from stan_infer.library.embed_library import embed_files
from stan_infer.library.embedded import Files, LibraryOptions
from stan_infer.library.library import open_library
from stan_infer.library.readings import EmbedOptions
from tests.conftest import ROOT, python
from tests.library.fake_stack import FakeSession
from tests.processes import children
from tests.video.broken_videos import make_clip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, names of any bytes")

WHOLE, BROKEN = 4, 300


def truncated(data, path, dice):
    path.write_bytes(data[: dice.randrange(len(data))])


def flipped(data, path, dice):
    changed = bytearray(data)
    for _ in range(dice.choice((1, 3, 30))):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    path.write_bytes(changed)


def head_flipped(data, path, dice):
    """In the boxes that say where everything is, and how much: before or behind the pictures."""
    changed = bytearray(data)
    start = data.index(b"moov")
    for _ in range(dice.choice((1, 4))):
        changed[dice.randrange(start, min(start + 500, len(data)))] = dice.choice((0, 0x7F, 0xFF))
    path.write_bytes(changed)


def shuffled(data, path, dice):
    parts = [data[i : i + 97] for i in range(0, len(data), 97)]
    dice.shuffle(parts)
    path.write_bytes(b"".join(parts))


def zeros(data, path, dice):
    path.write_bytes(bytes(dice.choice((0, 1, 4096, len(data)))))


def sparse(data, path, dice):
    path.write_bytes(data[:64])
    os.truncate(path, dice.randrange(2**20, 2**26))


def text(data, path, dice):
    path.write_text(
        dice.choice(("", "no video\n", "<html>" * 500, "#EXTM3U\nfile:///etc/passwd\n"))
    )


def playlist(data, path, dice):
    """What FFmpeg would follow to other files."""
    line = dice.choice(("file '/etc/passwd'", "file 'http://localhost:1/x'"))
    path.write_text(f"ffconcat version 1.0\n{line}\n")


def noise(data, path, dice):
    path.write_bytes(dice.randbytes(dice.randrange(1, 9999)))


def folder(data, path, dice):
    path.mkdir()


def fifo(data, path, dice):
    os.mkfifo(path)


def server(data, path, dice):
    # The path of a socket is short.
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


def loop(data, path, dice):
    path.symlink_to(path.name)


def dangling(data, path, dice):
    path.symlink_to("nowhere")


def device(data, path, dice):
    path.symlink_to(dice.choice(("/dev/zero", "/dev/null", "/proc/self/mem", "/dev/tty")))


def absent(data, path, dice):
    pass


KINDS = (truncated, flipped, head_flipped, shuffled, zeros, sparse, text, playlist, noise, folder)
KINDS += (fifo, server, loop, dangling, device, absent)
NAMES = (
    b"plain",
    b"two\nlines",
    b"\xff\xfe bytes",
    "\u202e\U0001f600".encode(),
    b"\x1b[31m",
    b"%s;$(x)",
)


def make(place, count):
    """Make inputs of all kinds and names; return their paths."""
    dice = random.Random(28)
    whole = [make_clip(place / f"whole{i}.mp4", frames=9 + i, size=(32, 48)) for i in range(WHOLE)]
    paths = []
    for i in range(count):
        path = place / os.fsdecode(b"%04d " % i + NAMES[i % len(NAMES)] + b".mp4")
        KINDS[i % len(KINDS)](dice.choice(whole).read_bytes(), path, dice)
        paths.append(path)
    return whole, paths


def state():
    """What this process has open, by name, and its children and threads."""
    opened = Counter()
    for link in os.scandir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # of this listing itself
            opened[os.readlink(link)] += 1
    return opened, children(os.getpid()), threading.active_count()


def embed(files, out, said):
    """As of a list (.txt), in which no name could have two lines."""
    how = EmbedOptions(workers=2, timeout_s=20)
    return embed_files(FakeSession(), Files(files), out, LibraryOptions(), how, say=said.append)


@pytest.mark.parametrize("count", [32, pytest.param(BROKEN, marks=pytest.mark.slow)])
def test_each_has_its_error(tmp_path, count, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    whole, broken = make(tmp_path / "videos", count)
    gc.collect()  # files of tests before this one, which could be closed during it
    before, out, said = state(), tmp_path / "library", []
    files = [*broken[: count // 2], *whole, *broken[count // 2 :]]
    done = embed(files, out, said)
    opened, running, threads = state()
    assert not opened - before[0], "nothing is left open"
    assert not {*running} - {*before[1]} and threads <= before[2], "what others left may end"
    library = open_library(out)
    library.check()
    embedded = {path for row in library.videos for path in row}
    assert {*map(str, whole)} <= embedded
    assert {*map(str, files)} == embedded | {*done.failed}, "each is a row or an error"
    assert len(done.failed) >= count * 0.7 and library.failed == done.failed
    names = {KINDS[i % len(KINDS)] for i, p in enumerate(broken) if str(p) in embedded}
    assert names <= {truncated, flipped, head_flipped, shuffled, sparse}, names
    assert all(line.startswith("error: ") for line in said)
    again = embed(files, out, said)
    assert again.failed == done.failed and again.unchanged == done.videos, "none is tried again"


def test_the_exit_code_says_so(tmp_path):
    (tmp_path / "videos").mkdir()
    whole, broken = make(tmp_path / "videos", len(KINDS))
    listed = [path for path in broken if b"\n" not in os.fsencode(path)]
    (tmp_path / "list.txt").write_bytes(b"\n".join(map(os.fsencode, [*listed, *whole])))
    model = "examples/motion/motion.safetensors"
    words = ("-m", "stan_infer", "embed", model, tmp_path / "list.txt", "-o", tmp_path / "library")
    done = python(*words, "--workers", "1", code=2, cwd=ROOT)
    assert "Traceback" not in done.stderr and "\x1b" not in done.stderr
    assert "files have no vectors" in done.stderr
    assert len(done.stderr.splitlines()) >= len(listed) // 2
    shutil.rmtree(tmp_path / "library")
