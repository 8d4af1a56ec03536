"""`stan-infer watch`: what it prints and writes, of files, of live sources, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from stan_infer.cli.watch_results import summary_lines, view
from stan_infer.video import feed as feed_module
from stan_infer.watch.watch import ScoredWindow
from tests.conftest import ROOT, wait_until
from tests.exported import exported
from tests.video.live_server import STALL, streaming, transport_stream

pytest.importorskip("av")
DEMO = ROOT / "examples" / "motion"
MODEL, CLIP = DEMO / "motion.safetensors", DEMO / "clips" / "green_bar_grows.mp4"
TEXTS = ("--text", "a shape grows", "--not", "a shape moves left")


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch):
    monkeypatch.setattr(feed_module, "FIRST_WAIT_S", 0.01)


@pytest.fixture(scope="module")
def ts(tmp_path_factory):
    return transport_stream(tmp_path_factory.mktemp("ts") / "a.ts", 100)


def test_a_file(cli, tmp_path):
    out = tmp_path / "events.jsonl"
    done = cli("watch", MODEL, CLIP, *TEXTS, "--windows", "1:0.5", "-o", out)
    head, *rows = done.out.splitlines()
    assert head.split() == ["text", "start_s", "end_s", "peak"] and len(rows) >= 1
    assert rows[0].startswith("a shape grows")
    assert f"{CLIP}: " in done.err and "in 3 windows up to 2.0 s, of 16 frames" in done.err
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["schema"] for r in records[-2:]] == [
        "stan-infer/watch-event/1",
        "stan-infer/watch-summary/1",
    ]
    assert records[-1]["windows"] == 3 and records[-1]["events"] == len(rows)


def test_json_lines(cli):
    done = cli("watch", MODEL, CLIP, *TEXTS, "--windows", "1:0.5", "--json")
    *events, summary = done.records
    assert [e["state"] for e in events] == ["begins", "ended"] * summary["events"]
    begin, end = events[:2]
    assert begin["end_s"] is None and end["end_s"] > end["start_s"] == begin["start_s"]
    assert begin["start"] is None and begin["measure"] == "probability"  # a file has no dates
    assert begin["number"] == end["number"] == 1 and end["peak"] >= begin["peak"] >= 0.6
    assert summary["session"]["engine"] == "eager" and summary["frames"]["taken"] == 16


def test_an_exported_folder(cli, tmp_path):
    from stan_infer.checkpoints.load import load_model

    folder = exported(load_model(MODEL), split=True)
    options = ("--windows", "1:0.5", "--json", "--engine", "ort")
    (*_, got) = cli("watch", folder, CLIP, *TEXTS, *options).records
    assert got["session"]["engine"] == "ort" and got["windows"] == 3
    whole = exported(load_model(MODEL))
    says = f"has no trunk.onnx, which a stream needs: stan-infer export CKPT -o {whole} --split"
    cli("watch", whole, CLIP, *TEXTS, code=2, says=says)


def test_a_stream_that_breaks_and_comes_back(cli, ts, tmp_path):
    always = ("--on", "0", "--off", "0", "--windows", "0.5:0.25")
    plot = tmp_path / "p.svg"
    with streaming([ts], [ts]) as address:
        secret = address.replace("//", "//me:secret@") + "?token=abc"
        words = ("watch", MODEL, secret, *TEXTS, *always, "--reconnect", "1", "--json")
        done = cli(*words, "--plot", plot, code=2, says="--reconnect allows more")
    *events, summary = done.records
    assert {e["state"] for e in events} == {"begins", "ended"} and summary["live"]
    assert all(re.match(r"\d{4}-\d\d-\d\dT", e["start"]) for e in events)
    assert summary["frames"]["reconnects"] == 1 and summary["frames"]["lost"] == 2
    assert "there again 1 time" in done.err and plot.exists()
    for text in (done.out, done.err, plot.read_text()):
        assert "secret" not in text and "abc" not in text


def test_rows_of_a_live_source_have_dates_and_states(cli, ts):
    with streaming([ts]) as address:
        words = ("watch", MODEL, address, *TEXTS, "--on", "0", "--off", "0", "--windows", "0.5")
        done = cli(*words, "--reconnect", "0", code=2)
    head, begin, *_ = done.out.splitlines()
    assert head.split() == ["state", "text", "start", "end", "peak"]
    assert re.match(r"begins +a shape grows +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +- ", begin)


def test_ctrl_c_ends_what_goes_on(ts, tmp_path):
    out, plot, held = tmp_path / "e.jsonl", tmp_path / "p.png", threading.Event()
    with streaming([ts, held, STALL]) as address:
        words = ["watch", MODEL, address, *TEXTS, "--on", "0", "--off", "0", "--windows", "0.5"]
        words += ["--stall", "600", "-o", out, "--plot", plot, "--json"]
        command = [sys.executable, "-m", "stan_infer", *map(str, words)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=env, cwd=tmp_path, **pipes) as process:
            wait_until(lambda: out.exists() and out.read_text(), process)
            process.send_signal(signal.SIGINT)
            got, errors = process.communicate()
        held.set()
    assert process.returncode == 130, errors
    *events, summary = [json.loads(line) for line in got.splitlines()]
    # Several, where a slow machine drops the frames of a whole window.
    n = summary["events"]
    assert n >= 1 and [e["state"] for e in events] == ["begins", "ended"] * n
    assert "Traceback" not in errors and plot.exists()
    printed = "1 event was" if n == 1 else f"{n} events were"
    assert errors.splitlines()[-1] == (
        f"interrupted: {printed} printed; e.jsonl has {2 * n + 1} more lines; p.png was written"
    )
    assert [json.loads(line)["schema"] for line in out.read_text().splitlines()] == [
        *["stan-infer/watch-event/1"] * 2 * n,
        "stan-infer/watch-summary/1",
    ]


BAD = [
    (("{clip}",), "give either --text TEXT"),
    (("{clip}", "--text", "a"), "one text alone always has probability 1"),
    (("{clip}", "--text", "a", "--text", "a"), "'a' is there twice"),
    (("{clip}", "--text", "a", "--measure", "score"), "give --on and --off"),
    (("{clip}", *TEXTS, "--windows", "long"), "--windows 'long' is not SECONDS"),
    (("{clip}", *TEXTS, "--plot", "p.pdf"), "ends in .png, .svg, .html"),
    (("{clip}", *TEXTS, "-o", "{clip}"), "is also read"),
    (("{clip}", *TEXTS, "--realtime", "--stall", "0"), "--stall"),
    (("{clip}", *TEXTS), "is shorter than one window of 8 s"),
    (("/dev/video77", *TEXTS), "no such camera: /dev/video77"),
    (("http://127.0.0.1:1/live", *TEXTS), "cannot open http://127.0.0.1:1/live: Connection ref"),
    (("rtsp://127.0.0.1:1/live", *TEXTS, "--realtime"), "realtime is about files"),
    (("http://host/a.m3u8", *TEXTS), "is a playlist"),
    (("absent.mp4", *TEXTS), "no such video file, camera or address: absent.mp4"),
    (("{model}", *TEXTS), "is not a video: it is a safetensors file"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input(cli, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    places = {"clip": CLIP, "model": MODEL}
    done = cli("watch", MODEL, *(w.format(**places) for w in words), code=2)
    assert done.err.count("error:") == 1 and message in done.err and done.out == ""
    assert not list(tmp_path.iterdir())


def test_the_summary_says_what_became_of_frames():
    frames = dict.fromkeys(
        ("decoded", "skipped", "late", "jumps", "corrupt", "resized", "dropped", "stalls", "lost",
         "reconnects", "taken", "repeated", "gaps"), 0,
    )  # fmt: skip
    summary = {"source": "x", "events": 1, "windows": 2, "seconds": 3.0, "short": 0, "hold_s": 2.0}
    assert summary_lines(summary | {"frames": frames}) == [
        "x: 1 event in 2 windows up to 3.0 s, of 0 frames"
    ]
    some = {"dropped": 3, "corrupt": 2, "lost": 2, "stalls": 1, "reconnects": 1, "gaps": 1}
    first, *rest = summary_lines(summary | {"short": 4, "frames": frames | some})
    assert first.endswith("; 4 more lasted less than 2 s")
    assert rest == [
        "frames: 3 dropped, as the network was too slow; 2 damaged, or built on one that is",
        "lost 2 times (1 stalled), there again 1 time",
        "windows began anew 1 time, behind a gap",
    ]


def test_the_view_of_a_terminal():
    from rich.console import Console

    values = np.array([0.75, 0.2, 0.05])
    watch = SimpleNamespace(
        latest=ScoredWindow(0, 2, values.astype(np.float32), values),
        texts=["[red]a\x1b[31m", "b", "c"],
        watched=2,
        is_on=[True, False],
        counts=SimpleNamespace(dropped=3, corrupt=0, lost=1),
        clock=lambda time: None,
        end_s=12.0,
        length_s=60.0,
        source="film.mp4",
        windows=5,
        events=1,
    )
    console = Console(width=100, record=True, file=open(os.devnull, "w"), force_terminal=True)
    console.print(view(watch))
    first, *_, last = console.export_text().splitlines()
    assert first.startswith("[red]a\\x1b[31m") and first.rstrip().endswith("0.750  event")
    assert first.count("\u2588") == 18
    assert last.split("  ") == [
        *("film.mp4", "12.0 s of 60.0 s", "5 windows", "1 events", "3 dropped", "1 lost")
    ]
