"""Bad input: one clear error, the documented exit code, no traceback, nothing half-written."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from stan_infer.checkpoints.load import save_model
from stan_infer.checkpoints.presets import preset
from stan_infer.network.model import Stan, init_random
from stan_infer.system.packages import install_command
from tests.conftest import flip, python, wait_until, write_video
from tests.processes import children, has_ended, run_commands

RETRIEVAL = ("--dataset", "retrieval", "--annotations")
FRAMES = ("--set", "frames=3", "--frames", "5")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["inspect", "absent.pth"], "absent.pth"),
        (["inspect", "{ckpt}", "--set", "width=3"], "fixed by the checkpoint's tensor shapes"),
        (["inspect", "{ckpt}", "--set", "frames"], "not KEY=VALUE"),
        (["run", "{ckpt}", "{videos}"], "either --text"),
        (["run", "{ckpt}", "{videos}", "--text", "a", "--labels", "x"], "either --text"),
        (["run", "{ckpt}", "{videos}", "--labels", "absent.txt"], "no such file"),
        (["run", "{ckpt}", "{videos}", "--labels", "{empty}"], "is empty"),
        (["run", "{ckpt}", "{videos}", "--text", "word " * 10_000], "10,?000"),
        (["run", "{ckpt}", "absent.mp4", "--text", "a"], "absent.mp4"),
        (["run", "{ckpt}", "{nothing}", "--text", "a"], "no video"),
        (["run", "{video}", "{ckpt}", "--text", "a"], "an MP4 .*; give the checkpoint first, then"),
        (["embed", "{videos}", "{ckpt}", "-o", "x.npz"], "a folder with videos.*checkpoint first"),
        (["run", "{ckpt}", "https://x.org/a.mp4", "--text", "a"], "^error: https://x.org/a.mp4 is"),
        (["run", "{ckpt}", "{videos}/*.mp4", "--text", "a"], "only outside quotes: leave them out"),
        (["run", "{ckpt}", "{videos}", "–text", "a"], "a dash: write two hyphens, as in --text"),
        (["eval", "{ckpt}", *RETRIEVAL, "{csv}", "--videos", "s3://b/c"], "^error: s3://b/c is an"),
        (
            ["eval", "{ckpt}", *RETRIEVAL, "{csv}", "--videos", "{video}"],
            "is not a folder; give the folder",
        ),
        (
            ["export", "{ckpt}", "-o", "s3://bucket/x"],
            "cannot write s3://bucket/x: it is an address",
        ),
        (["embed", "{ckpt}", "{videos}", "-o", "gs://b/x.npz"], "nothing is sent to one"),
        (["export", "owner/name", "-o", "x"], "on the Hugging Face hub it would be hf:owner/name"),
        (["calibrate", "nowhere.pt", "--videos", "{videos}", "-o", "x"], "no such file or folder"),
        (["inspect", "HF:owner/name"], "give hf:owner/name"),
        (["run", "{ckpt}", "{videos}", "--text", "a", "--text", "a"], "'a' is there twice"),
        (["run", "{ckpt}", "{videos}", "--texts", "{twice}"], "'a dog' is there twice"),
        (["embed", "{ckpt}", "--text", "a", "--text", "a", "-o", "x.npz"], "'a' is there twice"),
        (["run", "{ckpt}", "{videos}", "--text", "a", *FRAMES], "give one of them"),
        (["inspect", "{ckpt}", *FRAMES], "--set frames=3 and --frames 5 say the same"),
        (["bench", "{ckpt}", *FRAMES], "--set frames changes nothing here: give --frames"),
        (["run", "{ckpt}", "-", "--text", "a"], "not read from standard input"),
        (["run", "{ckpt}", "/dev/stdin", "--text", "a"], "not read from standard input"),
        (["run", "{ckpt}", "{videos}", "--text", "a", "--engine", "eagre"], "mean 'eager'"),
        (["run", "{ckpt}", "{videos}", "--text", "a", "--decoder", "pyva"], "mean 'pyav'"),
        (["embed", "{ckpt}", "{videos}", "-o", "x.txt"], "must end in .npz"),
        (["embed", "{ckpt}", "{videos}", "-o", "/nowhere/x.npz"], "no such folder"),
        (["export", "{ckpt}", "-o", "{videos}"], "not empty"),
        (["inspect", "a" * 5000], "no such file"),
        (["run", "{ckpt}", "a" * 5000, "--text", "a"], "no such video"),
        (["run", "{ckpt}", "{videos}", "--text", "a", "--split-words"], "give --labels FILE"),
        (["export", "{ckpt}", "-o", "x", "--split-words"], "give --labels FILE"),
        (["run", "{ckpt}", "{videos}", "--text", "  "], "blank"),
        (["export", "{ckpt}", "-o", "x", "--frames", "1-8"], "neither a number nor a range"),
        (["export", "{ckpt}", "-o", "x", "--clips", "nowhere"], "nowhere"),
        (["convert", "{ckpt}", "x.pth"], "must end in .safetensors"),
        (["bench", "--preset", "stan-b23"], "mean 'stan-b32'"),
        (["bench", "--engine", "eager,orrt"], "mean 'ort'"),
        (["bench", "--preset", "stan-tiny", "--batch", "one"], "no list of whole numbers"),
    ],
)
def test_exit_code_2(cli, checkpoint, videos, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n  \n")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "twice.txt").write_text("a dog\na cat\na dog\n")
    (tmp_path / "pairs.csv").write_text("video,text\nclip0,a dog\nclip1,a cat\n")
    before = sorted(tmp_path.iterdir())
    places = {
        "ckpt": checkpoint,
        "videos": videos,
        "video": sorted(videos.iterdir())[0],
        "empty": tmp_path / "empty.txt",
        "nothing": tmp_path / "nothing",
        "twice": tmp_path / "twice.txt",
        "csv": tmp_path / "pairs.csv",
    }
    done = cli(*(a.format(**places) for a in args), code=2)
    assert done.err.count("error:") == 1 and done.out == ""
    assert re.search(message, done.err), done.err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "command", ["inspect", "export", "bench", "verify", "calibrate", "convert"]
)
def test_a_command_without_videos_speaks_of_no_order(cli, videos, command):
    more = {"verify": ["B"], "convert": ["x.safetensors"], "export": ["-o", "x"]}
    more["calibrate"] = ["--videos", str(videos), "-o", "x"]
    for path in (videos / "clip0.mp4", videos):
        done = cli(command, path, *more.get(command, []), code=2)
        assert done.err.endswith("; give a checkpoint\n") and str(path) in done.err


def test_what_is_not_here_is_exit_code_3(cli, checkpoint, videos):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: nothing is missing")
    cli("run", checkpoint, videos, "--text", "a", "--device", "cuda", code=3, says="--device cpu")


def test_a_changed_artefact_is_exit_code_4(cli, artefact, videos, tmp_path):
    path = shutil.copytree(artefact, tmp_path / "copy") / "video.onnx"
    flip(path, path.stat().st_size // 2)
    words = ("run", tmp_path / "copy", videos, "--text", "a", "--engine", "ort")
    cli(*words, code=4, says="hash of video.onnx")


def test_a_bug_of_ours_is_exit_code_1(cli, checkpoint, monkeypatch):
    def fail(*args, **kwargs):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("stan_infer.checkpoints.load.inspect_checkpoint", fail)
    cli("inspect", checkpoint, code=1, says="internal error: ZeroDivisionError: oh")


def test_one_bad_file_does_not_stop_the_rest(cli, checkpoint, videos, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_text("this is no video")
    out = tmp_path / "v.npz"
    words = ("embed", checkpoint, videos / "clip0.mp4", bad, videos / "clip1.mp4", "-o", out)
    cli(*words, code=2, says="bad.mp4")
    assert [p[-9:] for p in np.load(out)["paths"]] == ["clip0.mp4", "clip1.mp4"]
    done = cli("run", checkpoint, bad, videos / "clip0.mp4", "--text", "a", "--json", code=2)
    assert "error" in done.records[0] and "scores" in done.records[1]


@pytest.mark.parametrize(
    "words, says",
    [  # calibrate needs 16 different files and sets ranges on the half; bench opens 8
        ("calibrate FOLDER --videos BAD -o out", "none of 8 videos can be used"),
        ("verify FOLDER FOLDER --videos BAD", "none of the 16 videos could be read"),
        ("bench CKPT --engine eager --include-decode BAD", "none of the 8 videos could be read"),
    ],
)
def test_bad_files_alone_are_named(cli, checkpoint, artefact, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "bad"
    bad.mkdir()
    for name in range(16):
        (bad / f"{name:02}.mp4").write_bytes(b"no video %d" % name)
    known = {"FOLDER": artefact, "CKPT": checkpoint, "BAD": bad}
    done = cli(*(known.get(w, w) for w in words.split()), code=2, says=says)
    last = done.err.splitlines()[-1]
    assert last.count(".mp4 is not a video") == 5
    assert "and 3 more" in last or "and 11 more" in last
    assert [p.name for p in tmp_path.iterdir()] == ["bad"]


def test_only_bad_files_write_nothing(cli, checkpoint, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"")
    cli("embed", checkpoint, bad, "-o", tmp_path / "v.npz", code=2, says="none of the 1 videos")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.mp4"]


WRITERS = ["embed C V -o {}.npz", "export C -o {}", "convert C {}.safetensors"]


def filled(words, checkpoint, videos, out):
    places = {"C": checkpoint, "V": videos}
    return [places.get(word) or word.format(out) for word in words.split()]


@pytest.mark.parametrize("words", WRITERS)
def test_a_file_size_limit_leaves_nothing_behind(checkpoint, videos, tmp_path, words):
    """A full disk, as far as a write can tell: the process may not write files beyond 2 kB."""
    code = (
        "import resource, signal, sys\n"
        "import torch.distributed.nn\n"  # torch 2.9 writes a file when this is imported
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "from stan_infer.cli.main import main\n"
        "sys.argv = ['stan-infer', *sys.argv[1:]]\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    given = filled(words, checkpoint, videos, tmp_path / "x")
    done = python("-c", code, *given, env=environment, code=2)
    assert "File too large" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    not os.path.isdir("/sys/kernel"), reason="needs a folder that root cannot write"
)
@pytest.mark.parametrize("words", WRITERS)
def test_a_read_only_folder(cli, checkpoint, videos, words):
    given = filled(words, checkpoint, videos, "/sys/kernel/x")
    cli(*given, code=2, says="cannot write /sys/kernel")


def test_ctrl_c_leaves_nothing_behind(checkpoint, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "clip.mp4", frames=30)
    for i in range(1000):
        (folder / f"clip{i}.mp4").symlink_to(folder / "clip.mp4")
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-m", "stan_infer", "embed", checkpoint, folder, "-o", out / "v.npz"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)

    def decoding():
        return [p for p in children(process.pid) if b"decode_child" in command_line(p)]

    wait_until(lambda: list(out.iterdir()), process)  # the file that is being written
    workers = decoding()
    assert workers and process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"Traceback" not in err
    assert list(out.iterdir()) == []
    for pid in workers:
        assert has_ended(pid), "a decoding worker lives on"


@pytest.fixture
def huge(tmp_path):
    """A checkpoint of finite weights whose features overflow."""
    model = init_random(Stan(preset("stan-tiny")))
    with torch.no_grad():
        model.visual.proj.fill_(3e38)
    save_model(model, tmp_path / "huge.safetensors")
    return tmp_path / "huge.safetensors"


def command_line(pid: int) -> bytes:
    """The words of a process, or nothing once it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def inspect_into(checkpoint, out):
    command = [sys.executable, "-m", "stan_infer", "inspect", checkpoint, "--json"]
    return subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_standard_output_that_is_full(checkpoint):
    with open("/dev/full", "w") as full:
        done = inspect_into(checkpoint, full)
    assert done.returncode == 2 and "cannot write the results" in done.stderr


def test_features_that_are_not_finite_are_errors_of_their_video(cli, huge, videos, tmp_path):
    cli("embed", huge, videos, "-o", tmp_path / "v.npz", code=2, says="not finite")
    assert not (tmp_path / "v.npz").exists()


def test_a_file_name_that_is_not_utf8(cli, checkpoint, videos, tmp_path):
    shutil.copy(videos / "clip0.mp4", os.fsencode(tmp_path) + b"/\xff.mp4")
    done = cli("run", checkpoint, tmp_path, "--text", "a", "--json")
    assert done.out.isascii() and len(done.records) == 1


def test_without_torch_the_command_that_helps_is_named(checkpoint, artefact, videos, tmp_path):
    places = {"C": checkpoint, "D": artefact, "V": videos}
    commands = (
        "run C V --text a",
        "embed C V -o v.npz",
        "export C -o out",
        "convert C c.safetensors",
        "bench C",
        "calibrate C --videos V -o out",
        "calibrate D --videos V -o out",
    )
    given = [[places.get(word, word) for word in words.split()] for words in commands]
    ended = run_commands(given, "import sys; sys.modules['torch'] = None\n", cwd=tmp_path)
    assert len(ended) == len(commands)
    for err, code in ended:
        assert code == "3" and install_command("cpu") in err, err
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_is_no_bug_of_ours(checkpoint):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        done = inspect_into(checkpoint, pipe)
    assert done.returncode == 141 and done.stderr == ""


@pytest.mark.parametrize("words", ["inspect C", "inspect C --set frames=0", "run C V --text a"])
def test_a_reader_of_both_streams_that_leaves(checkpoint, videos, words):
    """As with 2>&1 | head: the exit code is that of the error, or of the results."""
    places = {"C": str(checkpoint), "V": str(videos)}
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        command = [sys.executable, "-m", "stan_infer", *(places.get(w, w) for w in words.split())]
        done = subprocess.run(command, stdout=pipe, stderr=pipe)
    assert done.returncode == (2 if "frames=0" in words else 141)


def test_sigterm_takes_temporary_files_and_workers_along(checkpoint, videos, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "stan_infer", "bench", str(checkpoint), "--repeats", "100000"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    # The exported folder of engine ort appears when measuring begins.
    wait_until(lambda: list(tmp_path.glob("stan-infer-*/*/fp32")), process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and b"Traceback" not in err
    assert not list(tmp_path.glob("stan-infer-*"))


def test_bench_gives_no_speed_to_a_wrong_engine(cli, huge):
    cli("bench", huge, "--engine", "eager", "--repeats", "1", code=4, says="not finite")


def test_names_in_warnings_do_not_reach_the_terminal_raw(checkpoint, tmp_path):
    (tmp_path / "a.\x1b[31mred").touch()
    (tmp_path / "b.mp4").touch()
    done = python("-m", "stan_infer", "run", checkpoint, tmp_path, "--text", "x", code=2)
    assert r"1 other files are passed over (.\x1b[31mred: 1)" in done.stderr
    assert "\x1b" not in done.stderr
