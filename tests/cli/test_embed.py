"""stan-infer embed: levels, texts and what the file says of itself."""

import hashlib
import json
import shutil

import numpy as np
import pytest

import stan_infer as si
from stan_infer.artefacts.folder import sha256
from stan_infer.cli.embed_library import names_library
from stan_infer.library import embed
from stan_infer.text.tokenizer import tokenize
from tests.conftest import relative_error

SAME = 2e-6


@pytest.mark.parametrize("engine", ["eager", "ort", "openvino"])
def test_levels_are_frames_tokens_and_their_means(
    cli, checkpoint, artefact, videos, tmp_path, engine
):
    source = checkpoint if engine == "eager" else artefact
    texts = tmp_path / "texts.txt"
    texts.write_text("a red square\n\nnoise\n")
    got = {}
    for level in ("video", "frame", "token"):
        given = ("--level", level, "--texts", texts, "--text", "first", "--engine", engine)
        out = tmp_path / f"{level}.npz"
        (record,) = cli("embed", source, videos, *given, "-o", out, "--json").records
        assert (record["videos"], record["texts"]) == (3, 3)
        with np.load(out) as z:
            got[level] = {name: z[name] for name in z.files}
        info = json.loads(str(got[level]["info"]))
        assert info["engine"]["engine"] == engine and info["engine"]["precision"] == "fp32"
        (name, digest), = info["source"]["sha256"].items()  # fmt: skip
        assert digest == sha256(source if source.is_file() else source / name)
        assert info["level"]["videos"] == ("video" if level == "video" else "frame")
        assert got[level]["texts"].tolist() == ["first", "a red square", "noise"]
    frames, video = got["frame"]["embeddings"], got["video"]["embeddings"]
    assert frames.shape == (3, 8, 64) and relative_error(frames.mean(1), video) < SAME
    assert (got["token"]["embeddings"] == frames).all()
    tokens, ids = got["token"]["text_embeddings"], got["token"]["input_ids"]
    assert (ids == tokenize(["first", "a red square", "noise"], 32)).all()
    ends = tokens[np.arange(3), ids.argmax(1)]
    for level in ("video", "frame"):
        assert relative_error(ends, got[level]["text_embeddings"]) < SAME
    session = si.open_session(checkpoint)
    wanted = session.embed_text(["first", "a red square", "noise"])
    assert relative_error(got["video"]["text_embeddings"], wanted) < 1e-5


def test_the_default_is_what_the_head_scores(cli, checkpoint, videos, tmp_path):
    mug = ("--set", "head=mug", "--text", "a dog")
    cli("embed", checkpoint, videos, *mug, "-o", tmp_path / "m.npz")
    cli("embed", checkpoint, videos, "--text", "a dog", "-o", tmp_path / "v.npz", "--normalise")
    cli("embed", checkpoint, videos, *mug, "--level", "video", "-o", tmp_path / "w.npz")
    with np.load(tmp_path / "m.npz") as z:
        assert z["embeddings"].shape == (3, 8, 64) and z["text_embeddings"].shape == (1, 32, 64)
    with np.load(tmp_path / "v.npz") as z, np.load(tmp_path / "w.npz") as w:
        for name in ("embeddings", "text_embeddings"):
            assert np.linalg.norm(z[name], axis=-1) == pytest.approx(np.ones(len(z[name])))
            own = w[name] / np.linalg.norm(w[name], axis=-1, keepdims=True)
            assert relative_error(own, z[name]) < SAME
        assert json.loads(str(z["info"]))["normalised"] is True


@pytest.mark.parametrize("suffix", ["npz", "npy", "parquet"])
def test_rows_have_the_hash_of_their_video(cli, checkpoint, videos, tmp_path, suffix):
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    paths, out = sorted(videos.glob("*.mp4")), tmp_path / f"v.{suffix}"
    cli("embed", checkpoint, paths[0], bad, videos, "--level", "frame", "-o", out, code=2)
    wanted = [hashlib.sha256(p.read_bytes()).hexdigest() for p in (paths[0], *paths)]
    if suffix == "npz":
        found = np.load(out)["sha256"].tolist()
    elif suffix == "npy":
        found = [r["sha256"] for r in json.loads(out.with_suffix(".json").read_text())["rows"]]
    else:
        found = pytest.importorskip("pyarrow.parquet").read_table(out)["sha256"].to_pylist()[::8]
    assert found == wanted
    assert si.embed_videos(checkpoint, videos, workers=1).sha256 == tuple(wanted[1:])


def test_a_video_that_changes_while_it_is_read_has_no_row(
    cli, checkpoint, videos, tmp_path, monkeypatch
):
    own = tmp_path / "videos"
    shutil.copytree(videos, own)
    real = embed.embed_videos

    def changing(*given, **more):
        for reading in real(*given, **more):
            if reading.path.name == "clip1.mp4":
                reading.path.write_bytes(b"another")
            yield reading

    monkeypatch.setattr(embed, "embed_videos", changing)
    out = tmp_path / "v.npz"
    cli("embed", checkpoint, own, "-o", out, code=2, says="clip1.mp4: it changed while it was read")
    assert [p[-9:] for p in np.load(out)["paths"]] == ["clip0.mp4", "clip2.mp4"]


def test_texts_alone_need_no_video(cli, artefact, tmp_path):
    (record,) = cli(
        "embed", artefact, "--text", "a dog", "-o", tmp_path / "t.npy", "--json"
    ).records
    assert (record["videos"], record["texts"]) == (0, 1)
    assert np.load(tmp_path / "t.npy").shape == (1, 64)
    assert json.loads((tmp_path / "t.json").read_text())["info"]["level"]["texts"] == "text"


def test_wrong_words_are_told_before_the_work(cli, checkpoint, videos, tmp_path, monkeypatch):
    def no_work(*given, **more):
        raise AssertionError("the work began")

    out, bad = ("-o", tmp_path / "v.npz"), tmp_path / "bad.mp4"
    bad.write_text("no video")
    done = cli("embed", checkpoint, bad, *out, code=2, says="none of the 1 videos could be read: ")
    assert "bad.mp4" in done.err.splitlines()[-1] and not (tmp_path / "v.npz").exists()
    cli("embed", checkpoint, videos, "--level", "frames", *out, code=2, says="did you mean 'frame'")
    monkeypatch.setattr("stan_infer.library.embeddings.opened", no_work)
    cli("embed", checkpoint, *out, code=2, says="nothing to embed")
    cli("embed", checkpoint, videos, "--level", "token", *out, code=2, says="is of texts")
    cli("embed", checkpoint, "--text", " ", *out, code=2, says="blank")
    both = ("--text", "a", "-o", tmp_path / "v.npy")
    cli("embed", checkpoint, videos, *both, code=2, says="holds one table")
    shutil.copyfile(videos / "clip0.mp4", tmp_path / "t.npz")
    own = ("--texts", tmp_path / "t.npz", "-o", tmp_path / "t.npz")
    cli("embed", checkpoint, *own, code=2)


def told(path):
    """What a file of vectors says of itself."""
    if path.suffix == ".npz":
        with np.load(path) as z:
            return json.loads(str(z["info"]))
    if path.suffix == ".npy":
        return json.loads(path.with_suffix(".json").read_text())["info"]
    metadata = pytest.importorskip("pyarrow.parquet").read_schema(path).metadata
    return json.loads(metadata[b"stan_infer"])


@pytest.mark.parametrize("end", ["npz", "npy", "parquet"])
def test_how_videos_were_read_is_in_the_file(cli, checkpoint, videos, tmp_path, end):
    out = tmp_path / f"v.{end}"
    (first,) = cli("embed", checkpoint, videos, "-o", out, "--json").records
    usual = told(out)
    assert first["info"] == usual
    cli("embed", checkpoint, videos, "-o", out, "--frames", "4")
    fewer = told(out)
    assert (usual["reading"]["frames"], fewer["reading"]["frames"]) == (8, 4)
    assert fewer["config"]["frames"] == 4 and fewer["reading"]["decoder"].startswith("pyav ")
    cli("embed", checkpoint, videos, "-o", out, "--set", "short_side=80")
    assert told(out)["settings"] == {"short_side": "80"}
    models = {info["source"]["model"] for info in (usual, fewer, told(out))}
    assert len(models) == 3 and all(isinstance(m, str) for m in models)


def test_a_model_has_one_name_wherever_it_is_exported(cli, checkpoint, videos, tmp_path):
    found = []
    for name in ("first", "second"):
        cli("export", checkpoint, "-o", tmp_path / name, "--frames", "8", "--batch", "1")
        out = tmp_path / f"{name}.npz"
        cli("embed", tmp_path / name, videos, "-o", out)
        found.append(told(out)["source"])
    assert found[0]["model"] == found[1]["model"]
    assert found[0]["sha256"] != found[1]["sha256"], "the manifests name other commands"
    assert {f["checkpoint_sha256"] for f in found} == {sha256(checkpoint)}


@pytest.mark.parametrize(
    ("out", "right"),
    [("lib", True), ("lib.v2", False), ("lib.v2/", True), ("there.v2", True), ("x.npz", False)],
)
def test_which_names_are_libraries(tmp_path, monkeypatch, out, right):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.v2").mkdir()
    assert names_library(out) is right
