"""Commands never overwrite what they read, and replace nothing but an earlier result."""

import json
import os
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from stan_infer.artefacts.folder import read_artefact
from stan_infer.quantisation.state import check_state, remove_state
from tests.conftest import ROOT, python
from tests.system.test_temporary import small_disk  # noqa: F401

BENCH = ("--engine=eager", "--repeats=1", "--warmup=1", "--min-seconds=0", "--no-memory")


def contents(folder):
    """Names, kinds and bytes of everything in a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        seen = path.lstat()
        found[str(path)] = seen.st_mode, path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture
def place(tmp_path, checkpoint, artefact, videos):
    """A folder with everything that commands read, in copies, and links to the checkpoint."""
    model = tmp_path / "model.safetensors"
    shutil.copyfile(checkpoint, model)
    os.link(model, tmp_path / "hard.safetensors")
    (tmp_path / "soft.safetensors").symlink_to(model)
    shutil.copytree(artefact, tmp_path / "folder")
    (tmp_path / "to_folder").symlink_to("folder")
    shutil.copyfile(videos / "clip0.mp4", tmp_path / "clip.npz")  # decoders go by content
    np.savez(tmp_path / "mine.npz", thesis=np.ones(3))
    (tmp_path / "old.jsonl").write_text('{"schema": "stan-infer/bench/1"}\n')
    (tmp_path / "mine.jsonl").write_text('{"schema": "mine"}\n')
    (tmp_path / "around" / "clips").mkdir(parents=True)
    (tmp_path / "clips").symlink_to("around/clips")
    for i in range(3):
        shutil.copyfile(videos / f"clip{i}.mp4", tmp_path / "clips" / f"clip{i}.mp4")
    (tmp_path / "to_clips").symlink_to("clips")
    (tmp_path / "around" / "bare").mkdir()
    (tmp_path / "bare").symlink_to("around/bare")
    (tmp_path / "nowhere").symlink_to("no/folder")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "clip.csv").write_text("video,label\nclip0,a\nclip1,b\n")
    shutil.copyfile(checkpoint, tmp_path / "page.safetensors")
    # Names that our folders have too, in a stranger's: alone, and with records of other tools.
    for folder, name, text in (
        ("site", "index.html", "<h1>My thesis</h1>"),
        ("training", "metrics.json", '{"loss": 1}'),
        ("table", "rows.jsonl", '{"schema": "mine"}'),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    return tmp_path


ANEW = "lies in the folder of {}, which is written anew: give another place"
READ = "is also read"
NO_RECORD = "folder {} is not empty and will not be replaced, because it has no {} of an earlier"
LISTED = "lies in .*/folder, an export that would no longer open"
PROC = r"^error: cannot write /proc/x(\.\w+)?: "
NOWHERE = "is a link that leads nowhere"
EVAL = "--dataset recognition --annotations clip.csv --videos"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("convert model.safetensors model.safetensors", READ),
        ("convert model.safetensors model.safetensors --set frames=4", READ),
        ("convert model.safetensors soft.safetensors", READ),
        ("convert soft.safetensors model.safetensors", READ),
        ("convert model.safetensors hard.safetensors", READ),
        ("convert ViT-B-32-quickgelu:model.safetensors model.safetensors", READ),
        ("embed model.safetensors clip.npz -o clip.npz", READ),
        ("embed folder VIDEOS -o folder/x.npz", READ),
        ("embed to_folder VIDEOS -o folder/x.npz", READ),
        ("embed model.safetensors VIDEOS -o mine.npz", "not written by stan-infer embed"),
        ("embed model.safetensors VIDEOS -o clip.npz", "not written by stan-infer embed"),
        ("bench model.safetensors --compare old.jsonl --out old.jsonl", READ),
        ("bench model.safetensors --out model.safetensors", READ),
        ("bench model.safetensors --out mine.jsonl", "not written by stan-infer bench"),
        ("bench folder --engine ort --out folder/rows.jsonl", READ),
        ("bench model.safetensors --out page/r.jsonl --report page", ANEW.format("--report")),
        ("bench model.safetensors --out page --report page", "page is the folder of --report"),
        ("bench model.safetensors --out bare/r.jsonl --report bare", ANEW.format("--report")),
        (
            "export model.safetensors --format tensorrt --timing-cache out/t -o out",
            ANEW.format("-o"),
        ),
        ("bench model.safetensors --report folder", "not empty"),
        ("bench folder --engine ort --report folder/page", READ),
        ("bench model.safetensors --report site", NO_RECORD.format("site", "rows.jsonl")),
        ("bench model.safetensors --report table", NO_RECORD.format("table", "rows.jsonl")),
        (f"eval folder {EVAL} VIDEOS --out site", NO_RECORD.format("site", "metrics.json")),
        (f"eval folder {EVAL} VIDEOS --out training", NO_RECORD.format("training", "metrics.json")),
        ("export folder --format triton-server -o folder", READ),
        ("export folder --format triton-server -o folder/served", READ),
        ("export model.safetensors --format triton-server -o folder", "no stan_infer.json"),
        ("calibrate folder --videos VIDEOS -o folder", READ),
        ("calibrate folder --videos VIDEOS -o to_folder", READ),
        ("calibrate folder --videos VIDEOS -o folder/int8", READ),
        ("embed model.safetensors VIDEOS -o folder/x.npz", LISTED),
        ("embed model.safetensors VIDEOS -o to_folder/x.npz", LISTED),
        ("embed model.safetensors VIDEOS -o folder/engines/x.npz", LISTED),
        ("convert model.safetensors folder/x.safetensors", LISTED),
        ("export model.safetensors -o folder/sub", LISTED),
        ("export model.safetensors -o folder/a/b", LISTED),
        ("export model.safetensors --format triton-server -o folder/served", LISTED),
        ("export model.safetensors --format tensorrt --timing-cache folder/t -o out", LISTED),
        ("calibrate model.safetensors --videos VIDEOS -o folder/int8", LISTED),
        ("bench model.safetensors --report folder/page", LISTED),
        ("bench model.safetensors --out folder/rows.jsonl", LISTED),
        (f"eval model.safetensors {EVAL} VIDEOS --cache folder/cache", LISTED),
        ("embed model.safetensors VIDEOS -o /proc/x.npz", PROC),
        ("convert model.safetensors /proc/x.safetensors", PROC),
        ("export model.safetensors -o /proc/x", PROC),
        ("calibrate model.safetensors --videos VIDEOS -o /proc/x", PROC),
        ("bench model.safetensors --report /proc/x", PROC),
        ("bench model.safetensors --out /proc/x.jsonl", PROC),
        (f"eval folder {EVAL} VIDEOS --cache folder/cache", READ),
        (
            f"eval folder {EVAL} clips --out clips",
            "because it holds clip0.mp4, which is no part of",
        ),
        (
            "calibrate folder --videos clips -o clips",
            "clips holds clips/clip0.mp4, which is also read",
        ),
        ("embed folder clips -o clips/clip0.mp4", "must end in .npz"),
        ("run folder clips --text a --csv clips/clip0.mp4", READ),
        ("bench folder --include-decode clips --out clips/clip0.mp4", "not written by stan-infer"),
        (f"eval folder {EVAL} clips --cache nowhere", rf"nowhere {NOWHERE} \(no/folder\)"),
        (f"eval folder {EVAL} clips --cache loop", f"cache loop {NOWHERE}"),
        (f"eval folder {EVAL} clips --cache clip.csv", "cache clip.csv is not a folder"),
    ],
)
def test_sources_and_strangers_stay(cli, place, videos, monkeypatch, args, message):
    monkeypatch.chdir(place)
    before = contents(place)
    words = [str(videos) if w == "VIDEOS" else w for w in args.split()]
    done = cli(*words, code=2)
    assert re.search(message, done.err), done.err
    assert len(done.err.splitlines()) == 1, "told before the work"
    assert contents(place) == before


@pytest.mark.usefixtures("quiet_machine")
def test_results_may_lie_beside_the_videos(cli, place, monkeypatch):
    """In every command: other suffixes are passed over, and the videos stay as they are."""
    monkeypatch.chdir(place)
    before = contents(place / "clips")
    for words in (
        "run folder clips --text a --csv clips/rows.csv",
        "embed folder clips -o clips/v.npz",
        f"eval folder {EVAL} clips --cache clips/cache --out clips/page",
        "bench folder --engine ort --include-decode clips --out clips/r.jsonl",
    ):
        cli(*words.split(), *(BENCH[1:] if words.startswith("bench") else ()))
    after = contents(place / "clips")
    assert {name: after[name] for name in before} == before
    assert {"rows.csv", "v.npz", "cache", "page", "r.jsonl"} < {p.name for p in map(Path, after)}


@pytest.mark.usefixtures("quiet_machine")
def test_results_replace_results_and_keep_links_and_modes(cli, place, videos, monkeypatch):
    monkeypatch.chdir(place)
    clips = sorted(videos.iterdir())
    for name in ("there.npz", "rows.jsonl", "there.safetensors"):
        (place / f"link_{name}").symlink_to(name)
    for i in (1, 2):
        cli("embed", "folder", *clips[:i], "-o", "link_there.npz")
        with np.load("there.npz") as z:
            assert len(z["paths"]) == i
        cli("bench", "model.safetensors", *BENCH, "--out", "link_rows.jsonl")
        cli("convert", "model.safetensors", "link_there.safetensors")
        for name in ("there.npz", "rows.jsonl", "there.safetensors"):
            assert (place / f"link_{name}").is_symlink()
            if i == 1:
                (place / name).chmod(0o600)
            else:
                assert (place / name).stat().st_mode & 0o777 == 0o600
    assert json.loads((place / "rows.jsonl").read_text())["engine"] == "eager"
    for licence in "AB":
        cli("export", "model.safetensors", "-o", "to_folder", "--license", licence)
        assert read_artefact(place / "folder").manifest["licence"] == licence
        assert (place / "to_folder").is_symlink()
    assert not [p for p in place.iterdir() if "stan-infer-work" in p.name]


def foreign(kind, path):
    """Make what is no state of a stopped calibration."""
    if kind == "link":
        path.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"mine" if kind == "file" else b"")


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "file", "empty"])
def test_calibrate_takes_no_file_of_the_user_for_its_own(cli, place, videos, monkeypatch, kind):
    monkeypatch.chdir(place)
    state = place / "out.calibrating.npz"
    foreign(kind, state)
    before = contents(place)
    words = ("calibrate", "folder", "--videos", videos, "-o", "out")
    done = cli(*words, code=2, says="out.calibrating.npz, but it")
    assert "move it away" in done.err and len(done.err.splitlines()) == 1
    assert contents(place) == before
    remove_state(state)  # one that came while the work was done
    assert contents(place) == before


def test_the_state_of_a_calibration_is_taken_and_removed(tmp_path):
    state = tmp_path / "out.calibrating.npz"
    names = "stamp names clips flat exponents largest counts".split()
    np.savez(state, **{name: np.zeros(1) for name in names})
    check_state(state)
    remove_state(state)
    assert not list(tmp_path.iterdir())
    check_state(state)
    remove_state(state)


def test_convert_counts_what_goes_into_a_pipe(cli, place):
    pipe, got = place / "pipe.safetensors", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    done = cli("convert", place / "model.safetensors", pipe, "--json")
    reader.join()
    assert json.loads(done.out)["bytes"] == len(got[0]) > 1000


def test_rows_go_to_standard_output(place):
    words = ("bench", "model.safetensors", *BENCH, "--out", "/dev/stdout")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = python("-m", "stan_infer", *words, cwd=place, env=environment, code=None)
    assert done.returncode in (0, 4 if "every row is starved" in done.stderr else 0)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [r["engine"] for r in rows] == ["eager"]


@pytest.mark.parametrize("size", ["4k", "300k", "3m"])
def test_calibrate_with_a_full_tmpdir(cli, place, videos, monkeypatch, small_disk, size):  # noqa: F811
    disk = small_disk(size)
    monkeypatch.setenv("TMPDIR", str(disk))
    monkeypatch.chdir(place)
    for source in ("folder", "model.safetensors"):
        words = ("calibrate", source, "--videos", videos, "-o", "out", "--samples", 2, "--force")
        done = cli(*words, code=2)
        *said, last = done.err.splitlines()
        assert last.startswith("error: temporary folder")
        assert str(disk) in last and "TMPDIR=" in last and "No space left on device" in last
        assert not [line for line in said if "error" in line.lower()]
        assert not (place / "out").exists() and not list(disk.glob("stan-infer*"))


@pytest.mark.parametrize("where", ["none", "/proc"])
def test_commands_name_a_tmpdir_that_cannot_be_used(cli, place, videos, monkeypatch, where):
    monkeypatch.setenv("TMPDIR", str(place / where))
    for args in (
        [
            *("calibrate", place / "model.safetensors", "--videos", videos, "-o", place / "out"),
            "--force",
        ],
        ["bench", place / "model.safetensors", *BENCH],
        ["verify", place / "folder", place / "folder"],
        ["export", place / "model.safetensors", "--format", "triton-server", "-o", place / "out"],
    ):
        done = cli(*args, code=2)
        message = done.err.splitlines()[-1]
        assert message.startswith("error: temporary folder")
        assert where in message and "TMPDIR=" in message
        assert not (place / "out").exists()
