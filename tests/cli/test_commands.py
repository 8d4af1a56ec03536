"""Every command on good input: what it prints, what it writes."""

import json
import shutil

import numpy as np
import pytest

import stan_infer as si
from stan_infer.cli.report import print_json, print_table, say
from tests.conftest import relative_error
from tests.grids import once


def test_inspect(cli, checkpoint):
    done = cli("inspect", checkpoint, "--json", "--frames", "12")
    (record,) = done.records
    assert record["schema"] == "stan-infer/inspect/1"
    assert record["config"]["branch_layers"] == 3 and record["frames"] == 12
    parts = [record[f"parameters_{p}"] for p in ("trunk", "branch", "text")]
    assert sum(parts) == record["parameters"] and all(parts)
    table = cli("inspect", checkpoint)
    assert "video and text" in table.out and "gflop_per_clip" in table.out


def test_inspect_a_name_without_weights(cli):
    (record,) = cli("inspect", "ViT-B-32-quickgelu", "--set", "frames=8", "--json").records
    assert record["layout"] == "open_clip ViT-B-32-quickgelu"
    assert record["gflop_per_clip"] == pytest.approx(102.46, rel=1e-3)
    assert "untrained" in record["notes"][0]


def test_inspect_shows_what_was_ignored_and_hinted(cli, golden):
    heads = ("--set", "heads=1", "--set", "text_heads=1", "--json")
    (record,) = cli("inspect", golden / "e_oldnames.pth", *heads).records
    assert any(k.endswith("timesFPN_pos_embed.weight") for k in record["ignored"])
    (record,) = cli("inspect", golden / "d_fullvocab.pth", *heads).records
    assert record["hints"]["trainer"]["head"] == "mug"
    assert any("hints at head mug" in n for n in record["notes"])


@pytest.mark.parametrize("engine", ["eager", "ort"])
def test_run_scores_every_video_of_a_folder(cli, checkpoint, artefact, videos, engine):
    source = checkpoint if engine == "eager" else artefact
    texts = ("--text", "a dog runs", "--text", "a red square", "--text", "nothing")
    done = cli("run", source, videos, *texts, "--engine", engine, "--json")
    assert len(done.records) == 3
    for record in done.records:
        assert record["session"]["engine"] == engine and record["decoder"] == "pyav"
        scores = [s["score"] for s in record["scores"]]
        assert scores == sorted(scores, reverse=True) and len(scores) == 3
        assert sum(s["probability"] for s in record["scores"]) == pytest.approx(1)
    first = done.records[0]
    session = si.open_session(checkpoint)
    wanted = session.score(["a dog runs"], session.read_clip(first["video"])[None])
    (got,) = [s["score"] for s in first["scores"] if s["text"] == "a dog runs"]
    assert got == pytest.approx(wanted.item(), abs=1e-5)
    table = cli("run", source, videos / "clip0.mp4", *texts, "--engine", engine, "--top", "1")
    assert len(table.out.splitlines()) == 2


def test_run_reads_labels_and_reports_a_cut_text(cli, checkpoint, videos, tmp_path, caplog):
    labels = tmp_path / "labels.txt"
    labels.write_text("\ufeffa cat\n\n" + "very " * 40 + "long\n")
    done = cli("run", checkpoint, videos / "clip0.mp4", "--labels", labels, "--json")
    cut = {s["text"][:5]: s["cut"] for s in done.records[0]["scores"]}
    assert cut == {"a cat": False, "very ": True}
    assert "do not fit in 32 tokens" in caplog.text and "very very" in caplog.text


@once(engine=["eager", "ort"], batch=[1, 2])
def test_embed_writes_vectors_in_the_given_order(
    cli, checkpoint, artefact, videos, tmp_path, engine, batch
):
    out = tmp_path / "v.npz"
    source = checkpoint if engine == "eager" else artefact
    more = ("--batch", batch, "--workers", "2", "--engine", engine, "--json")
    done = cli("embed", source, videos / "clip2.mp4", videos, "-o", out, *more)
    assert done.records[0]["videos"] == 4
    data = np.load(out, allow_pickle=False)
    assert [p.rsplit("/")[-1] for p in data["paths"]] == [f"clip{i}.mp4" for i in (2, 0, 1, 2)]
    session = si.open_session(checkpoint)
    clips = np.stack([session.read_clip(p) for p in data["paths"]])
    assert relative_error(data["embeddings"], session.embed_video(clips)) < 1e-5
    assert data["indices"].shape == (4, 8) and set(data["decoders"]) == {"pyav"}
    assert json.loads(str(data["info"]))["config"] == session.config.to_dict()


def test_embed_with_a_mug_head_keeps_frames(cli, checkpoint, videos, tmp_path):
    out = tmp_path / "v.npz"
    cli("embed", checkpoint, videos, "-o", out, "--set", "head=mug")
    assert np.load(out)["embeddings"].shape == (3, 8, 64)


def test_export_and_run_again_over_the_same_folder(cli, checkpoint, tmp_path):
    for _ in range(2):
        done = cli("export", checkpoint, "-o", tmp_path / "out", "--json")
    (record,) = done.records
    assert all(p["pass"] and p["max_rel"] < 1e-4 for p in record["parity"])
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    graphs = ["preprocess.onnx", "text.onnx", "video.onnx"]
    others = ["LICENSE-CLIP.txt", "golden.clip", "golden.npz", "manifest.json", "tokenizer.json"]
    assert names == sorted([*others, *graphs])
    assert record["source"]["file"] == checkpoint.name and "/" not in record["source"]["file"]
    assert record["command"] == f"stan-infer export {checkpoint.name} -o out --json"
    assert str(tmp_path) not in (tmp_path / "out" / "manifest.json").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_convert(cli, checkpoint, tmp_path):
    out = tmp_path / "copy.safetensors"
    cli("convert", checkpoint, out)
    assert out.read_bytes() == checkpoint.read_bytes()


def test_a_folder_takes_a_checkpoints_place(cli, checkpoint, tmp_path):
    folder = tmp_path / "out"
    cli("export", checkpoint, "-o", folder, "--tower", "video")
    done = cli("inspect", folder, "--json")
    (record,) = done.records
    assert record["config"]["frames"] >= 1
    assert {g["role"] for g in record["graphs"]} == {"video", "preprocess"}
    cli("inspect", folder)


def test_doctor_tries_every_engine(cli):
    done = cli("doctor", "--json")
    (record,) = done.records
    assert record["faults"] == []
    works = {(e["name"], e["device"]): e for e in record["engines"]}
    assert works["eager", "cpu"]["works"] and works["ort", "cpu"]["works"]
    for entry in record["engines"] + record["decoders"]:
        assert entry["works"] or (entry["reason"] and "install" in entry["help"])
        # What the same failure tells another command: to look here, or to take another engine.
        assert "doctor" not in str(entry) and "use --" not in str(entry), entry


def test_doctor_finds_two_onnxruntimes(cli, monkeypatch):
    from stan_infer.system import machine

    versions = machine.installed_versions() | {"onnxruntime": "1.2", "onnxruntime-gpu": "1.2"}
    monkeypatch.setattr(machine, "installed_versions", lambda: versions)
    cli("doctor", code=4, says="pip uninstall -y onnxruntime onnxruntime-gpu")


HOSTILE = "a\x1b[31m\nb"


def test_json_is_one_line_and_knows_no_nan(capsys):
    values = {"a": float("nan"), "b": np.float32("inf"), "c": np.arange(2), "d": HOSTILE}
    print_json("x", values)
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert record == {"schema": "stan-infer/x/1", "a": None, "b": None, "c": [0, 1], "d": HOSTILE}


def test_control_characters_do_not_reach_the_terminal(capsys):
    say(HOSTILE)
    print_table([{"name": HOSTILE, "n": 1.5}, {"name": "b", "n": None}])
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and len(out.splitlines()) == 3 and len(err.splitlines()) == 1


def test_export_names_a_bad_clip_and_ends_with_2(cli, checkpoint, videos, tmp_path):
    shutil.copytree(videos, tmp_path / "v")
    (tmp_path / "v" / "bad.mp4").write_bytes(b"no video")
    words = (
        "export",
        checkpoint,
        "-o",
        tmp_path / "o",
        "--clips",
        tmp_path / "v",
        "--tower",
        "video",
    )
    done = cli(*words, code=2, says="1 videos of --clips could not be used")
    assert done.err.count("bad.mp4") == 1 and (tmp_path / "o" / "manifest.json").exists()
