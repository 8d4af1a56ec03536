"""Ctrl-C: every command says in one line what it has written, and leaves nothing half-written."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from stan_infer.library.embed_library import embed_library
from tests.conftest import ROOT, wait_until

# Runs a command and waits at the n-th call of a function for the signal.
STOP = """
import importlib, pathlib, sys, time

place, count, ready = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
module, _, names = place.partition(":")
owner = importlib.import_module(module)
*classes, name = names.split(".")
for word in classes:
    owner = getattr(owner, word)
real, calls = getattr(owner, name), []

def stop(*args, **options):
    calls.append(1)
    if len(calls) == count:
        ready.touch()
        while True:
            time.sleep(0.01)
    return real(*args, **options)

setattr(owner, name, stop)
sys.argv = ["stan-infer", *sys.argv[4:]]
from stan_infer.cli.main import main
main()
"""
NOTHING = "nothing was written"
EVAL = "eval C --dataset recognition --annotations clips.csv --videos V"
CALIBRATE = "calibrate F --videos V -o out --samples 3 --threads 1 --force --min-cosine 0.9"
BENCH = "bench C --engine eager --repeats 1 --warmup 1 --min-seconds 0 --no-memory"
GOES_ON = "the same command goes on from there"

# The command; the function and call in which it is stopped; what it says; what there is then.
CASES = [
    ("inspect C", "stan_infer.checkpoints.load:inspect_checkpoint", 1, NOTHING, []),
    (
        "run C V --text a --csv rows.csv",
        *("stan_infer.cli.run_results:TextsOfClips.add", 3),
        "the results of 2 clips were printed; rows.csv was written",
        ["rows.csv"],
    ),
    ("run C V --text a --csv rows.csv", "stan_infer.library.texts:token_ids", 1, NOTHING, []),
    (
        "watch C W --text a --not b --windows 0.2 --on 0 --off 0 -o rows --plot p.png",
        *("stan_infer.watch.watch:Watch._window", 2),
        "1 event was printed; rows has 3 more lines; p.png was written",
        ["p.png", "rows"],
    ),
    ("watch C W --text a --not b -o rows", "stan_infer.library.texts:token_ids", 1, NOTHING, []),
    ("embed C V -o v.npz", "stan_infer.library.embedding_file:_Npz.add_video", 2, NOTHING, []),
    (
        "embed C V -o v.npy",
        *("stan_infer.cli.report:print_facts", 1),
        "v.json was written; v.npy was written",
        ["v.json", "v.npy"],
    ),
    (
        "embed C V -o new",
        *("stan_infer.library.embed_library:Run.check_stack", 1),
        NOTHING,
        [],
    ),
    (
        "embed C V -o new",
        *("stan_infer.library.embed_library:Run.embed", 1),
        f"new is a library without rows so far: {GOES_ON}",
        ["new"],
    ),
    (
        "embed C V -o new",
        *("stan_infer.cli.report:print_facts", 1),
        f"new has 3 more rows: {GOES_ON}",
        ["new"],
    ),
    (
        "search L a --model C --csv rows.csv --html page.html",
        *("stan_infer.library.contact_sheet:_card", 2),
        "rows.csv was written",
        ["rows.csv"],
    ),
    ("serve L --model C --port 0", "stan_infer.cli.report:print_lines", 1, NOTHING, []),
    (EVAL, "stan_infer.evaluation.evaluate:best_answers", 1, NOTHING, []),
    (
        f"{EVAL} --cache kept",
        *("stan_infer.evaluation.evaluate:best_answers", 1),
        f"kept keeps 5 features of videos and texts: {GOES_ON}",
        ["kept"],
    ),
    (f"{EVAL} --out page", "stan_infer.evaluation.result_folder:write_npz", 1, NOTHING, []),
    ("export C -o out", "stan_infer.artefacts.folder:sha256", 1, NOTHING, []),
    (
        f"{CALIBRATE} --method entropy",
        *("stan_infer.quantisation.ranges:_count", 3),
        f"out.calibrating.npz keeps the ranges of 2 clips: {GOES_ON}",
        ["out.calibrating.npz"],
    ),
    *(
        (
            CALIBRATE,
            *(f"stan_infer.quantisation.work:{step}", 1),
            f"out.calibrating.npz keeps the ranges of 3 clips: {GOES_ON}",
            ["out.calibrating.npz"],
        )
        for step in ("layer_errors", "fewest_returned", "judge")
    ),
    ("verify F F", "stan_infer.verification.verify:comparison_record", 1, NOTHING, []),
    ("convert C c.safetensors", "safetensors.torch:save_file", 1, NOTHING, []),
    (f"{BENCH} -o r.jsonl", "stan_infer.benchmarking.run:bench_videos", 1, NOTHING, []),
    (
        f"{BENCH} -o r.jsonl --report page",
        *("stan_infer.benchmarking.page:render_page", 1),
        "r.jsonl was written",
        ["r.jsonl"],
    ),
    ("doctor", "stan_infer.engines.trials:try_engines", 1, NOTHING, []),
]


@pytest.fixture
def place(tmp_path, checkpoint, artefact, videos):
    """A folder in which commands run."""
    (tmp_path / "here").mkdir()
    rows = "".join(f"clip{i},{label}\n" for i, label in enumerate(("a", "b", "a")))
    (tmp_path / "here" / "clips.csv").write_text(f"video,label\n{rows}")
    return tmp_path / "here"


@pytest.fixture(scope="session")
def library(checkpoint, videos, tmp_path_factory):
    """A library of the videos."""
    out = tmp_path_factory.mktemp("library") / "library"
    embed_library(checkpoint, [videos], out, workers=1)
    return out


def stopped(words, where, count, place, known, number):
    """Run a command, send it a signal where it waits, and return its exit code and its errors."""
    ready = place.parent / "ready"
    given = [str(known.get(word, word)) for word in words.split()]
    command = [sys.executable, "-c", STOP, where, str(count), str(ready), *given]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(place.parent)}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        command, cwd=place, env=environment, start_new_session=True, **pipes
    ) as process:
        try:
            wait_until(ready.exists, process)
            os.killpg(process.pid, number)  # as a terminal does
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, errors


NAMES = [f"{words.split()[0]}-{where.rpartition(':')[2]}" for words, where, *_ in CASES]


@pytest.mark.parametrize(("words", "where", "count", "says", "left"), CASES, ids=NAMES)
def test_ctrl_c(words, where, count, says, left, place, checkpoint, artefact, videos, library):
    known = {"C": checkpoint, "F": artefact, "V": videos, "L": library, "W": videos / "clip0.mp4"}
    code, errors = stopped(words, where, count, place, known, signal.SIGINT)
    assert code == 130 and "Traceback" not in errors, errors
    assert errors.splitlines()[-1] == f"interrupted: {says}"
    assert errors.count("interrupted") == 1
    assert sorted(p.name for p in place.iterdir()) == sorted([*left, "clips.csv"])
    assert not list(place.parent.glob("*stan-infer-work*"))


@pytest.mark.parametrize("clips", [2, 3])
def test_a_stopped_calibration_goes_on(place, artefact, videos, cli, monkeypatch, clips):
    words, where, count, *_ = next(c for c in CASES if f"the ranges of {clips} clips" in c[3])
    known = {"F": artefact, "V": videos}
    stopped(words, where, count, place, known, signal.SIGINT)
    monkeypatch.chdir(place)
    cli(*(known.get(w, w) for w in words.split()), says=f"going on after {clips} clips")
    graph = (place / "out" / "video.onnx").read_bytes()
    cli(*(known.get(w, w) for w in words.split()))
    assert (place / "out" / "video.onnx").read_bytes() == graph
    assert not (place / "out.calibrating.npz").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_say_the_same(number, place, checkpoint, videos):
    known = {"C": checkpoint, "V": videos}
    words, where, count, says, left = CASES[1]
    code, errors = stopped(words, where, count, place, known, number)
    assert code == 128 + number
    assert errors.splitlines()[-1] == f"ended by {signal.Signals(number).name}: {says}"
    assert (place / "rows.csv").exists()


def test_every_command_is_interrupted():
    from stan_infer.cli.app import app

    names = {command.callback.__name__ for command in app.registered_commands}
    assert names == {words.split()[0] for words, *_ in CASES}


def test_ctrl_c_while_the_commands_are_imported(place):
    """Before any of them is known: the handler is there first."""
    shutil.copytree(ROOT / "stan_infer", place.parent / "copy" / "stan_infer")
    slow = place.parent / "copy" / "stan_infer" / "cli" / "app.py"
    ready = place.parent / "ready"
    slow.write_text(
        f"import pathlib, time\npathlib.Path({str(ready)!r}).touch()\ntime.sleep(100)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(place.parent / "copy")}
    command = [sys.executable, "-m", "stan_infer", "doctor"]
    with subprocess.Popen(
        command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_until(ready.exists, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, f"interrupted: {NOTHING}\n")
