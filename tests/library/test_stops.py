"""A run that is stopped at any moment and run again gives the library of one that was not."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from stan_infer.engines.open import open_session
from stan_infer.library.codes import CODES
from stan_infer.library.database import FILES, ROWS, VECTORS
from stan_infer.library.embed_library import embed_library
from stan_infer.library.library import open_library
from stan_infer.video.windows import Windows
from tests.conftest import ROOT, python
from tests.processes import children
from tests.video.broken_videos import make_clip

COMMAND = [sys.executable, "-m", "tests.library.fake_stack"]
CLIPS = 12
OF_CLIPS = "id, sha256, frames, length_s, decoder, error"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """12 short videos, two copies and two that are broken."""
    folder = tmp_path_factory.mktemp("stops") / "videos"
    folder.mkdir()
    for i in range(CLIPS):
        make_clip(folder / f"{i:02}.mp4", frames=8 + i, size=(32, 48))
    shutil.copy(folder / "03.mp4", folder / "03-copy.mp4")
    shutil.copy(folder / "11.mp4", folder / "00-copy.mp4")
    (folder / "05-cut.mp4").write_bytes((folder / "05.mp4").read_bytes()[:700])
    (folder / "07-text.mp4").write_text("no video")
    return folder


@pytest.fixture(scope="module", params=["1", "3"])
def batch(request):
    return f"batch={request.param}"


@pytest.fixture(scope="module")
def undisturbed(videos, batch):
    """What a run that nobody stops leaves, and the seconds that it takes."""
    out = videos.parent / f"undisturbed-{batch}"
    start = time.monotonic()
    python(*COMMAND[1:], out, videos, "--", batch, cwd=ROOT)
    return content(out), time.monotonic() - start


def content(library):
    """Everything that a library holds, but the moments when contents were embedded."""
    open_library(library).check()
    db = sqlite3.connect(library / ROWS)
    tables = {"state": "*", "clips": OF_CLIPS, "rows": "*", "files": "*"}
    found = [db.execute(f"SELECT {c} FROM {t} ORDER BY 1").fetchall() for t, c in tables.items()]
    db.close()
    return found, (library / VECTORS).read_bytes(), (library / CODES).read_bytes()


def stopped(out, videos, batch, seconds, stop):
    """Start a run, call `stop` with its process after so many seconds, return its exit code."""
    command = [*COMMAND, out, videos, "--", batch]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        try:
            run.wait(seconds)
        except subprocess.TimeoutExpired:
            stop(run)
        _, errors = run.communicate()
    assert run.returncode in (0, -signal.SIGKILL, 2, 3), errors
    if run.returncode == 2:
        print(errors.decode())
    return run.returncode


def kill(run):
    run.send_signal(signal.SIGKILL)


def kill_a_worker(run):
    """Kill one of the processes that decode for this run."""
    if found := children(run.pid):
        os.kill(random.choice(found), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_any_number_of_workers(tmp_path, videos, batch, undisturbed, workers):
    """They take videos as they come; the library has the order of the names, bit for bit."""
    python(*COMMAND[1:], tmp_path / "own", videos, "--", batch, f"workers={workers}", cwd=ROOT)
    assert content(tmp_path / "own") == undisturbed[0]
    passports = [
        f / "library.json" for f in (tmp_path / "own", videos.parent / f"undisturbed-{batch}")
    ]
    assert passports[0].read_bytes() == passports[1].read_bytes()


OPTIONS = [
    {},
    {"batch": 3},
    {"windows": Windows(seconds=0.2)},
    {"windows": Windows(seconds=0.2, stride=0.1, grid=True)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_any_number_of_workers_with_a_model(tmp_path, videos, options):
    with open_session(ROOT / "examples" / "motion" / "motion.safetensors") as session:
        for n in (1, 2, 3):
            done = embed_library(session, [videos], tmp_path / str(n), workers=n, **options)
            assert done.embedded == CLIPS
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "3")


@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, videos, batch, undisturbed, kills):
    right, seconds = undisturbed
    done = number = 0
    while done < kills:
        out, here = tmp_path / str(number), 0
        number += 1
        while (code := stopped(out, videos, batch, random.uniform(0, seconds), kill)) != 0:
            assert code == -signal.SIGKILL
            here += 1
            if (out / "library.json").exists():
                open_library(out)
            if here % 10 == 0:
                seconds *= 1.5  # the machine is slower now than it was
        if here == 0:
            seconds *= 0.8
        done += here
        assert content(out) == right


def test_killed_at_every_step(tmp_path, videos):
    """Before each step on the files of the library: two videos, a copy and a broken one."""
    given = [videos / name for name in ("03.mp4", "03-copy.mp4", "07-text.mp4", "08.mp4")]
    python(*COMMAND[1:], tmp_path / "right", *given, "--", "workers=1")
    right = content(tmp_path / "right")
    for step in range(1, 200):
        out = tmp_path / str(step)
        words = (*COMMAND[1:], out, *given, "--", "workers=1", "commit=1")
        killed = python(*words, f"step={step}", code=None, cwd=ROOT).returncode
        python(*words, cwd=ROOT)
        assert content(out) == right, step
        assert {p.name for p in out.iterdir()} <= FILES, step
        if killed == 0:
            break
    assert killed == 0 and step > 20


@pytest.mark.parametrize("runs", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_a_worker_is_killed(tmp_path, videos, batch, undisturbed, runs):
    right, seconds = undisturbed
    for i in range(runs):
        out = tmp_path / str(i)
        wait = random.uniform(0.3, 1) * seconds
        while stopped(out, videos, batch, wait, kill_a_worker) != 0:
            wait = seconds * 10  # killed before it was ready: the run ended, the next goes on
        assert content(out) == right


@pytest.mark.parametrize("limit", [100, 500, 1000, 1700, 20_000, 30_000, 45_000, 60_000, 90_000])
def test_full_disk(tmp_path, videos, batch, undisturbed, limit):
    """No file may grow beyond the limit; what was committed stays, and the next run goes on."""
    out = tmp_path / "library"
    command = (*COMMAND[1:], out, videos, "--", batch)
    done = python(*command, f"limit={limit}", code=None, cwd=ROOT)
    assert done.returncode in (0, 2) and "Traceback" not in done.stderr, done.stderr
    if limit < 30_000:
        assert done.returncode == 2
    if done.returncode:
        assert "File too large" in done.stderr or "full" in done.stderr, done.stderr
    python(*command, cwd=ROOT)
    assert content(out) == undisturbed[0]


def test_two_processes_at_once(tmp_path, videos, batch, undisturbed):
    runs = [
        subprocess.Popen(
            [*COMMAND, tmp_path / "library", videos, "--", batch],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    ends = [(run.communicate()[1], run.returncode) for run in runs]
    assert (0 in [code for _, code in ends]) and all(code in (0, 2) for _, code in ends), ends
    assert all("is writing to library" in text for text, code in ends if code)
    assert content(tmp_path / "library") == undisturbed[0]
