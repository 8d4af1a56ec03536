import json
import shutil

import numpy as np
import pytest

from examples.motion.clips import write_mp4
from stan_infer.artefacts.calibration_file import SCHEMA
from stan_infer.artefacts.onnx_file import read_graph
from stan_infer.checkpoints.load import load_model
from stan_infer.export.read_weights import read_weights
from stan_infer.network.fold import fold_video
from stan_infer.quantisation.options import CalibrationOptions
from stan_infer.quantisation.ranges import State, collect_ranges
from tests.conftest import write_video
from tests.exported import exported

pytestmark = pytest.mark.usefixtures("quick_calibration")
RUN = ("--samples", "3", "--threads", "1", "--force", "--min-cosine", "0.9")


@pytest.fixture(scope="module")
def quantised(artefact, videos, tmp_path_factory):
    from stan_infer.quantisation.calibrate import calibrate

    out = tmp_path_factory.mktemp("int8") / "int8"
    options = CalibrationOptions(samples=3, force=True, min_cosine=0.9, threads=1)
    found = calibrate(artefact, videos, out, options)
    assert found.is_met and not found.failed
    return out


def test_a_folder_gives_the_weights_that_the_model_folds_to(artefact, checkpoint):
    import torch

    from stan_infer.artefacts.folder import read_artefact
    from stan_infer.network.torch_ops import encode_video, in_torch

    read, folded = read_weights(read_artefact(artefact)), fold_video(load_model(checkpoint))
    video = torch.randint(0, 256, (2, 3, 64, 64, 3), dtype=torch.uint8)
    a, b = encode_video(in_torch(read), video)[0], encode_video(folded, video)[0]
    assert (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.usefixtures("quiet_machine")
def test_the_folder_runs_and_says_what_it_is(cli, quantised, artefact, checkpoint, videos):
    manifest = json.loads((quantised / "manifest.json").read_text())
    video = next(g for g in manifest["graphs"] if g["role"] == "video")
    assert video["precision"] == "int8" and video["quant"]["linears"] > 20
    whole = (artefact / "video.onnx").stat().st_size
    assert (quantised / "video.onnx").stat().st_size < 0.6 * whole
    assert read_graph(quantised / "video.onnx").metadata
    record = json.loads((quantised / "calibration.json").read_text())
    assert record["schema"] == SCHEMA and (record["clips"], record["checked"]) == (3, 0)
    assert all(t["scale"] > 0 for t in record["tensors"].values())
    assert {r["linear"] for r in record["sensitivity"]} == set(record["tensors"])
    assert (quantised / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    clip = next(videos.iterdir())
    for options in ((), ("--engine", "openvino")):
        cli("run", quantised, clip, "--text", "a", "--text", "b", "--json", *options)
    cli("verify", checkpoint, quantised)
    cli("embed", quantised, clip, "-o", quantised.parent / "v.npz", "--json")
    cli("bench", quantised, "--engine", "ort", "--frames", "2", "--repeats", "1")


def test_the_order_of_the_list_changes_nothing(cli, artefact, videos, tmp_path):
    found = []
    names = sorted(p.name for p in videos.iterdir())
    for i, order in enumerate((names, names[::-1])):
        for name in names:
            if not (tmp_path / name).exists():
                shutil.copy(videos / name, tmp_path / name)
        (tmp_path / "list.txt").write_text("\n".join(order))
        out = tmp_path / f"out{i}"
        cli("calibrate", artefact, "--videos", tmp_path / "list.txt", "-o", out, *RUN)
        found.append((out / "video.onnx").read_bytes())
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["max", "entropy"])
def test_a_stopped_run_goes_on_with_the_same_numbers(artefact, videos, tmp_path, method):
    from stan_infer.artefacts.folder import read_artefact

    folder = read_artefact(artefact)
    weights, paths = read_weights(folder), sorted(videos.iterdir())
    given = {"root": videos, "options": CalibrationOptions(method=method)}
    first, second = (State(tmp_path / name, {"a": 1}) for name in ("a.npz", "b.npz"))
    whole = collect_ranges(weights, folder.config, paths, state=first, **given)

    class Stopped(Exception):
        pass

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        collect_ranges(weights, folder.config, paths, state=second, on_clip=stop, **given)
    said: list[str] = []
    again = collect_ranges(weights, folder.config, paths, state=second, say=said.append, **given)
    assert "after 1 clips" in said[0]
    assert again.clips == whole.clips
    for name, h in whole.ranges.items():
        other = again.ranges[name]
        assert (h.largest, h.exponent) == (other.largest, other.exponent)
        assert np.array_equal(h.counts, other.counts)
        assert h.counts.any() == (method != "max")


@pytest.mark.parametrize("has_root", [True, False])
def test_videos_of_one_name_are_told_apart_when_a_run_goes_on(artefact, videos, tmp_path, has_root):
    """Each in a folder of its own, outside the root: the second is not taken for the first."""
    from stan_infer.artefacts.folder import read_artefact

    folder = read_artefact(artefact)
    paths = [tmp_path / name / "clip.mp4" for name in ("a", "b")]
    for path, clip in zip(paths, sorted(videos.iterdir()), strict=False):
        path.parent.mkdir()
        shutil.copy(clip, path)
    given = {"root": tmp_path / "list" if has_root else None}
    given |= {"options": CalibrationOptions(method="entropy")}
    weights = read_weights(folder)
    whole = collect_ranges(
        weights, folder.config, paths, state=State(tmp_path / "whole.npz", {"a": 1}), **given
    )
    state = State(tmp_path / "state.npz", {"a": 1})

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_ranges(weights, folder.config, paths, state=state, on_clip=stop, **given)
    again = collect_ranges(weights, folder.config, paths, state=state, **given)
    assert again.clips == whole.clips == sorted(str(p) for p in paths)
    for name, h in whole.ranges.items():
        assert np.array_equal(h.counts, again.ranges[name].counts)


def test_a_state_without_counts_serves_no_method_that_needs_them(artefact, videos, tmp_path):
    from stan_infer.artefacts.folder import read_artefact

    folder = read_artefact(artefact)
    weights, paths = read_weights(folder), sorted(videos.iterdir())
    state, said = State(tmp_path / "a.npz", {"a": 1}), []
    given = {"root": videos, "state": state, "say": said.append}

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        options = CalibrationOptions(method="max")
        collect_ranges(weights, folder.config, paths, options=options, on_clip=stop, **given)
    assert state.path.exists()
    options = CalibrationOptions(method="entropy")
    found = collect_ranges(weights, folder.config, paths, options=options, **given)
    assert all(h.counts.any() for h in found.ranges.values()) and said == []


def test_black_clips_are_refused(cli, artefact, tmp_path):
    (tmp_path / "v").mkdir()
    write_mp4(tmp_path / "v" / "a.mp4", np.zeros((20, 96, 96, 3), np.uint8))
    words = ("calibrate", artefact, "--videos", tmp_path / "v", "-o", tmp_path / "o", *RUN)
    cli(*words, code=2, says="one flat colour")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["v"]


def test_a_broken_video_is_named_and_left_out(cli, artefact, tmp_path):
    (tmp_path / "v").mkdir()
    write_video(tmp_path / "v" / "a.mp4")
    (tmp_path / "v" / "b.mp4").write_bytes(b"no video")
    words = ("calibrate", artefact, "--videos", tmp_path / "v", "-o", tmp_path / "o", *RUN)
    done = cli(*words, code=2, says="b.mp4")
    assert "2 videos set the ranges; up to 3 would" in done.err
    assert json.loads((tmp_path / "o" / "calibration.json").read_text())["clips"] == 1


def test_a_bound_that_cannot_be_met_is_exit_code_4(cli, artefact, more_videos, tmp_path):
    cli(
        "calibrate", artefact, "--videos", more_videos, "-o", tmp_path / "o", "--samples", "3",
        "--min-cosine", "1", code=4, says="does not reach a cosine of 1")  # fmt: skip
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--precision", "int4"), "int4"),
        (("--method", "minmax"), "minmax"),
        (("--percentile", "99"), "--method percentile"),
        (("--max-drop", "1"), "--annotations"),
        (("--min-cosine", "2"), "--min-cosine"),
    ],
)
def test_wrong_options(cli, artefact, videos, tmp_path, options, word):
    words = ("calibrate", artefact, "--videos", videos, "-o", tmp_path / "o", *options)
    cli(*words, code=2, says=word)


def test_an_empty_folder_and_a_folder_in_8_bits(cli, artefact, quantised, videos, tmp_path):
    (tmp_path / "v").mkdir()
    words = ("calibrate", artefact, "--videos", tmp_path / "v", "-o", tmp_path / "o")
    cli(*words, code=2, says="holds no video")
    words = ("calibrate", artefact, "--videos", videos, "-o", artefact, *RUN)
    cli(*words, code=2, says="is also read")
    words = ("calibrate", quantised, "--videos", videos, "-o", tmp_path / "o", "--force")
    done = cli(*words, code=2, says="starts from the fused graph")
    assert len(done.err.splitlines()) == 1  # it is refused before anything is said of the videos


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"input": "float"}, "takes normalised floats"),
        ({"batch": 2}, "takes batch 2 to 2; calibration runs one clip at a time"),
    ],
)
def test_a_folder_that_takes_no_such_clips_is_refused_before_the_work(
    cli, checkpoint, videos, tmp_path, options, words
):
    folder = exported(load_model(checkpoint), tower="video", **options)
    given = ("calibrate", folder, "--videos", videos, "-o", tmp_path / "o", *RUN)
    done = cli(*given, code=2, says=words)
    assert "measuring" not in done.err and not (tmp_path / "o").exists()


def test_labels_need_a_text_tower(cli, checkpoint, videos, tmp_path):
    folder = exported(load_model(checkpoint), tower="video")
    (tmp_path / "l.csv").write_text("video,label\nclip0.mp4,a\nclip1.mp4,b\n")
    given = (
        "--videos",
        videos,
        "-o",
        tmp_path / "o",
        "--annotations",
        tmp_path / "l.csv",
        "--force",
    )
    cli("calibrate", folder, *given, code=2, says="has no text tower, which labels need")


def test_a_fixed_folder_with_a_class_head(cli, checkpoint, videos, tmp_path):
    model = load_model(checkpoint)
    sizes = {"batch": 1, "frames": model.config.frames}
    folder = exported(model, head="classify", labels=["a", "b", "c"], **sizes)
    (tmp_path / "l.csv").write_text("video,label\nclip0.mp4,a\nclip1.mp4,b\n")
    done = cli(
        "calibrate", folder, "--videos", videos, "-o", tmp_path / "o", "--force",
        "--annotations", tmp_path / "l.csv", "--max-drop", "100", "--samples", "3",
    )  # fmt: skip
    assert "points" in done.out and "not checked" in done.out
    assert cli("inspect", tmp_path / "o").code == 0
    clip = next(videos.iterdir())
    cli("run", tmp_path / "o", clip, "--text", "a", "--text", "b")
