"""Standard streams that are closed or full."""

import os
import subprocess
import sys

import pytest


def _run(words, streams, **environ):
    command = f'exec "$0" -m stan_infer {words} {streams}'
    return subprocess.run(
        ["sh", "-c", command, sys.executable],
        env={**os.environ, **environ}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("streams", [">&-", "2>&-", "<&-", ">&- 2>&-"])
def test_a_closed_stream_changes_no_result(artefact, videos, tmp_path, streams):
    words = f"run {artefact} {videos} --text a --text b --csv {tmp_path}/rows.csv"
    assert _run(words, streams).returncode == 0
    rows = (tmp_path / "rows.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * len(list(videos.iterdir()))


@pytest.mark.parametrize("words", ["--version", "run --help", "doctor"])
def test_no_room_for_the_output(words):
    done = _run(words, "> /dev/full")
    assert done.returncode == 2 and done.stderr.startswith("error: cannot write")


def test_no_room_for_the_message():
    assert _run("run absent.pth absent.mp4 --text a", "2> /dev/full").returncode == 2


def test_completion_where_there_is_no_home():
    words = ["bash", "-c", '"$0" -m stan_infer --install-completion; exit $?', sys.executable]
    home = {**os.environ, "HOME": "/dev/null"}
    done = subprocess.run(words, env=home, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: cannot write /dev/null")


def test_completion_where_no_shell_is_known():
    code = (
        "import sys, typer._completion_shared as shared\n"
        "shared._get_shell_name = lambda: None\n"
        "import typer.completion as completion\n"
        "completion._get_shell_name = lambda: None\n"
        "sys.argv = ['stan-infer', '--install-completion']\n"
        "from stan_infer.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: run this in a shell"), done


def test_debug_is_an_option_of_the_program_alone():
    done = _run("run absent.pth absent.mp4 --text --debug", "")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    done = _run("--debug run absent.pth absent.mp4 --text a", "")
    assert done.returncode == 2 and "Traceback" in done.stderr
