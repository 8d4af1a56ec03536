"""The decoding child: answers, hangs, crashes, is replaced, and never outlives its parent."""

import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stan_infer.errors import InputError, MissingError
from stan_infer.video import clip as clip_module
from stan_infer.video import decode_child, decode_pool, decode_worker
from stan_infer.video.decode_pool import read_clips
from stan_infer.video.decode_worker import CrashError, DecodeWorker
from stan_infer.video.spec import ClipSpec

pytest.importorskip("av")
from tests.processes import has_ended  # noqa: E402 (after importorskip)
from tests.video import broken_videos as make  # noqa: E402

SMALL = ClipSpec(frames=4, short_side=32, crop=32)

# The real child, whose decoder misbehaves by the name of the file.
FAKE = """
import os, signal, sys, time
import stan_infer.video.decode_child as worker
from stan_infer.errors import MissingError
real = worker.read_clip_info
def fake(path, spec):
    name = os.path.basename(path)
    if name == "hang": time.sleep(1000)
    if name == "stop": os.kill(os.getpid(), signal.SIGSTOP)
    if name == "crash": os.kill(os.getpid(), signal.SIGSEGV)
    if name == "exit": os._exit(7)
    if name == "missing": raise MissingError("pip install it")
    if name == "bug": raise ZeroDivisionError("ours")
    os.write(1, b"noise"); os.write(2, b"noise"); print("noise", flush=True)
    return real(path, spec)
worker.read_clip_info = fake
worker.main()
"""


@pytest.fixture
def children(monkeypatch):
    """Every child that is started, by a record of Popen's results."""
    started, real = [], subprocess.Popen

    def record(*args, **kwargs):
        started.append(real(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", record)
    return started


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(decode_worker, "_COMMAND", (sys.executable, "-P", "-c", FAKE))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make.make_clip(tmp_path_factory.mktemp("clips") / "a.mp4", frames=12)


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("decoder", ["auto", "decord"])
def test_same_as_in_this_process(clip, decoder):
    if decoder == "decord":
        pytest.importorskip("decord")
    expected = clip_module.read_clip_info(clip, replace(SMALL, decoder=decoder))
    with DecodeWorker() as worker:
        for _ in range(2):
            got = worker.read(clip, replace(SMALL, decoder=decoder), timeout_s=30)
            np.testing.assert_array_equal(got.pixels, expected.pixels)
            np.testing.assert_array_equal(got.indices, expected.indices)
            assert got.pixels.dtype == np.uint8 and got.indices.dtype == np.int64
            assert (got.total_frames, got.decoder, got.source_size) == (
                expected.total_frames,
                expected.decoder,
                expected.source_size,
            )
            assert got.pixels.flags.writeable


def test_errors_pass_through(clip, fake, tmp_path, children):
    (tmp_path / "text.mp4").write_text("hello")
    with DecodeWorker() as worker:
        with pytest.raises(InputError, match=r"text\.mp4 is not a video"):
            worker.read(tmp_path / "text.mp4", SMALL)
        with pytest.raises(MissingError, match="pip install it"):
            worker.read("missing", SMALL)
        with pytest.raises(RuntimeError, match="ZeroDivisionError: ours"):
            worker.read("bug", SMALL)
        with pytest.raises(InputError, match="did you mean 'decord'"):
            worker.read(clip, replace(SMALL, decoder="decrod"))
        assert worker.read(clip, SMALL).total_frames == 12
    assert len(children) == 1
    with pytest.raises(ValueError, match="closed"):
        worker.read(clip, SMALL)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hang", r"hang: reading it took longer than --timeout 0\.3 s and.* allow more"),
        ("stop", r"stop: reading it took longer than --timeout 0\.3 s and.* allow more"),
        ("crash", r"crash: the decoder crashed \(signal 11\)"),
        ("exit", r"exit: the decoder crashed \(exit code 7\)"),
    ],
)
def test_the_clip_after_a_hang_or_crash_works(clip, fake, children, name, words):
    # The system may take its time to end a process, as where it keeps the memory of a crashed one.
    timeout_s = 0.3 if name in ("hang", "stop") else 60
    with DecodeWorker() as worker:
        with pytest.raises(InputError, match=words):
            worker.read(name, SMALL, timeout_s=timeout_s)
        assert worker.read(clip, SMALL, timeout_s=30).total_frames == 12
    assert len(children) == 2 and all(gone(child.pid) for child in children)


def test_a_child_that_died_between_clips_is_replaced(clip, children):
    with DecodeWorker() as worker:
        worker.read(clip, SMALL)
        children[0].kill()
        children[0].wait()
        worker.read(clip, SMALL)
    assert len(children) == 2


def test_recycling(clip, children):
    with DecodeWorker(recycle=2) as worker:
        for _ in range(5):
            worker.read(clip, SMALL)
    assert len(children) == 3


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_stays_flat(clip, children):
    def resident():
        pages = Path(f"/proc/{children[0].pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    with DecodeWorker() as worker:
        for _ in range(10):
            worker.read(clip, SMALL)
        before = resident()
        for _ in range(60):
            worker.read(clip, SMALL)
        assert resident() - before < 8 * 2**20
    assert len(children) == 1


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="needs /proc")
def test_memory_is_limited(clip, children):
    with DecodeWorker() as worker:
        worker.read(clip, SMALL)
        limits = Path(f"/proc/{children[0].pid}/limits").read_text()
    line = next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert int(line.split()[3]) <= decode_child.MEMORY_LIMIT


def test_a_child_that_cannot_start_names_the_command(clip, monkeypatch):
    monkeypatch.setattr(decode_worker, "_COMMAND", (sys.executable, "-c", "raise SystemExit(3)"))
    with DecodeWorker() as worker, pytest.raises(MissingError, match="pip install"):
        worker.read(clip, SMALL)


def test_read_clips_keeps_the_order_and_yields_errors(clip, fake, children):
    paths = [clip, Path("crash"), clip, Path("nowhere.mp4"), clip, Path("hang"), clip, clip]
    results = list(read_clips(paths, SMALL, workers=2, timeout_s=3))
    assert [path for path, _ in results] == paths
    for path, result in results:
        assert isinstance(result, clip_module.Clip if path == clip else InputError), result
    assert all(gone(child.pid) for child in children)
    assert list(read_clips([], SMALL)) == []


def test_read_clips_refuses_options_at_once(clip):
    for wrong in ({"workers": 0}, {"timeout_s": 0}):
        with pytest.raises(InputError):
            read_clips([clip], SMALL, **wrong)
    for wrong in ({"crop": 33}, {"decoder": "x"}):
        with pytest.raises(InputError):
            replace(SMALL, **wrong)


@pytest.mark.parametrize(
    ("cpus", "limit", "paths", "expected"), [(3, 8, 5, 3), (9, 2, 5, 2), (3, 8, 1, 1)]
)
def test_there_is_a_worker_for_each_cpu(clip, children, monkeypatch, cpus, limit, paths, expected):
    monkeypatch.setattr(decode_worker, "usable_cpus", lambda: cpus)
    monkeypatch.setattr(decode_worker, "MAX_WORKERS", limit)
    alone = clip_module.read_clip_info(clip, SMALL)
    for _, result in read_clips([clip] * paths, SMALL):
        np.testing.assert_array_equal(result.pixels, alone.pixels)
    assert len(children) == expected


def test_processes_that_are_started_early_are_used_and_never_left(clip, children):
    with decode_worker.early_workers(2, 9):
        assert len(children) == 2
        assert len(list(read_clips([clip] * 4, SMALL, workers=2))) == 4
        assert len(children) == 2
    assert all(gone(child.pid) for child in children)
    with pytest.raises(KeyboardInterrupt), decode_worker.early_workers(9, 3):
        assert len(children) == 5
        raise KeyboardInterrupt
    assert all(gone(child.pid) for child in children)
    with decode_worker.early_workers(1, 1):  # one that died meanwhile is replaced
        children[-1].kill()
        children[-1].wait()
        ((_, result),) = read_clips([clip], SMALL)
    assert result.total_frames == 12 and all(gone(child.pid) for child in children)


def test_a_process_between_two_clips_goes_to_the_next_worker(clip, children):
    with decode_worker.early_workers(1, 9):
        for _ in range(3):
            assert len(list(read_clips([clip] * 2, SMALL, workers=1))) == 2
        assert len(children) == 1 and not gone(children[0].pid)
        with closing(read_clips([clip] * 9, SMALL, workers=2)) as readings:
            next(readings)  # it stops while both decode, or may
        assert len(children) == 2
        left = [child for child, ready in decode_worker._spare if ready]
        assert all(child.runs for child in left)
        assert len(list(read_clips([clip] * 4, SMALL, workers=2))) == 4
        worker = DecodeWorker()
        worker.read(clip, SMALL)
        worker.close()  # as a pool that needs fewer does
        assert gone(worker._child._process.pid)
    assert all(gone(child.pid) for child in children)
    with DecodeWorker() as worker:
        worker.read(clip, SMALL)
        worker.leave()  # nobody waits for it
    assert gone(children[-1].pid) and not decode_worker._spare


def test_what_was_read_half_is_never_handed_on(clip, children, monkeypatch):
    def cut_off(pipe, size):
        raise EOFError

    with decode_worker.early_workers(1, 1):
        with DecodeWorker() as worker:
            monkeypatch.setattr(decode_worker, "receive_bytes", cut_off)
            with pytest.raises(CrashError):
                worker.read(clip, SMALL)
            worker.leave()
        assert not decode_worker._spare and gone(children[0].pid)


def test_clips_that_are_begun_early_are_decoded_once_by_the_same_processes(
    clip, fake, children, monkeypatch, tmp_path
):
    """Also those that an abandoned call had begun, and others that nobody announced."""
    asked, real = [], DecodeWorker.read

    def read(worker, path, *given, **options):
        asked.append(path)
        return real(worker, path, *given, **options)

    monkeypatch.setattr(DecodeWorker, "read", read)
    paths = [tmp_path / f"{i}.mp4" for i in range(8)]
    for path in paths:
        path.write_bytes(clip.read_bytes())
    with decode_pool.early_clips(paths[:6], SMALL, workers=2):
        begun = read_clips(paths, SMALL)
        first = next(begun)
        begun.close()
        results = [first, *read_clips([Path("crash"), *paths[1:]], SMALL)]
        # One crashed, and once more for the same file; it comes back if there is more for it.
        assert len(children) in (3, 4)
    assert [path for path, _ in results] == [paths[0], Path("crash"), *paths[1:]]
    assert [path for path, r in results if isinstance(r, InputError)] == [Path("crash")]
    assert sorted(asked) == sorted([*paths, Path("crash"), Path("crash")])
    assert all(gone(child.pid) for child in children)
    with pytest.raises(InputError), decode_pool.early_clips(paths, SMALL, workers=0):
        pass


@pytest.mark.parametrize("end", ["close", "throw"])
def test_an_abandoned_iterator_kills_its_children(clip, fake, children, end):
    clips = read_clips([clip, *[Path("hang")] * 9], SMALL, workers=2, timeout_s=100)
    next(clips)
    start = time.monotonic()  # they would end by themselves, after the 100 s that they have
    if end == "close":
        clips.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            clips.throw(KeyboardInterrupt())
    assert time.monotonic() - start < 100
    assert children and all(gone(child.pid) for child in children)


@pytest.mark.parametrize(("clips", "right"), [(0, 4), (3, 6), (99, 16 + 3)])
def test_prefetch_is_bounded(clip, monkeypatch, clips, right):
    """By a number for each worker, and by what fits into some memory."""
    monkeypatch.setattr(decode_pool, "AHEAD_BYTES", clips * math.prod(SMALL.shape))
    taken = []

    class Paths(list):
        def __iter__(self):
            for path in super().__iter__():
                taken.append(path)
                yield path

    with closing(read_clips(Paths([clip] * 20), SMALL, workers=2, timeout_s=60)) as found:
        next(found)
        assert len(taken) == right


def run_parent(clip):
    """A process that reads one clip and then waits for one that hangs; prints its child's id."""
    code = f"""
    import subprocess, sys
    from pathlib import Path
    import stan_infer.video.decode_worker as worker
    from stan_infer.video.decode_pool import read_clips
    worker._COMMAND = (sys.executable, "-P", "-c", {FAKE!r})
    real = subprocess.Popen
    def popen(*args, **kwargs):
        child = real(*args, **kwargs)
        print(child.pid, flush=True)
        return child
    subprocess.Popen = popen
    paths = [Path({str(clip)!r}), Path("hang")]
    spec = worker.ClipSpec(frames=4, short_side=32, crop=32)
    for path, result in read_clips(paths, spec, workers=1, timeout_s=TIMEOUT):
        print("read", flush=True)
    """
    return textwrap.dedent(code)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)]
)
def test_no_orphans_after_the_parent_is_stopped(clip, number):
    # After SIGKILL only the child's own alarm ends it, at twice the limit and 5 s.
    code = run_parent(clip).replace("TIMEOUT", "100" if number == signal.SIGINT else "0.5")
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "read\n"
        time.sleep(0.2)  # for the second clip to reach the child
        parent.send_signal(number)
        assert parent.wait(timeout=60) != 0
    limit = time.monotonic() + 60
    while not has_ended(child) and time.monotonic() < limit:
        time.sleep(0.05)
    assert has_ended(child)


def test_the_child_imports_no_torch():
    code = "import stan_infer.video.decode_child, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_lying_container_ends_in_time_with_decord(tmp_path):
    pytest.importorskip("decord")
    source = make.make_clip(tmp_path / "a.mp4", x264="keyint=6:scenecut=0:bframes=0")
    liars = [
        make.lie_duration(source, tmp_path / "long.mp4"),
        make.lie_times(source, tmp_path / "times.mp4"),
        make.lie_count(source, tmp_path / "count.mp4", 1000),
        make.lie_keys(source, tmp_path / "keys.mp4", 9),
    ]
    start = time.monotonic()
    results = list(read_clips(liars, replace(SMALL, decoder="decord"), timeout_s=5))
    assert len(results) == 4 and time.monotonic() - start < 40


@pytest.mark.parametrize(
    ("decoding_s", "using_s", "most", "right"),
    [(1, 0, 2, 2), (1, 1, 2, 2), (1, 1.3, 2, 1), (1, 9, 8, 1), (0, 0, 4, 4), (4, 1, 8, 5)],
)
def test_enough_workers(decoding_s, using_s, most, right):
    assert decode_pool.enough_workers(decoding_s, using_s, most) == right


def test_the_time_of_a_clip_is_without_the_wait_for_a_core(monkeypatch):
    waited = iter((5, 7))
    told = SimpleNamespace(read_text=lambda: f"123 {next(waited)}000000000 9")
    monkeypatch.setattr(decode_child, "Path", lambda path: told)
    monkeypatch.setattr(decode_child, "time", SimpleNamespace(perf_counter=lambda: 20.0))
    assert decode_child._clock() == 15 and decode_child._clock() == 13
    monkeypatch.setattr(decode_child, "Path", lambda path: Path("/nowhere") / path[1:])
    assert decode_child._clock() == 20


@pytest.mark.parametrize(("using_s", "right"), [(0.0, [3, 3]), (1.0, [3, 1])])
def test_workers_are_chosen_by_the_first_clips(clip, monkeypatch, using_s, right):
    """A clock of our own: decoding takes 0.1 s; every clip comes, in order, from whoever stays."""
    monkeypatch.setattr(decode_worker, "MAX_WORKERS", 3)
    monkeypatch.setattr(decode_worker, "usable_cpus", lambda: 3)
    times = threading.local()

    def clock():
        times.now = getattr(times, "now", 0.0)
        return times.now

    def serving():
        return sum(t.name.startswith("decode ") for t in threading.enumerate())

    read_one = decode_pool._read_one

    def reading(*given):
        found, given[-1].took_s = read_one(*given), 0.1
        return found

    monkeypatch.setattr(decode_pool, "_read_one", reading)
    monkeypatch.setattr(decode_pool, "time", SimpleNamespace(perf_counter=clock))
    told, paths = [], [clip] * 40
    clips = read_clips(iter(paths), SMALL, told=told.append)
    clock()
    found = []
    for _, result in clips:
        found.append(result.pixels)
        times.now += using_s
        while len(found) == 35 and serving() > right[-1]:
            time.sleep(0.01)  # they end after what they have begun
        assert len(found) < 35 or serving() == right[-1]
    assert told == right and len(found) == 40
    assert all((pixels == found[0]).all() for pixels in found)
    told.clear()
    assert len([*read_clips(paths, SMALL, workers=2, told=told.append)]) == 40 and told == [2]
