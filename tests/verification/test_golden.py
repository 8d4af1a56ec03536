"""One exported folder against its own golden data."""

import io
import json
import shutil

import numpy as np
import pytest

from stan_infer.errors import InputError, MissingError
from stan_infer.verification import folder_side
from stan_infer.verification.stage import ARITHMETIC
from stan_infer.video.decode_worker import DecodeWorker
from tests.conftest import ROOT, zero_weight
from tests.exported import exported, rewrite
from tests.verification.folders import BASES, ENGINES, Bases, Folder, calibrated
from tests.verification.records import verify

CLIPS = ROOT / "examples" / "motion" / "clips"


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return Bases(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def copy(bases, tmp_path):
    return shutil.copytree(bases["words"][1], tmp_path / "copy")


def _rows(record):
    return {row["stage"]: row for row in record["stages"]}


@pytest.mark.parametrize("name", BASES)
def test_a_folder_agrees_with_its_golden_data(bases, name):
    record = verify(bases[name][1], engine_a=ENGINES.get(name))
    assert record["pass"] and record["a"]["kind"] == "golden data"
    rows = _rows(record)
    compared = {stage for stage, row in rows.items() if row["pass"]}
    assert compared >= {"files", "decode", "resize", "video tower", "text tower", "score"}
    assert ("ids" in compared, "labels" in compared) == (name == "words",) * 2
    if name in ("int8", "fp8"):
        bound = rows["bound"]  # clips unlike those of the calibration may not reach it
        assert bound["pass"] is not False
        assert "a cosine of" in (bound["reference"] or bound["note"])
    else:
        assert rows["video tower"]["max_rel"] <= rows["video tower"]["tolerance"] <= 0.1


def _weight(folder, manifest):
    zero_weight(folder / "video.onnx", "video/trunk/layer1/mlp/fc1/bias")


def _text(folder, manifest):
    zero_weight(folder / "text.onnx", "text/layer0/mlp/fc1/bias")


def _padding(folder, manifest):
    manifest["text"]["padding"] = 7


def _short_side(folder, manifest):
    manifest["preprocess"]["resize"]["short_side"] += 1


def _temperature(folder, manifest):
    manifest["model"]["temperature"] *= 2


def _mean(folder, manifest):
    manifest["preprocess"]["mean"] = [0.0, 0.0, 0.0]


def _frames(folder, manifest):
    manifest["preprocess"]["sampling"]["frames"] = 3


def _schema(folder, manifest):
    manifest["schema"] = "9.0"


def _precision(folder, manifest):
    next(g for g in manifest["graphs"] if g["role"] == "video")["precision"] = "fp16"


def _unlisted(folder, manifest):
    (folder / "README").touch()


def _clip(folder, manifest):
    shutil.copy(CLIPS / "red_cross_moves_left.mp4", folder / "golden.clip")


def _no_video(folder, manifest):
    (folder / "golden.clip").write_bytes(b"no video")


def _colours(folder, manifest):
    """The file says BT.601 where it was BT.709: in H.264's own header."""
    av = pytest.importorskip("av")
    data = (folder / "golden.clip").read_bytes()
    file = str(folder / "golden.clip")
    with av.open(io.BytesIO(data)) as source, av.open(file, "w", format="mp4") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        tagged = av.BitStreamFilterContext(
            "h264_metadata=matrix_coefficients=5", source.streams.video[0], stream
        )
        for packet in source.demux(video=0):
            for p in tagged.filter(packet if packet.size else None):
                p.stream = stream
                out.mux(p)


def _frame(folder, manifest):
    """One level of one pixel."""
    arrays = dict(np.load(folder / "golden.npz"))
    arrays["clip"][0, 0, 0, 0] ^= 1
    np.savez(folder / "golden.npz", **arrays)


def _unnamed_clip(folder, manifest):
    del manifest["golden"]["clip"]
    (folder / "golden.clip").unlink()


def _labels(folder, manifest):
    path = folder / "labels.txt"
    path.write_text("\n".join(reversed(path.read_text().splitlines())) + "\n")


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        (_weight, "video tower"),
        (_text, "text tower"),
        (_padding, "files"),
        (_short_side, "files"),
        (_temperature, "files"),
        (_mean, "files"),
        (_frames, "files"),
        (_schema, "files"),
        (_precision, "files"),
        (_labels, "labels"),
        (_clip, "decode"),
        (_no_video, "decode"),
        (_colours, "decode"),
        (_frame, "decode"),
        (_unnamed_clip, "decode"),
    ],
)
def test_a_fault_is_named_though_the_hashes_are_right(copy, change, stage):
    rewrite(copy, lambda manifest: change(copy, manifest))
    record = verify(copy)
    assert not record["pass"] and record["first_failed"] == stage


@pytest.fixture(scope="module")
def split(tiny_model):
    return exported(tiny_model, split=True)


def test_the_parts_together_are_the_whole(split):
    row = _rows(verify(split))["parts"]
    assert row["pass"] and row["max_rel"] <= 1e-6 and row["cases"] == 3


def test_the_parts_are_run_by_the_engine_that_was_asked_for(split, monkeypatch):
    seen, real = [], folder_side.open_session
    monkeypatch.setattr(
        folder_side, "open_session", lambda *given: seen.append(given[1]) or real(*given)
    )
    row = _rows(verify(split, engine_a="openvino"))["parts"]
    assert seen == ["openvino"] and row["pass"]
    assert row["tolerance"] == ARITHMETIC  # both are in fp32, whatever the tower may differ by


def test_the_parts_of_8_bits_are_in_8_bits(tiny_model, tmp_path):
    out = calibrated(tiny_model, tmp_path / "int8", "int8", split=True)
    graphs = {g["role"]: g for g in json.loads((out / "manifest.json").read_text())["graphs"]}
    counts = {role: graphs[role]["quant"]["linears"] for role in ("video", "trunk", "branch")}
    assert counts["trunk"] and counts["branch"]
    assert counts["video"] == counts["trunk"] + counts["branch"]
    assert {graphs[role]["precision"] for role in counts} == {"int8"}
    row = _rows(verify(out))["parts"]
    assert row["pass"] and row["max_rel"] < 1e-5  # the same 8 bits, so the same sums


@pytest.mark.parametrize(
    ("role", "weight"),
    [
        ("trunk", "video/trunk/layer0/mlp/fc1/bias"),
        ("branch", "video/branch/layer0/mlp/fc1/bias"),
        ("branch", "video/branch/layer0/start/time"),
    ],
)
def test_a_part_that_is_not_the_whole_is_named(split, tmp_path, role, weight):
    copy = shutil.copytree(split, tmp_path / "copy")
    zero_weight(copy / f"{role}.onnx", weight)
    rewrite(copy)
    assert verify(copy)["first_failed"] == "parts"


def test_a_part_alone_is_a_fault(split, tmp_path):
    copy = shutil.copytree(split, tmp_path / "copy")
    (copy / "trunk.onnx").unlink()

    def without(manifest):
        manifest["graphs"] = [g for g in manifest["graphs"] if g["role"] != "trunk"]

    rewrite(copy, without)
    row = _rows(verify(copy))["parts"]
    assert row["pass"] is False and "--split" in row["note"]


def test_a_matrix_of_zeros_in_8_bits_is_named(bases, tmp_path):
    copy = shutil.copytree(bases["int8"][1], tmp_path / "copy")
    folder = Folder(copy)
    folder.weight("video/trunk/layer1/mlp/fc1/weight", lambda w: w * 0)
    folder.save()
    assert verify(copy)["first_failed"] == "video tower"


def test_a_file_that_nobody_listed_is_named(copy):
    _unlisted(copy, None)
    assert "README" in _rows(verify(copy))["files"]["note"]


def test_a_changed_file_is_named(copy):
    (copy / "text.onnx").write_bytes((copy / "text.onnx").read_bytes() + b"\0")
    assert "text.onnx" in _rows(verify(copy))["files"]["note"]


def test_golden_data_of_another_form_are_named(copy):
    np.savez(copy / "golden.npz", video=np.zeros((1, 2), np.float64))
    rewrite(copy)
    with pytest.raises(InputError, match=r"golden\.npz.*'video' is float64"):
        verify(copy)


@pytest.mark.parametrize(
    ("without", "stage"),
    [
        ("video_embeds", "video tower"),
        ("text_embeds", "text tower"),
        ("input_ids", "ids"),
        ("clip", "decode"),
        ("pixels", "resize"),
        ("scores", "score"),
        ("class_scores", "labels"),
    ],
)
def test_golden_data_that_were_taken_out_are_a_fault(copy, without, stage):
    arrays = dict(np.load(copy / "golden.npz"))
    np.savez(copy / "golden.npz", **{k: v for k, v in arrays.items() if k != without})
    rewrite(copy)
    row = _rows(verify(copy))[stage]
    assert row["pass"] is False and f"there is no golden {without}, which every" in row["note"]


def test_a_folder_of_an_earlier_version_has_no_clip(copy):
    arrays = dict(np.load(copy / "golden.npz"))
    np.savez(copy / "golden.npz", **{k: v for k, v in arrays.items() if k != "clip"})
    rewrite(copy, lambda manifest: _unnamed_clip(copy, manifest))
    record = verify(copy)
    assert record["pass"] and "decode" in record["not_compared"]
    assert "the folder has no golden clip" in _rows(record)["decode"]["note"]


def test_without_a_decoder_nothing_is_said_of_decoding(copy, monkeypatch):
    def absent(*arguments, **options):
        raise MissingError("reading videos needs av, which is not installed")

    monkeypatch.setattr(DecodeWorker, "read", absent)
    record = verify(copy)
    assert record["pass"] and "decode" in record["not_compared"]
    assert "not compared: reading videos needs av" in _rows(record)["decode"]["note"]


@pytest.mark.parametrize("texts", [[], None, ["one"]])
def test_golden_texts_that_were_taken_out_are_a_fault(copy, texts):
    def change(manifest):
        manifest["golden"].pop("texts")
        manifest["golden"] |= {} if texts is None else {"texts": texts}

    rewrite(copy, change)
    record = verify(copy)
    assert not record["pass"] and record["first_failed"] == "ids"
    assert texts or "has no golden.texts" in _rows(record)["ids"]["note"]


def test_no_golden_data_at_all(copy):
    for name in ("golden.npz", "golden.clip"):
        (copy / name).unlink()
    rewrite(copy, lambda manifest: manifest.pop("golden"))
    with pytest.raises(InputError, match="has no golden data: export the checkpoint again"):
        verify(copy)


def test_frames_that_the_golden_clips_do_not_reach_are_named(copy, bases):
    record = verify(copy)
    row = _rows(record)["other frames"]
    assert record["pass"] and row["pass"] is None and "other frames" in record["not_compared"]
    frames = np.load(copy / "golden.npz")["frame_embeds"].shape[1]
    assert f"the golden clips have {frames} frames, the graph takes 1 to " in row["note"]


@pytest.mark.parametrize("name", ["video.onnx", "golden.npz", "beside"])
def test_a_link_is_named_as_one(copy, tmp_path, name):
    if (copy / name).exists():
        shutil.move(copy / name, tmp_path / "elsewhere")
    (copy / name).symlink_to(tmp_path / "elsewhere")
    row = _rows(verify(copy))["files"]
    assert row["pass"] is False and f"'{name}' is a link, which may lead out" in row["note"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"bisect": True}, "--bisect: one folder"),
        ({"frames": (1,)}, "--frames"),
        ({"engine_b": "ort"}, "--engine-b"),
        ({"settings": {"head": "mug"}}, "--set: one folder"),
        ({"settings": {"weights": "ema"}}, "--weights: one folder"),
        ({"tolerance": float("inf")}, "tolerance"),
        ({"engine_a": "eager"}, "engine eager opens no exported folder"),
        ({"engine_a": "orrt"}, "orrt"),
    ],
)
def test_options_of_two_models(copy, options, says):
    with pytest.raises(InputError, match=says):
        verify(copy, **options)


def test_a_place_where_nothing_is():
    with pytest.raises(InputError, match="no such folder: nothere"):
        verify("nothere")
