"""verify: what a row holds, what never passes, and which inputs are errors."""

import json
import math
import shutil

import numpy as np
import onnx
import pytest

from stan_infer.errors import InputError
from stan_infer.verification.inputs import write_videos
from stan_infer.verification.stage import Stage
from stan_infer.video.clip import read_clip_info
from stan_infer.video.spec import ClipSpec
from tests.conftest import zero_weight
from tests.exported import exported, rewrite
from tests.verification.records import verify

FAST = {"frames": (2,)}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"), 16)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def row(record, stage):
    return next(r for r in record["stages"] if r["stage"] == stage)


@pytest.mark.parametrize(
    ("want", "got"),
    [
        ([1.0, 2.0], [1.0, math.nan]),
        ([1.0, math.nan], [1.0, math.nan]),
        ([1.0, math.nan], [1.0, 2.0]),
        ([1.0, math.inf], [1.0, math.inf]),
        ([1.0, 2.0], [[1.0, 2.0]]),
        ([0.0, 0.0], [0.0, 1e-3]),
    ],
)
def test_nan_infinity_and_shapes_never_pass(want, got):
    stage = Stage("x", 0.5)
    stage.compare("fine", ([1.0], [1.0]))
    stage.compare("bad", (np.array(want), np.array(got)))
    stage.compare("fine again", ([1.0], [1.0]))
    assert stage.row()["pass"] is False and stage.row()["worst"] == "bad"


def test_a_row_is_relative_to_the_largest_wanted_value():
    stage = Stage("x", 0.1)
    stage.compare("here", (np.float32([[3, 4]]), np.float32([[3, 4.2]])))
    result = stage.row()
    assert result["pass"] is True and result["max_rel"] == pytest.approx(0.05)
    assert 0.999 < result["min_cos"] < 1 and result["worst"] == "here"
    json.dumps(result)


def test_nothing_compared_is_not_green():
    assert Stage("x").row()["pass"] is None


def test_a_folder_equals_its_checkpoint(tiny_model, folder, videos):
    record = verify(tiny_model, folder, videos=videos, frames=(1, 2, 64))
    assert record["pass"] and record["first_failed"] is None
    assert record["not_compared"] == ["ids", "labels"]
    assert row(record, "video tower")["max_rel"] < 5e-5
    assert row(record, "rank")["agreement"] == 1
    assert row(record, "decode")["agreement"] == 1
    assert "T=64" in str(row(record, "video tower")) or row(record, "video tower")["cases"] > 10
    json.dumps(record)


def test_two_folders_and_the_other_way_round(tiny_model, folder, copy, videos):
    for pair in ((folder, copy), (copy, tiny_model)):
        assert verify(*pair, videos=videos[2:3], **FAST)["pass"]


def test_a_single_graph_is_one_stage_and_the_rest_is_not_green(tiny_model, folder):
    record = verify(tiny_model, folder / "text.onnx")
    assert record["pass"] and row(record, "text tower")["pass"]
    assert row(record, "weights")["pass"]
    others = [r for r in record["stages"] if r["stage"] not in ("text tower", "weights")]
    assert all(r["pass"] is None and "not compared" in r["note"] for r in others)
    record = verify(folder / "video.onnx", folder / "video.onnx", **FAST)
    assert record["pass"] and record["b"]["kind"] == "graph"
    record = verify(folder / "video.onnx", folder / "text.onnx", **FAST)
    assert not record["pass"] and record["first_failed"] is None


def test_sound_files_alone_prove_nothing(tiny_model):
    video, text = (exported(tiny_model, tower=tower) for tower in ("video", "text"))
    record = verify(video, text, **FAST)
    assert not record["pass"] and record["first_failed"] is None and row(record, "files")["pass"]


def test_an_edited_file_has_a_row_of_its_own(tiny_model, copy, videos):
    with (copy / "golden.npz").open("ab") as f:
        f.write(b"\0")
    record = verify(tiny_model, copy, videos=videos[2:3], **FAST)
    assert record["first_failed"] == "files"
    assert "golden.npz changed" in row(record, "files")["note"]
    assert row(record, "video tower")["pass"] and row(record, "rank")["pass"]


def test_what_the_runtime_refuses_is_a_failed_stage(tiny_model, copy, videos):
    (copy / "video.onnx").write_bytes((copy / "video.onnx").read_bytes()[:-500])
    record = verify(tiny_model, copy, videos=videos[2:3], bisect=True, **FAST)
    assert record["first_failed"] == "video tower" and row(record, "text tower")["pass"]
    assert row(record, "video tower")["note"]
    assert record["bisect"]["video tower"]["block"] is None


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        (lambda m: m["preprocess"].pop("sampling"), "decode"),
        (lambda m: m["preprocess"].update(mean="x"), "input"),
        (lambda m: m["preprocess"].update(mean=[1, 2]), "input"),
        (lambda m: m["preprocess"].update(layout="BTCHW"), "input"),
        (lambda m: m["text"].update(padding=None), "score"),
        (lambda m: m["graphs"][0].update(file="../video.onnx"), None),
    ],
)
def test_a_malformed_manifest_fails_its_stage(tiny_model, copy, videos, change, stage):
    rewrite(copy, change)
    record = verify(tiny_model, copy, videos=videos[2:3], **FAST)
    assert not record["pass"]
    if stage in ("decode", "input"):
        assert record["first_failed"] == stage


def test_towers_that_share_no_number_of_frames_are_not_compared(tiny_model, videos):
    few, more = (exported(tiny_model, tower="video", frames=n) for n in (4, 6))
    tower = row(verify(few, more, videos=videos[2:3], **FAST), "video tower")
    assert tower["pass"] is None and "share no batch size or number of frames" in tower["note"]


def test_openvino_against_ort(folder, videos):
    pytest.importorskip("openvino")
    record = verify(folder, folder, engine_b="openvino", videos=videos[2:3], **FAST)
    assert record["pass"] and record["b"]["engine"] == "openvino"


def test_bisect_between_two_folders_names_the_block(folder, copy, videos):
    zero_weight(copy / "video.onnx", "video/branch/layer1/spatial/mlp/fc1/bias")
    for pair in ((folder, copy), (copy, folder)):
        record = verify(*pair, videos=videos[2:3], bisect=True, **FAST)
        found = record["bisect"]["video tower"]
        assert found["block"] == "video/branch/layer1/spatial/mlp/fc2"
        assert found["operation"] == "video/branch/layer1/spatial/mlp/fc1"


def test_bisect_needs_our_names(tiny_model, copy, videos):
    model = onnx.load(copy / "video.onnx")
    for node in model.graph.node:  # as a graph that came through torch.onnx.export
        node.input[:] = [n.replace("video/", "v/") for n in node.input]
        node.output[:] = [n.replace("video/", "v/") for n in node.output]
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.replace("video/", "v/")
    onnx.save(model, copy / "video.onnx")
    record = verify(tiny_model, copy, videos=videos[2:3], bisect=True, tolerance=0, **FAST)
    found = record["bisect"]["video tower"]
    assert found["block"] is None and "fused graph" in found["reason"]


def test_a_bad_video_does_not_stop_the_rest(tiny_model, folder, videos, tmp_path):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"hello\n")
    record = verify(tiny_model, folder, videos=[bad, videos[2], bad], **FAST)
    assert record["pass"] and [f["video"] for f in record["failures"]] == [str(bad)]
    assert "bad.mp4 is not a video: it is a text" in record["failures"][0]["error"]
    assert not verify(tiny_model, folder, videos=videos[2:3], **FAST)["failures"]
    with pytest.raises(InputError, match=r"none of the 2 videos could be read: .*bad\.mp4"):
        verify(tiny_model, folder, videos=[bad, bad], **FAST)


def test_bad_input_is_an_error(tiny_model, folder, videos, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    (tmp_path / "x.mp4").write_bytes(b"nothing")
    for pair in (
        (tiny_model, tmp_path),
        (tiny_model, tmp_path / "absent.onnx"),
        (tiny_model, tmp_path / "x.onnx"),
        (tiny_model, folder / "preprocess.onnx"),
        (tmp_path / "absent.pth", folder),
    ):
        with pytest.raises(InputError):
            verify(*pair, **FAST)
    for options in (
        {"engine_b": "eager"},
        {"engine_a": "ort"},
        {"engine_b": "otr"},
        {"tolerance": -1.0},
        {"frames": ()},
        {"videos": [tmp_path / "x.mp4"]},
    ):
        with pytest.raises(InputError):
            verify(tiny_model, folder, **{**FAST, **options})


def test_golden_videos_tell_frames_apart_and_one_is_turned(videos):
    counts = {}
    for path in videos:
        clip = read_clip_info(path, ClipSpec(frames=6, short_side=16, crop=16))
        counts[path.stem] = clip.total_frames
        if clip.total_frames > 6:
            apart = np.abs(np.diff(clip.pixels.astype(int), axis=0)).max((1, 2, 3))
            assert (apart > 8).all()
    assert counts == {"wide": 40, "tall": 75, "short": 5, "one": 1, "turned": 31}
    one = ClipSpec(frames=1, short_side=16, crop=16)
    height, width = read_clip_info(videos[-1], one).source_size
    assert height > width
