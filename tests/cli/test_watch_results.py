"""What `stan-infer watch` asks for, and how events become records and rows."""

import datetime
import json
from types import SimpleNamespace

import pytest

from stan_infer.cli.watch_results import WatchResults
from stan_infer.errors import InputError
from stan_infer.text.templates import read_templates
from stan_infer.video.feed import FeedOptions
from stan_infer.watch import watch as module
from stan_infer.watch.events import Event
from stan_infer.watch.watch import WatchOptions
from tests.conftest import ROOT

pytest.importorskip("av")
DEMO = ROOT / "examples" / "motion"
RECORD = {
    "schema": "stan-infer/watch-event/1",
    "state": "ended",
    "number": 7,
    "source": "here",
    "text": "a",
    "start_s": 1.5,
    "end_s": 4.0,
    "start": "2026-01-01T00:00:01.500+00:00",
    "end": "2026-01-01T00:00:04.000+00:00",
    "measure": "score",
    "peak": 0.875,
    "peak_s": 2.25,
    "windows": 5,
}
ENDED = Event(7, "a", 1.5, 4.0, 0.875, 2.25, 5)
BEGUN = ENDED._replace(end_s=None, windows=1)


def told(live):
    began = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)

    def clock(time):
        return began + datetime.timedelta(seconds=time) if live and time is not None else None

    return SimpleNamespace(live=live, texts=["a", "b"], source="here", measure="score", clock=clock)


def test_an_event_as_a_record(tmp_path, capsys):
    out = tmp_path / "e.jsonl"
    with WatchResults(True, out, None, []) as results:
        results.add(told(True), BEGUN)
        results.add(told(True), ENDED)
        results.add(told(False), ENDED)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    begun = RECORD | {"state": "begins", "end_s": None, "end": None, "windows": 1}
    assert lines == [begun, RECORD, RECORD | {"start": None, "end": None}]
    assert [json.loads(line) for line in out.read_text().splitlines()] == lines
    assert results.events == 2


@pytest.mark.parametrize("live", [True, False])
def test_events_as_rows(capsys, live):
    with WatchResults(False, None, None, []) as results:
        results.add(told(live), BEGUN)
        results.add(told(live), ENDED)
    head, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    dates = ["2026-01-01", "00:00:01", "2026-01-01", "00:00:04"]
    if live:
        assert head == ["state", "text", "start", "end", "peak"]
        assert rows == [["begins", "a", *dates[:2], "-", rows[0][-1]],
                        ["ended", "a", *dates, rows[0][-1]]]  # fmt: skip
    else:
        assert head == ["text", "start_s", "end_s", "peak"]
        assert [row[:1] + [float(n) for n in row[1:]] for row in rows] == [["a", 1.5, 4.0, 0.875]]


def test_every_option_arrives(cli, monkeypatch, tmp_path):
    clip = DEMO / "clips" / "green_bar_grows.mp4"
    seen = {}

    class Stop:
        def __init__(self, session, source, *given, templates, say):
            seen.update(source=source, given=given, templates=templates)
            raise InputError("enough")

    monkeypatch.setattr(module, "Watch", Stop)
    words = ["--text", "a", "--text", "b", "--not", "c", "--windows", "4:2", "--measure", "score"]
    words += ["--on", "0.5", "--off", "0.25", "--hold", "3", "--stall", "7", "--realtime"]
    words += ["--frames", "4", "--template", "a video of {}"]
    cli("watch", DEMO / "motion.safetensors", clip, *words, code=2, says="enough")
    options = WatchOptions(
        seconds=4, stride=2, frames=4, measure="score", on=0.5, off=0.25, hold_s=3
    )
    reading = FeedOptions(stall_s=7, realtime=True)
    assert seen == {
        "source": str(clip),
        "given": (["a", "b"], ["c"], options, reading),
        "templates": read_templates("a video of {}"),
    }
    cli("watch", DEMO / "motion.safetensors", "rtsp://host/x", *words[:6], "--reconnect", "2",
        code=2, says="enough")  # fmt: skip
    assert seen["given"][2:] == (WatchOptions(), FeedOptions(reconnect=2))


def test_no_file_that_is_read_is_written(cli, tmp_path):
    clip, texts = DEMO / "clips" / "green_bar_grows.mp4", tmp_path / "texts.txt"
    texts.write_text("a\nb\n")
    model = tmp_path / "model.safetensors"
    model.write_bytes((DEMO / "motion.safetensors").read_bytes())
    plot = tmp_path / "p.svg"
    for name, message in (
        (texts, "is also read"),
        (model, "is also read"),
        (plot, "as -o and as --plot"),
    ):
        words = ("--texts", texts, "-o", name, "--plot", plot)
        cli("watch", model, clip, *words, code=2, says=message)
    assert texts.read_text() == "a\nb\n" and not plot.exists()
