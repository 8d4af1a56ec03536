"""stan-infer verify: what it prints, and its exit codes."""

import shutil

import pytest

from tests.conftest import zero_weight
from tests.exported import rewrite

FAST = ("--frames", "2")


@pytest.fixture
def copy(artefact, tmp_path):
    return shutil.copytree(artefact, tmp_path / "copy")


def test_a_folder_passes(cli, checkpoint, artefact, videos, tmp_path):
    (tmp_path / "texts.txt").write_text("a dog\na cat\n")
    options = ("--videos", videos, "--texts", tmp_path / "texts.txt", *FAST)
    done = cli("verify", checkpoint, artefact, *options)
    assert done.out.splitlines()[0].split()[:4] == ["stage", "pass", "differs", "allowed"]
    assert "not compared: no folder has labels" in done.out and "rank" in done.out
    (record,) = cli("verify", checkpoint, artefact, *options, "--json").records
    assert record["schema"] == "stan-infer/verify/1" and record["pass"]
    assert {r["stage"] for r in record["stages"] if r["pass"]} >= {"ids", "decode", "rank"}


def test_a_difference_is_exit_code_4_with_stage_and_block(cli, checkpoint, copy, videos):
    zero_weight(copy / "video.onnx", "video/trunk/layer1/mlp/fc1/bias")
    done = cli("verify", checkpoint, copy, "--videos", videos, *FAST, "--bisect", "--json", code=4)
    assert not done.records[0]["pass"]
    assert "stage 'video tower'" in done.err
    block, operation = "video/trunk/layer1/mlp/fc2", "video/trunk/layer1/mlp/fc1"
    words = f"found in the block that ends with {block}, at operation {operation}"
    assert words in done.err and "also: files" in done.err


def test_one_folder_is_compared_with_its_golden_data(cli, artefact, copy):
    done = cli("verify", artefact)
    assert "agrees with its golden data" in done.err and "golden data" in done.out
    zero_weight(copy / "video.onnx", "video/trunk/layer1/mlp/fc1/bias")
    cli("verify", copy, code=4, says="video.onnx changed after the export")
    rewrite(copy)
    cli("verify", copy, "--json", code=4, says="differ first in stage 'video tower'")


def test_nothing_in_common_is_exit_code_4(cli, artefact):
    words = ("verify", artefact / "video.onnx", artefact / "text.onnx", *FAST)
    cli(*words, code=4, says="nothing was compared")


def test_a_bad_video_is_named_and_left_out(cli, checkpoint, artefact, videos, tmp_path):
    shutil.copytree(videos, tmp_path / "v")
    (tmp_path / "v" / "bad.mp4").write_bytes(b"<!doctype html>")
    words = ("verify", checkpoint, artefact, "--videos", tmp_path / "v", *FAST, "--json")
    done = cli(*words, code=2, says="bad.mp4 is not a video: it is a web page")
    assert done.records[0]["pass"] and len(done.records[0]["failures"]) == 1
    zero_weight(
        shutil.copytree(artefact, tmp_path / "c") / "video.onnx", "video/trunk/layer1/mlp/fc2/bias"
    )
    cli(
        "verify",
        checkpoint,
        tmp_path / "c",
        "--videos",
        tmp_path / "v",
        *FAST,
        code=4,
        says="bad.mp4",
    )


@pytest.mark.parametrize(
    "args",
    [
        ("absent.pth", "{folder}"),
        ("{ckpt}", "{folder}", "--frames", "x"),
        ("{ckpt}", "{folder}", "--texts", "absent.txt"),
        ("{ckpt}",),
    ],
)
def test_bad_input_is_exit_code_2(cli, checkpoint, artefact, args):
    done = cli("verify", *(a.format(ckpt=checkpoint, folder=artefact) for a in args), code=2)
    assert not done.out
