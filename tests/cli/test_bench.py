"""stan-infer bench: engines, gates, stages, memory, comparison, the page."""

import json
import re
import shutil
import statistics

import onnx.parser
import pytest
import torch

from stan_infer.system.cpu_use import CpuMeter, CpuUse, MachineMeter, MachineUse

pytestmark = pytest.mark.usefixtures("quiet_machine")
QUICK = ("--repeats", "2", "--warmup", "1", "--min-seconds", "0", "--no-memory")


def test_it_compares_with_eager(cli, checkpoint):
    args = ("--engine", "ort", "--batch", "1,2", "--frames", "3", "--json", *QUICK)
    done = cli("bench", checkpoint, *args)
    rows = done.records
    shapes = [(r["engine"], r["batch"]) for r in rows]
    assert shapes == [("eager", 1), ("ort", 1), ("eager", 2), ("ort", 2)]
    for row in rows:
        assert row["latency_ms_p95"] >= row["latency_ms_p50"] >= row["latency_ms_min"] > 0
        assert row["clips_per_s"] == pytest.approx(row["batch"] / row["latency_ms_p50"] * 1e3)
        assert row["max_rel_error"] < 1e-4 and row["machine"]["cpu"]
        assert row["latency_ms_p50"] == pytest.approx(statistics.median(row["samples_ms"]))
        assert (
            0
            < row["share_of_ceiling"]
            == pytest.approx(row["gflop_per_s"] / row["ceiling_gflop_per_s"])
        )
        assert len(row["pinned_cpus"]) == row["threads"]
    assert {r["speedup"] for r in rows if r["engine"] == "eager"} == {1.0}


def test_a_folder_and_a_bare_graph(cli, artefact):
    for source in (artefact, artefact / "video.onnx"):
        done = cli("bench", source, "--frames", "2", "--engine", "ort,openvino", "--json", *QUICK)
        assert [r["engine"] for r in done.records] == ["ort", "openvino"]
    assert done.records[0]["gflop_per_s"] is None  # nothing tells its architecture
    words = ("bench", artefact / "text.onnx", *QUICK)
    cli(*words, code=2, says="needs one input, uint8 [B, T, S, S, 3]")
    words = ("bench", artefact / "engines" / "video.plan", *QUICK)
    cli(*words, code=2, says="video.plan: no such file")


def test_a_graph_without_inputs_is_told(cli, tmp_path):
    text = """<ir_version: 10, opset_import: ["": 20]>
    g () => (float[1] y) { y = Constant <value = float[1] {1}> () }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "g.onnx")
    cli("bench", tmp_path / "g.onnx", *QUICK, code=2, says="needs one input")


def test_without_a_checkpoint(cli):
    done = cli("bench", "--preset", "stan-tiny", "--engine", "eager", *QUICK, says="random weights")
    assert "eager" in done.out


def test_torch_compile_is_an_engine(cli):
    done = cli("bench", "--preset", "stan-tiny", "--engine", "compile", "--json", *QUICK)
    assert [r["engine"] for r in done.records] == ["eager", "compile"]


def test_engines_that_are_not_here_are_shown_with_the_reason_and_the_rest_runs(cli):
    args = ("bench", "--preset", "stan-tiny", "--engine", "trt,triton,eager", *QUICK)
    done = cli(*args, code=3)
    assert "engine trt needs tensorrt" in done.err
    assert "engine triton: torch" in done.err and "finds no GPU; use --engine eager" in done.err
    assert "eager" in done.out
    rows = cli(*args, "--json", code=3).records
    assert [r["engine"] for r in rows] == ["eager", "trt", "triton"]
    assert [bool(r.get("refused")) for r in rows] == [False, True, True]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_plan_is_built_kept_and_said_to_be_unable_to_run_here(cli, tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("STAN_INFER_CACHE", str(tmp_path))
    args = ("bench", "--preset", "stan-tiny", "--engine", "trt-rtx", "--json", *QUICK)
    first, again = (cli(*args, code=3) for _ in range(2))
    assert "built video.fp16.trt-rtx.plan in" in first.err
    assert "taking video.fp16.trt-rtx.plan from" in again.err and "built in" not in again.err
    for done in (first, again):
        eager, absent = done.records
        assert eager["engine"] == "eager" and eager["latency_ms_p50"] > 0
        assert absent["precision"] == "fp16"
        assert "was built and cannot run here" in absent["refused"]
    (kept,) = (tmp_path / "engines").iterdir()
    (plan,) = kept.glob("*.plan")
    plan.write_bytes(b"damaged")
    cli(*args, code=3, says="built video.fp16.trt-rtx.plan in")
    done = cli("bench", *args[3:], "--device", "cpu", *args[1:3], code=3)
    assert "engine trt-rtx needs an NVIDIA GPU" in done.records[1]["refused"]


def test_lower_precisions_have_the_fp32_baseline(cli):
    args = ("--precision", "bf16,fp16", "--engine", "eager,ort", "--json", *QUICK)
    done = cli("bench", "--preset", "stan-tiny", *args, code=3)
    rows = {(r["engine"], r["precision"]): r for r in done.records}
    assert list(rows) == [
        *[("eager", p) for p in ("fp32", "bf16")],
        *[("eager", "fp16"), ("ort", "fp16"), ("ort", "bf16")],
    ]
    assert "engine ort has no bf16 on cpu" in rows["ort", "bf16"]["refused"]
    assert rows["eager", "fp32"]["speedup"] == 1.0
    assert 1e-5 < rows["eager", "bf16"]["max_rel_error"] < 0.2


def test_peak_memory_is_each_engines_own(cli, checkpoint):
    args = ("--repeats", "1", "--warmup", "1", "--min-seconds", "0", "--json")
    eager, ort = cli("bench", checkpoint, *args).records
    assert ort["peak_host_mib"] < eager["peak_host_mib"]  # it needs no torch
    assert eager["peak_device_mib"] is None and ort["memory_shape"] == [1, 8]


def test_a_bad_video_is_named_and_left_out(cli, checkpoint, videos, tmp_path):
    shutil.copytree(videos, tmp_path / "v")
    (tmp_path / "v" / "a_bad.mp4").write_bytes(b"%PDF-1.7")
    args = ("bench", checkpoint, "--engine", "eager", "--no-memory", "--json", *QUICK)
    done = cli(*args, "--include-decode", tmp_path / "v", code=2, says="a_bad.mp4 is not a video")
    stages = [r for r in done.records if r["schema"].startswith("stan-infer/bench-stages")]
    assert stages and stages[0]["videos"] == len(list(videos.iterdir()))
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "a_bad.mp4").write_bytes(b"%PDF-1.7")
    cli(
        *args, "--include-decode", tmp_path / "w", code=2, says="none of the 1 videos could be read"
    )


def test_the_whole_way_from_file_to_scores(cli, checkpoint, videos):
    args = ("--include-decode", videos, "--engine", "ort", "--json", *QUICK)
    done = cli("bench", checkpoint, *args)
    stages = [r for r in done.records if r["schema"].startswith("stan-infer/bench-stages/")]
    assert [r["engine"] for r in stages] == ["eager", "ort"]
    for row in stages:
        parts = [row[f"{name}_ms_p50"] for name in ("decode", "embed", "score")]
        assert row["total_ms_p50"] == pytest.approx(sum(parts)) and min(parts) > 0
        assert row["videos"] == 3 and len(row["samples_ms"]["decode"]) == 6


def test_rows_are_kept_and_compared(cli, checkpoint, tmp_path):
    old = tmp_path / "old.jsonl"
    args = ("bench", checkpoint, "--frames", "2", *QUICK)
    cli(*args, "--out", old)
    rows = [json.loads(line) for line in old.read_text().splitlines()]
    assert len(rows) == 2 and len(rows[0]["samples_ms"]) == 2
    # Two rounds tell no ratio, so whether an engine became slower is not known.
    done = cli(*args, "--compare", old, "--max-slowdown", "1", code=4)
    assert "not known: doubts now and then" in done.out
    assert rows[1]["doubts"] and rows[1]["speedup_low"] is None


def test_starvation_is_in_the_table_and_in_json(cli, checkpoint, monkeypatch):
    """The threads of `ort` wait as long as they compute, and other work has most CPUs."""
    monkeypatch.setattr(CpuMeter, "around", lambda self, run: (run(), CpuUse(0.01, 0.01)))
    monkeypatch.setattr(MachineMeter, "read", lambda self: MachineUse(0.7, 0.0))
    args = ("bench", checkpoint, "--frames", "2", *QUICK)
    done = cli(*args, code=4, says="error: every row is starved by other work")
    assert re.search(r"^eager .* starved ", done.out, re.M)
    assert not re.search(r"\d\.\d+x", done.out), "no ratio is shown"
    assert "its threads got no CPU for 50 % of the time that they wanted one" in done.err
    assert "CPU time that other work had meanwhile: 70 %" in done.err
    assert "2 of 2 rows are starved" in done.err and "Stop the other work" in done.err
    rows = cli(*args, "--json", code=4).records
    assert all(r["starved"] and r["doubts"] and r["denied_share"] == 0.5 for r in rows)
    assert all(r["others_share"] == 0.7 for r in rows)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--compare", "none.jsonl"], 2, "no such file"),
        (["--out", "none/rows.jsonl"], 2, "no such folder"),
        (["--eval", "none.json"], 2, "no such file"),
        (["--eval", "mine/clip.mp4"], 2, "is not JSON that can be used"),
        (["--report", "mine"], 2, "holds clip.mp4, which is no part of a report"),
        (["--device", "cuda"], 3, "finds no GPU"),
        (["--precision", "fp23"], 2, "did you mean 'fp32'"),
        (["--threads", "4096"], 2, "this process may use"),
        (["--include-decode", "none.mp4"], 2, "no such video"),
        (["--max-slowdown", "2"], 2, "max-slowdown"),
    ],
)
def test_wrong_options_are_told_before_anything_is_measured(
    cli, tmp_path, monkeypatch, args, code, message
):
    if "cuda" in args and torch.cuda.is_available():
        pytest.skip("a GPU is here")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "clip.mp4").write_text("x")
    monkeypatch.chdir(tmp_path)
    done = cli("bench", "--preset", "stan-tiny", *QUICK, *args, code=code, says=message)
    assert not done.out
