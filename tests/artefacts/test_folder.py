"""A folder from a stranger: complete, unchanged, and without names that lead out of it."""

import json
import shutil
from pathlib import Path

import pytest

from stan_infer.artefacts.folder import MANIFEST, read_artefact, write_manifest
from stan_infer.errors import CheckError, InputError, StanError
from stan_infer.verification.folder_side import Folder
from tests.conftest import edit_json, tiny_config


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "video.onnx").write_bytes(b"graph")
    graph = {
        "file": "video.onnx",
        "role": "video",
        "precision": "fp32",
        "opset": 20,
        "inputs": [{"name": "video", "dtype": "uint8", "shape": ["batch", "frames", 16, 16, 3]}],
        "outputs": [{"name": "video_embeds", "dtype": "float32", "shape": ["batch", 24]}],
        "dims": {"batch": [1, 64], "frames": [1, 64]},
    }
    write_manifest(tmp_path, {"model": tiny_config().to_dict(), "graphs": [graph]})
    return tmp_path


def edit(folder, change):
    edit_json(folder / MANIFEST, change)


def test_round_trip(folder):
    artefact = read_artefact(folder)
    assert artefact.config == tiny_config()
    assert artefact.graph("video").dims == {"batch": (1, 64), "frames": (1, 64)}
    assert artefact.graph("text") is None


def test_writing_twice_gives_the_same_bytes(folder):
    before = (folder / MANIFEST).read_bytes()
    manifest = json.loads(before)
    write_manifest(folder, {k: v for k, v in manifest.items() if k not in ("files", "schema")})
    assert (folder / MANIFEST).read_bytes() == before


def test_a_changed_file_is_refused(folder):
    (folder / "video.onnx").write_bytes(b"GRAPH")
    with pytest.raises(CheckError, match="hash of video.onnx"):
        read_artefact(folder)
    (folder / "video.onnx").write_bytes(b"gra")
    with pytest.raises(InputError, match="has 3 bytes, manifest.json says 5"):
        read_artefact(folder)
    (folder / "video.onnx").unlink()
    with pytest.raises(InputError, match="video.onnx is missing"):
        read_artefact(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "C:\\x", "a\nb", ".."])
def test_names_stay_inside_the_folder(folder, name):
    edit(folder, lambda m: m["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
    with pytest.raises(InputError, match="names the file"):
        read_artefact(folder)


def test_links_are_refused(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("other") / "video.onnx"
    target.write_bytes(b"graph")
    (folder / "video.onnx").unlink()
    (folder / "video.onnx").symlink_to(target)
    with pytest.raises(
        InputError, match="'video.onnx' is a link, which may lead out of the folder"
    ):
        read_artefact(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(schema="2.0"), "schema '2.0'"),
        (lambda m: m.pop("schema"), "schema 'None'"),
        (lambda m: m.pop("model"), "malformed: .* missing required field `model`"),
        (lambda m: m["model"].update(width="x"), "width"),
        (lambda m: m["model"].update(evil=1), "unknown keys: evil"),
        (lambda m: m["graphs"][0].pop("dims"), "malformed"),
        (lambda m: m["graphs"][0].update(dims={"batch": 3}), "malformed"),
        (lambda m: m["graphs"][0].update(file="other.onnx"), "'other.onnx' has no hash"),
        (lambda m: m.update(files=[]), "malformed: files: Expected `object`, got `array`"),
        (lambda m: m["graphs"].append(3), "malformed"),
        (lambda m: m["graphs"][0].update(dims=[1, 2]), "malformed"),
        (lambda m: m["graphs"][0].update(opset=float("inf")), "Infinity is not a number"),
        (lambda m: m["graphs"][0].update(inputs=[{}]), "malformed"),
        (lambda m: m["graphs"][0].update(inputs=[]), "malformed"),
        (lambda m: m["graphs"][0]["inputs"][0].pop("dtype"), "malformed"),
        (lambda m: m["files"].update({"x" * 300: {}}), "malformed: files"),
        (lambda m: m["graphs"].append(dict(m["graphs"][0])), "two entries have the role 'video'"),
        (lambda m: m["graphs"][0].update(role="videos"), "role 'videos' is unknown; did you mean"),
        (lambda m: m["graphs"][0].update(external_data=["model.onnx"]), "has its weights in 'mo"),
        (lambda m: m["graphs"][0].update(external_data=["/etc/hostname"]), "has its weights in"),
        (lambda m: m["graphs"][0].update(external_data=["video.onnx"]), "two entries have the fi"),
        (lambda m: m.update(golden={"file": "/etc/hostname"}), "'/etc/hostname' has no hash"),
        (lambda m: m.update(golden={"file": "video.onnx"}), "two entries have the file"),
        (lambda m: m.update(labels={"file": "../x", "template": "{}"}), "'../x' has no hash"),
        (lambda m: m["graphs"][0]["dims"].pop("batch"), "'dims' lacks 'batch'"),
        (
            lambda m: m["graphs"][0]["dims"].update(batch=[2, 1]),
            "batch is reversed: 2 to 1",
        ),
        (lambda m: m["graphs"][0]["dims"].update(batch=[1, 10**30]), "malformed"),
        (
            lambda m: m["graphs"][0]["inputs"].append(m["graphs"][0]["inputs"][0]),
            "the inputs of a video graph and their ranks",
        ),
        (lambda m: m["model"].update(text_layers=10**9), "text_layers is"),
        (lambda m: m["model"].update(width="32"), "width is '32'; it must be a whole number"),
        (lambda m: m["model"].update(mean=["1", "2", "3"]), "mean is"),
        (lambda m: m["files"]["video.onnx"].update(bytes=2**40), "malformed: files"),
        (lambda m: m["files"]["video.onnx"].update(bytes=2**30), "more than this model can need"),
        (lambda m: m["files"]["video.onnx"].update(sha256="0"), "malformed: files"),
    ],
)
def test_a_manifest_that_no_export_writes(folder, change, message):
    edit(folder, change)
    with pytest.raises(InputError, match=message):
        read_artefact(folder)


def test_a_folder_without_a_manifest_names_the_export_command(tmp_path):
    with pytest.raises(InputError, match="stan-infer export"):
        read_artefact(tmp_path)
    (tmp_path / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(InputError, match="not JSON"):
        read_artefact(tmp_path)


@pytest.mark.parametrize("name", ["weights.bin", "tokenizer.json", "a/b.bin"])
def test_nothing_lies_in_the_folder_without_a_hash(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    with pytest.raises(InputError, match="not listed in manifest.json"):
        read_artefact(folder)


def test_a_sparse_file_is_refused_before_it_is_hashed(folder):
    with (folder / "video.onnx").open("r+b") as f:
        f.truncate(2**40)
    edit(folder, lambda m: m["files"]["video.onnx"].update(bytes=2**40))
    with pytest.raises(InputError, match=r"files\[...\].bytes"):
        read_artefact(folder)
    form = {"input_dtype": "uint8", "layout": "BTHWC"}
    edit(folder, lambda m: m.update(preprocess=form))
    with pytest.raises(InputError, match="files"):
        Folder(folder, "ort").graph_path("video")
    assert any("bytes" in line for line in Folder(folder, "ort").damage())


def test_a_file_that_nothing_uses_is_refused(folder):
    for name in ("README.md", "NOTICE", "LICENSE-CLIP.txt", "tokenizer.json"):
        (folder / name).write_text("x")
        manifest = json.loads((folder / MANIFEST).read_text())
        write_manifest(folder, {k: manifest[k] for k in ("model", "graphs")})
        assert read_artefact(folder).has(name)
    (folder / "payload.bin").write_text("x")
    write_manifest(folder, {k: manifest[k] for k in ("model", "graphs")})
    with pytest.raises(InputError, match="'payload.bin' is a file that nothing in this folder use"):
        read_artefact(folder)


def test_what_is_hashed_is_what_is_given(folder, tmp_path_factory):
    artefact = read_artefact(folder)
    out = tmp_path_factory.mktemp("copy") / "x"
    artefact.copy("video.onnx", out)
    assert artefact.read("video.onnx") == out.read_bytes() == b"graph"
    with artefact.held("video.onnx") as (path,):
        assert path.samefile(folder / "video.onnx")
    for content, kind in ((b"GRAPH", CheckError), (b"gra", StanError), (b"graphs", StanError)):
        (folder / "video.onnx").write_bytes(content)
        for use in (artefact.read, lambda n: artefact.copy(n, out), lambda n: hold(artefact, n)):
            with pytest.raises(kind):
                use("video.onnx")
    for name in ("manifest.json", "../x", "/etc/hostname", "nothing"):
        for use in (artefact.read, artefact.file, lambda n: hold(artefact, n)):
            with pytest.raises(InputError, match="has no hash"):
                use(name)


def hold(artefact, name):
    with artefact.held(name):
        pass


def test_a_file_that_changes_while_it_is_held_is_told(folder):
    artefact = read_artefact(folder)
    other = folder.parent / "other"
    other.write_bytes(b"graph")
    for change in (
        lambda: (folder / "video.onnx").write_bytes(b"graph"),
        lambda: other.replace(folder / "video.onnx"),
        lambda: (folder / "video.onnx").unlink(),
    ):
        with pytest.raises(CheckError, match="was changed while it was read"):
            with artefact.held("video.onnx"):
                change()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs names of open files")
def test_what_is_held_is_read_whatever_takes_its_name(folder):
    """Even if the whole folder is replaced for a moment: its files keep their times and sizes."""
    artefact = read_artefact(folder)
    aside = folder.with_name("aside")
    with artefact.held("video.onnx") as (path,):
        folder.rename(aside)
        folder.mkdir()
        (folder / "video.onnx").write_bytes(b"EVIL!")
        assert path.read_bytes() == b"graph"
        shutil.rmtree(folder)
        aside.rename(folder)


def test_a_link_that_takes_a_files_place_is_not_followed(folder):
    artefact = read_artefact(folder)
    (folder / "video.onnx").rename(folder.parent / "moved")
    (folder / "video.onnx").symlink_to(folder.parent / "moved")
    for use in (artefact.read, artefact.file, lambda n: hold(artefact, n)):
        with pytest.raises(InputError):
            use("video.onnx")
