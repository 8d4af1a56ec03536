"""Whatever is wrong with a folder, a video or an option is an error with its exit code: no crash.

Every case runs in the ordinary build and in one with AddressSanitizer and UBSan.
"""

import io
import json
import os
import shutil

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from stan_infer.artefacts.onnx_operations import OPERATIONS
from tests.conftest import ROOT, flip
from tests.cpp.conftest import MOTION, edit_manifest, put
from tests.hostile import folders as hostile
from tests.hostile.reader_cases import without_clip

CLIP = MOTION / "clips" / "red_cross_moves_left.mp4"


@pytest.fixture(params=["plain", "sanitized"])
def program(request):
    return request.getfixturevalue(request.param)


def fails(program, code, *arguments, word="", **options):
    done = program.run(*arguments, **options)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("error: ") and done.stdout == "", (done.stdout, done.stderr)
    assert word in done.stderr, done.stderr


def first_graph(manifest, role="video"):
    return next(g for g in manifest["graphs"] if g["role"] == role)


# Options


@pytest.mark.parametrize(
    "arguments, word",
    [
        ([], "DIR is missing"),
        (["{}"], "VIDEO is missing"),
        (["{}", CLIP, "--wat"], "unknown option"),
        (["{}", CLIP, "--top"], "needs a value"),
        (["{}", CLIP, "--top", "x"], "--top is 'x'"),
        (["{}", CLIP, "--top", "99999999999999999999"], "allowed are"),
        (["{}", CLIP, "--threads", "-1"], "--threads"),
        (["{}", CLIP, "--engine", "cuda"], "allowed are ort, openvino and tensorrt"),
        (["{}", CLIP, "--embed", "--text", "x"], "takes no texts"),
        (["{}", CLIP, "--self-test"], "--self-test"),
        (["{}", CLIP, "/nowhere.mp4"], "no such video file or folder"),
        (["{}", CLIP, "--embed", "--top", "3"], "--top has no meaning"),
        (["/nowhere", CLIP], "cannot open the folder"),
        (["{}", CLIP, "--text", "caf\u00c3\u00a9"], "wrong character set"),
        (["{}", CLIP, "--text", b"\xff\xfe"], "not UTF-8"),
        (["{}", CLIP, "--text", "a" * 10_001], "not a caption"),
    ],
)
def test_options(program, small, arguments, word):
    given = [small if isinstance(a, str) and a == "{}" else a for a in arguments]
    fails(program, 2, *given, word=word)


def test_help_and_version(program):
    assert "usage:" in program.run("--help").stdout
    assert program.run("--version").stdout.startswith("stan_classify ")


def test_a_missing_library(program, small):
    fails(program, 3, small, CLIP, "--ort-library", "/nowhere.so", word="--ort-library PATH")
    fails(program, 3, small, CLIP, "--ort-library", "libm.so.6", word="not ONNX Runtime")
    if not program.openvino:
        fails(program, 3, small, CLIP, "--engine", "openvino", word="-DSTAN_INFER_OPENVINO=ON")


# The manifest


@pytest.mark.parametrize(
    "content, word",
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1, 2]", "no object"),
        (b'{"schema": 1}', "no string"),
        (b'{"schema": "1.0"}', "note the model's config"),
        (b'{"schema": "1.1"}', "'files' is missing"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
def test_manifest(program, folder, content, word):
    (folder / "manifest.json").write_bytes(content)
    fails(program, 2, folder, CLIP, word=word)


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda m: first_graph(m)["inputs"][0].update(dtype="complex64"), "dtype"),
        (lambda m: first_graph(m)["inputs"].clear(), "is empty"),
        (lambda m: m["model"].update(image_size=10**12), "model.image_size"),
        (lambda m: m["model"].update(image_size=2**70), "model.image_size"),
        (lambda m: m["model"].update(embed_dim=-1), "model.embed_dim"),
        (lambda m: m["files"]["video.onnx"].update(bytes=2**64 - 1), "files.video.onnx.bytes"),
        (lambda m: m["files"]["video.onnx"].update(sha256="A"), "hexadecimal"),
        (lambda m: m["labels"].update(embeddings="none.npz"), "no size and hash"),
    ],
)
def test_manifest_values(program, folder, change, word):
    edit_manifest(folder, change)
    fails(program, 2, folder, CLIP, word=word)


def test_a_folder_without_labels(program, folder):
    edit_manifest(folder, lambda m: m.update(labels=None))
    for name in ("labels.txt", "labels.npz"):
        (folder / name).unlink()
        edit_manifest(folder, lambda m, name=name: m["files"].pop(name))
    fails(program, 2, folder, CLIP, word="no labels")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "./video.onnx", "x\0y", ""])
def test_names_that_leave_the_folder(program, folder, name):
    shutil.copy(folder / "video.onnx", folder.parent / "x")

    def change(manifest):
        graph = first_graph(manifest)
        manifest["files"][name] = manifest["files"][graph["file"]]
        graph["file"] = name

    edit_manifest(folder, change)
    fails(program, 2, folder, CLIP, word="stay in the folder")


@pytest.mark.parametrize("what", ["file", "folder", "fifo"])
def test_links_and_pipes(program, folder, what):
    outside = folder.parent / "outside"
    outside.mkdir()
    shutil.move(folder / "video.onnx", outside / "video.onnx")
    name = "video.onnx"
    if what == "file":
        (folder / name).symlink_to(outside / name)
    elif what == "fifo":
        os.mkfifo(folder / name)
    else:
        (folder / "sub").symlink_to(outside)
        name = "sub/video.onnx"

    def change(manifest):
        graph = first_graph(manifest)
        manifest["files"][name] = manifest["files"].pop("video.onnx")
        graph["file"] = name

    edit_manifest(folder, change)
    fails(program, 2, folder, CLIP)


# Model files


def test_a_truncated_model(program, folder):
    content = (folder / "video.onnx").read_bytes()
    (folder / "video.onnx").write_bytes(content[:-100])
    fails(program, 2, folder, CLIP, word="incomplete copy?")
    put(folder, "video.onnx", content[:-100])
    fails(program, 2, folder, CLIP, word="video.onnx")


def test_a_changed_model(program, folder):
    flip(folder / "video.onnx", 1000)
    fails(program, 4, folder, CLIP, word="SHA-256")


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"<net/>", b"\x3a\x02\x0a\x00"])
def test_a_model_that_is_none(program, folder, content):
    put(folder, "video.onnx", content)
    fails(program, 2, folder, CLIP, word="video.onnx")


def test_weights_in_files_that_the_manifest_does_not_list(program, folder):
    secret = folder.parent / "secret"
    secret.write_bytes(bytes(64))
    weight = TensorProto(name="w", dims=[16], data_type=TensorProto.FLOAT, data_location=1)
    weight.external_data.add(key="location", value="../secret")
    model = onnx.load(folder / "video.onnx")
    model.graph.initializer.append(weight)
    put(folder, "video.onnx", model.SerializeToString())
    fails(program, 2, folder, CLIP, word="does not list")
    # A subgraph could hold another; no graph of ours has one.
    node = helper.make_node("If", ["c"], ["o"], then_branch=helper.make_graph([], "t", [], []))
    node.attribute[0].g.initializer.append(weight)
    model = onnx.load(folder / "preprocess.onnx")
    model.graph.node.append(node)
    put(folder, "preprocess.onnx", model.SerializeToString())
    fails(program, 2, folder, CLIP, word="the operation 'If'")


def test_listed_external_weights_are_read(program, folder):
    model = onnx.load(folder / "video.onnx")
    onnx.save(model, folder / "video.onnx", save_as_external_data=True, location="video.onnx.data")
    put(folder, "video.onnx.data", (folder / "video.onnx.data").read_bytes())
    put(folder, "video.onnx", (folder / "video.onnx").read_bytes())
    edit_manifest(folder, lambda m: first_graph(m).update(external_data=["video.onnx.data"]))
    assert program.run(folder, "--self-test").returncode == 0
    with (folder / "video.onnx.data").open("r+b") as f:
        f.write(b"x")
    fails(program, 4, folder, "--self-test", word="SHA-256")


# Golden data and labels


def npz(save=np.savez, **arrays):
    out = io.BytesIO()
    save(out, **arrays)
    return out.getvalue()


def golden_with(folder, **changes):
    put(folder, "golden.npz", npz(**dict(np.load(folder / "golden.npz")) | changes))


def test_other_results_are_exit_4(program, folder):
    golden_with(folder, video_embeds=np.load(folder / "golden.npz")["video_embeds"] * 1.01)
    done = program.run(folder, "--self-test")
    assert done.returncode == 4 and "FAILED" in done.stdout and "golden data" in done.stderr


def decoding(program, folder, code):
    """The stage `decode` of a self-test that ends with this code."""
    done = program.run(folder, "--self-test", "--json")
    assert done.returncode == code, done.stderr
    stages = {stage["stage"]: stage for stage in json.loads(done.stdout)["stages"]}
    assert all(stage["pass"] for name, stage in stages.items() if name != "decode")
    return stages["decode"]


def test_other_decoded_frames_are_exit_4(program, folder):
    frames = np.load(folder / "golden.npz")["clip"]
    frames[0, 0, 0, 0] ^= 1
    golden_with(folder, clip=frames)
    stage = decoding(program, folder, 4)
    assert (stage["pass"], stage["error"], stage["allowed"]) == (False, 1, 0)


def test_another_golden_clip_is_exit_4(program, folder):
    for content, words in (
        (b"no video", "golden.clip is no video"),
        (CLIP.read_bytes(), "golden.clip has frames of 64x64 pixels; the golden data have 56x56"),
        ((folder / "golden.clip").read_bytes()[:5000], "golden.clip"),
    ):
        put(folder, "golden.clip", content)
        stage = decoding(program, folder, 4)
        assert stage["pass"] is False and words in stage["note"], stage
        assert "FAILED: " in program.run(folder, "--self-test").stdout


def test_a_folder_of_an_earlier_version_has_no_golden_clip(program, folder):
    without_clip(folder)
    fails(program, 2, folder, "--self-test", word="frames without the clip")
    arrays = dict(np.load(folder / "golden.npz"))
    put(folder, "golden.npz", npz(**{k: v for k, v in arrays.items() if k != "clip"}))
    stage = decoding(program, folder, 0)
    assert (stage["pass"], stage["error"], stage["allowed"]) == (None, None, None)
    assert stage["note"] == "the folder has no golden clip; export it again for one"
    text = program.run(folder, "--self-test").stdout
    assert f"decode        not run: {stage['note']}" in text


def test_a_golden_clip_without_its_frames(program, folder):
    arrays = dict(np.load(folder / "golden.npz"))
    put(folder, "golden.npz", npz(**{k: v for k, v in arrays.items() if k != "clip"}))
    fails(program, 2, folder, "--self-test", word="a clip without its frames")


@pytest.mark.parametrize(
    "name", ["clip", "frames", "pixels", "video", "video_embeds", "text_embeds"]
)
def test_golden_data_of_another_shape(program, folder, name):
    wrong = np.load(folder / "golden.npz")[name]
    golden_with(folder, **{name: np.repeat(wrong, 2, axis=-1)})
    fails(program, 2, folder, "--self-test")
    golden_with(folder, **{name: wrong[:0]})
    fails(program, 2, folder, "--self-test")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x05\x06" + bytes(18),
        npz(np.savez_compressed, embeddings=np.zeros((10, 64), np.float32)),
        npz(embeddings=np.zeros((10, 64), np.float64)),
        npz(embeddings=np.zeros((10, 63), np.float32)),
        npz(embeddings=np.array([{"a": 1}], dtype=object)),
        npz(embeddings=np.zeros((10, 64), np.float32))[:-30],
        npz(embeddings=np.zeros((10, 64), np.float32)).replace(b"(10, 64)", b"(99, 64)"),
        npz(embeddings=np.zeros((10, 64), np.float32)).replace(b"(10, 64)", b"(-1, 64)"),
    ],
    ids=range(9),
)
def test_label_embeddings(program, folder, content):
    put(folder, "labels.npz", content)
    fails(program, 2, folder, CLIP, word="labels.npz")


def test_label_file(program, folder):
    put(folder, "labels.txt", b"one\n")
    fails(program, 2, folder, CLIP, word="labels.npz")
    put(folder, "labels.txt", b"")
    fails(program, 2, folder, CLIP, word="0 labels")


def test_tokenizer_file(program, folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"].pop()
    for wrong in (json.dumps(content).encode(), b"{}", b"[]", b"x"):
        put(folder, "tokenizer.json", wrong)
        fails(program, 2, folder, CLIP, "--text", "a", word="tokenizer.json")


# Videos


def test_videos(program, small, tmp_path):
    whole = CLIP.read_bytes()
    for name, content in {
        "empty.mp4": b"",
        "text.mp4": b"no video at all\n" * 100,
        "cut.mp4": whole[: len(whole) // 2],
        "head.mp4": whole[:40],
        "noise.mp4": whole[:200] + bytes(range(256)) * 20 + whole[5400:],
        "list.m3u8": b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        "list.txt": b"ffconcat version 1.0\nfile /etc/passwd\n",
    }.items():
        (tmp_path / name).write_bytes(content)
        fails(program, 2, small, tmp_path / name, word=name)
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", tmp_path / "none.mp4"):
        fails(program, 2, small, path, word=str(path))


FOREIGN = ("endless_loop", "branches", "functions", "foreign_domain", "foreign_node", "tiled",
           "escapes_in_operation")  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_operations_of_no_exporter_are_refused_by_name(plain, small, tmp_path, case):
    folder = hostile.write(small, tmp_path / "folder", case)
    done = plain.run(folder, CLIP)
    assert done.returncode == 2 and done.stderr.startswith("error: video.onnx has "), done.stderr
    assert "which no graph written by stan_infer has" in done.stderr
    assert done.stderr[:-1].isprintable() and done.stderr.endswith("\n")


def test_the_operations_are_those_of_python():
    source = (ROOT / "cpp/src/onnx_file.cpp").read_text()
    listed = source.partition("kOperations[] = {")[2].partition("};")[0]
    assert {name.strip(' "\n') for name in listed.split(",")} - {""} == {*OPERATIONS}
