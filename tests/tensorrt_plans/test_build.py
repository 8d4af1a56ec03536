"""Plans from a folder: options, profiles and errors on a stand-in, real ones by TensorRT-RTX."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import onnx
import pytest

from stan_infer.artefacts.folder import read_artefact
from stan_infer.errors import CheckError, InputError, MissingError
from stan_infer.export.export_model import export_model
from stan_infer.network.model import Stan, init_random
from stan_infer.tensorrt_plans import build as build_module
from stan_infer.tensorrt_plans.build import build_plans, rebuild_plan, run_job
from stan_infer.tensorrt_plans.build_process import Job, build, cast_bytes, progress_monitor
from stan_infer.tensorrt_plans.options import PlanOptions, parse_ranges, profiles_of, targets_of
from stan_infer.tensorrt_plans.plan_file import read_header, read_plan
from tests.conftest import python, tiny_config, wait_until
from tests.exported import exported as make_exported
from tests.tensorrt_plans.fake import World, fake_tensorrt


def plan_names(folder):
    return sorted(p.name for p in (folder / "engines").iterdir())


def test_a_folder_gets_its_plans(machine):
    seen = []
    plans = build_plans(
        machine.folder, machine.engine, progress=lambda name, part: seen.append((name, part))
    )
    sm = "-sm_89" if machine.engine == "trt" else ""
    assert [p.path.name for p in plans] == [
        f"{role}.fp32.{machine.engine}{sm}.plan" for role in ("video", "text")
    ]
    video = plans[0]
    assert video.version == tuple(map(int, machine.module.__version__.split(".")))
    # One clip of the configured frames, and anything else.
    assert [p["video"] for p in video.profiles] == [
        ((1, 6, 16, 16, 3),) * 3,
        ((1, 1, 16, 16, 3), (1, 6, 16, 16, 3), (8, 64, 16, 16, 3)),
    ]
    assert plans[1].profiles == ({"input_ids": ((1, 2), (8, 12), (256, 20))},)
    assert "TF32" not in machine.world.flags["flags"]
    parts = [part for name, part in seen if name.startswith("video")]
    assert parts == sorted(parts) and parts[-1] == 1 and len(parts) > 3
    read_artefact(machine.folder)  # files in engines/ need no entry in the manifest
    assert not list((machine.folder / "engines").glob(".*"))


def test_options_reach_the_builder(machine, tmp_path):
    only = {"targets": ["sm_89", "sm_120"]}
    if machine.engine == "trt":
        only = {"timing_cache": tmp_path / "timing", "hardware_compatible": True}
        only["version_compatible"] = True
        (tmp_path / "timing").write_bytes(b"before")
    options = PlanOptions(roles=("video",), tf32=True, workspace_mib=64, level=5, **only)
    (plan,) = build_plans(machine.folder, machine.engine, options)
    flags = machine.world.flags
    lasting = ["VERSION_COMPATIBLE"] if machine.engine == "trt" else []
    assert flags["flags"] == {"TF32", *lasting}
    assert flags["MemoryPoolType.WORKSPACE"] == 64 * 2**20
    assert flags["builder_optimization_level"] == 5
    assert plan.sidecar["tf32"] is True and plan.sidecar["flags"] == lasting
    if machine.engine == "trt":
        assert (tmp_path / "timing").read_bytes() == b"before+timed"
        assert str(flags["hardware_compatibility_level"]).endswith("AMPERE_PLUS")
        assert plan.sidecar["built_on"]["sm"] == "sm_89"
    else:
        expected = {0: "ComputeCapability.SM89", 1: "ComputeCapability.SM120"}
        assert flags["targets"] == expected and flags["num_compute_capabilities"] == 2
        assert plan.sidecar["targets"] == ["sm_89", "sm_120"]


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        ("none", InputError, r"built no plan from video.onnx: .*something is wrong"),
        ("oom", MissingError, "video.onnx ran out of memory.*give --workspace"),
        ("hardware", MissingError, "cannot be compiled for .*HW-specific.*--target"),
        ("warn", CheckError, "would be wrong, as the builder itself warns: .*not self-consistent"),
        (
            "refused",
            InputError,
            r"refuses video/trunk/layer0/attention/MatMul \(operator MatMul\) in video.onnx: "
            "Assertion failed: no plugin found; 2 errors in all",
        ),
        ("profile", InputError, "profile 0 of video.onnx is refused"),
    ],
)
def test_a_build_that_fails_says_why_and_leaves_nothing(machine, fault, error, words):
    machine.world.fault = fault
    with pytest.raises(error, match=words):
        build_plans(machine.folder, machine.engine)
    assert not (machine.folder / "engines").exists()


def test_a_failed_build_leaves_the_earlier_plan(machine):
    build_plans(machine.folder, machine.engine)
    before = plan_names(machine.folder)
    machine.world.fault = "none"
    with pytest.raises(InputError):
        build_plans(machine.folder, machine.engine)
    assert plan_names(machine.folder) == before
    for name in before[::2]:
        read_plan(machine.folder / "engines" / name)


def test_cancelled(machine):
    with pytest.raises(KeyboardInterrupt):
        build(a_job(machine.folder, machine.engine), machine.module, lambda part: part < 0.3)


def a_job(folder, engine="trt-rtx", out="x", **changes):
    values = {"onnx": str(folder / "video.onnx"), "profiles": [{"video": [[1, 2, 16, 16, 3]] * 3}]}
    return Job(engine=engine, out=str(folder / out), **values | changes)


def test_a_timing_cache_of_another_gpu(machine, tmp_path):
    if machine.engine == "trt-rtx":
        with pytest.raises(InputError, match="--timing-cache belongs to --format tensorrt$"):
            PlanOptions(timing_cache=tmp_path / "c").check("trt-rtx")
        return
    machine.world.fault = "timing cache"
    with pytest.raises(InputError, match="another TensorRT or GPU: delete it"):
        job = a_job(machine.folder, machine.engine, timing_cache=str(tmp_path / "c"))
        build(job, machine.module, lambda part: True)


def test_without_a_gpu_tensorrt_cannot_build(machine, monkeypatch):
    monkeypatch.setattr(build_module, "nvidia_gpus", list)
    if machine.engine == "trt":
        with pytest.raises(MissingError, match="the driver shows none.*tensorrt-rtx"):
            build_plans(machine.folder, machine.engine)
    else:
        build_plans(machine.folder, machine.engine, PlanOptions(roles=("text",)))


def test_a_plan_is_rebuilt_as_its_sidecar_says(machine):
    options = PlanOptions(batch=[(1, 2, 3)], frames=[(4, 5, 6)], roles=("video",), tf32=True)
    (first,) = build_plans(machine.folder, machine.engine, options)
    again = rebuild_plan(read_artefact(machine.folder), first)
    assert again.profiles == first.profiles and again.sidecar["tf32"] is True
    strange = dataclasses.replace(first, profiles=({"other": ((1,), (1,), (1,))},))
    with pytest.raises(InputError, match="its profiles are not for video.onnx"):
        rebuild_plan(read_artefact(machine.folder), strange)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": [(1, 1, 33)]}, "batch 1 to 33 is beyond video.onnx, which takes 1 to 32:"),
        ({"frames": [(1, 8, 65)]}, "frames 1 to 65 .* takes 1 to 64, the rows of the time table"),
        ({"batch": [(1, 1, 1)] * 2, "frames": [(1, 1, 1)] * 3}, "has 2 ranges and --frames 3"),
    ],
)
def test_profiles_beyond_the_manifest_are_refused_before_the_build(exported, changes, words):
    artefact = read_artefact(exported)
    with pytest.raises(InputError, match=words):
        profiles_of(artefact, artefact.graph("video"), PlanOptions(**changes))


def test_profiles_in_pairs(exported):
    artefact = read_artefact(exported)
    graph = artefact.graph("video")
    batch, frames = parse_ranges("1,1:8:32", "--batch"), parse_ranges("6", "--frames")
    found = profiles_of(artefact, graph, PlanOptions(batch=batch, frames=frames))
    assert [p["video"][2][:2] for p in found] == [[1, 6], [32, 6]]
    found = profiles_of(artefact, graph, PlanOptions(batch=[(2, 2, 2)]))
    assert [p["video"][i][:2] for p in found for i in range(3)] == [[2, 1], [2, 6], [2, 64]]


def test_a_fixed_folder_has_one_profile(tiny_model):
    artefact = read_artefact(make_exported(tiny_model, batch=1, frames=5, tower="video"))
    (profile,) = profiles_of(artefact, artefact.graph("video"), PlanOptions())
    assert profile == {"video": [[1, 5, 16, 16, 3]] * 3}


@pytest.mark.parametrize("text", ["", "a", "1:2", "1:2:3:4", "2:1:3", "0:1:2", "1:3:2", "1,,2"])
def test_ranges_that_are_none(text):
    with pytest.raises(InputError, match="--batch"):
        parse_ranges(text, "--batch")


@pytest.mark.parametrize(
    ("options", "engine", "words"),
    [
        ({"roles": ("vidoe",)}, "trt", "--plans 'vidoe' is unknown; did you mean 'video'"),
        ({"roles": ()}, "trt", "names no graph"),
        ({"level": 6}, "trt", "--builder-level 6 is out of range"),
        ({"workspace_mib": 0}, "trt", "--workspace 0 MiB"),
        ({"targets": ("sm_89",)}, "trt", "--target belongs to --format tensorrt-rtx"),
        ({"hardware_compatible": True}, "trt-rtx", "belongs to --format tensorrt$"),
    ],
)
def test_options_that_no_plan_has(options, engine, words):
    with pytest.raises(InputError, match=words):
        PlanOptions(**options).check(engine)


def test_targets():
    module = fake_tensorrt("tensorrt_rtx-1.7", World())
    everywhere = ["sm_80", "sm_86", "sm_89", "sm_120", "sm_121"]
    assert targets_of(module, "fp32", ()) == everywhere
    assert targets_of(module, "fp8", ()) == everywhere[2:]
    assert targets_of(module, "fp16", ("sm_75", "sm_75")) == ["sm_75"]
    with pytest.raises(MissingError, match="does not compile for sm_90; it does for sm_75"):
        targets_of(module, "fp16", ("sm_90",))
    with pytest.raises(MissingError, match="sm_86 has no fp8; sm_89 and newer"):
        targets_of(module, "fp8", ("sm_86",))


def test_nested_phases_add_up():
    module, seen = fake_tensorrt("tensorrt-11.4", World()), []
    monitor = progress_monitor(module, lambda part: seen.append(round(part, 3)) or True)
    monitor.phase_start("all", None, 2)
    monitor.phase_start("inner", "all", 4)
    monitor.step_complete("inner", 1)
    monitor.phase_finish("inner")
    monitor.step_complete("all", 0)
    monitor.phase_start("odd", "odd", 0)  # NVIDIA's phases may be named alike, and empty
    monitor.step_complete("odd", 3)
    monitor.step_complete("unknown", 1)
    assert seen[:2] == [0.25, 0.5] and all(0 <= part <= 1 for part in seen)


def test_bytes_are_cast_where_they_come_in(exported):
    graph = onnx.load_from_string(cast_bytes(exported / "preprocess.onnx")).graph
    takers = {n.op_type for n in graph.node if "frames" in n.input}
    assert takers == {"Cast", "Shape"}


# From here on NVIDIA's own parser and builder, in their process; no GPU is needed.


@pytest.fixture(scope="session")
def rtx():
    pytest.importorskip("tensorrt_rtx", reason='TensorRT-RTX is not here: pip install ".[dev]"')


FORMS = {
    "selfattn": {},
    "conv": {"branch": "conv"},
    "mug": {"head": "mug"},
    "gelu": {"activation": "gelu"},
}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("form", FORMS)
def test_tensorrt_rtx_builds_every_graph(rtx, form, precision, tmp_path):
    model = init_random(Stan(tiny_config(**FORMS[form])), seed=1).eval()
    roles = ["video", "text", "trunk", "branch"]
    if precision == "fp32":
        roles += ["preprocess"] + (["score"] if form == "mug" else [])
    opset = 22 if (form, precision) == ("conv", "bf16") else 20
    export_model(model, tmp_path / "f", precision=precision, opset=opset, split=True)
    plans = build_plans(tmp_path / "f", "trt-rtx", PlanOptions(roles=roles))
    assert [p.role for p in plans] == roles
    for plan in plans:
        header = read_header(plan.path)
        assert header["version"] == list(plan.version)[:3] + [plan.version[3] % 256]
        assert header["targets"] == plan.sidecar["targets"]
        assert all(-1 in io["shape"] for io in plan.sidecar["io"])


@pytest.mark.parametrize("fixed", [{}, {"batch": 1, "frames": 6}], ids=["free axes", "fixed"])
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_tensorrt_rtx_builds_8_bits(rtx, tiny_model, precision, fixed, tmp_path):
    from stan_infer.quantisation.calibrate import calibrate
    from stan_infer.quantisation.options import CalibrationOptions
    from tests.conftest import write_video

    folder = make_exported(tiny_model, tower="video", **fixed)
    write_video(tmp_path / "a.mp4")
    options = CalibrationOptions(
        precision=precision, samples=1, force=True, min_cosine=0.01, threads=1
    )
    calibrate(folder, [tmp_path / "a.mp4"], tmp_path / precision, options)
    # 8-bit floats came with sm_89.
    targets = ["sm_89", "sm_120"] if precision == "fp8" else []
    (plan,) = build_plans(tmp_path / precision, "trt-rtx", PlanOptions(targets=targets))
    assert plan.path.name == f"video.{precision}.trt-rtx.plan" and read_header(plan.path)
    if precision == "fp8":
        with pytest.raises(MissingError, match="sm_86 has no fp8"):
            build_plans(tmp_path / precision, "trt-rtx", PlanOptions(targets=["sm_86"]))


def test_tensorrt_rtx_builds_a_real_size(rtx, tmp_path):
    from stan_infer.checkpoints.presets import preset

    # B/32 but for its depth: the layers that are left out have the shapes of the others.
    model = init_random(Stan(dataclasses.replace(preset("stan-b32"), layers=6))).eval()
    export_model(model, tmp_path / "f", precision="fp16", tower="video")
    (plan,) = build_plans(tmp_path / "f", "trt-rtx", PlanOptions(roles=("video",)))
    assert len(plan.profiles) == 2 and plan.sidecar["plan_bytes"] > 120 * 2**20


def test_tensorrt_rtx_builds_a_classifier_and_fixed_sizes(rtx, tmp_path):
    sizes = {"vocab_size": 49408, "context_positions": 77, "context_length": 32}
    model = init_random(Stan(tiny_config(**sizes)), seed=1).eval()
    labels = {"head": "classify", "labels": ["a", "b", "c"]}
    export_model(model, tmp_path / "f", batch=1, frames=5, format="tensorrt-rtx", **labels)
    plan = read_plan(tmp_path / "f/engines/video.fp32.trt-rtx.plan")
    names = [io["name"] for io in plan.sidecar["io"]]
    assert names == ["video", "video_embeds", "frame_embeds", "scores", "probabilities"]
    assert plan.sidecar["io"][0]["shape"] == [1, 5, 16, 16, 3]


def test_a_graph_that_nvidia_refuses(rtx, copy, tmp_path):
    model = onnx.load(copy / "video.onnx")
    model.graph.node[5].op_type = "NoSuchOperator"
    onnx.save(model, copy / "broken.onnx")
    job = a_job(copy, onnx=str(copy / "broken.onnx"), profiles=[])
    with pytest.raises(InputError, match=f"refuses {model.graph.node[5].name}.*NoSuchOperator"):
        run_job(job, lambda part: None)
    (copy / "broken.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match="broken.onnx"):
        run_job(job, lambda part: None)


def test_a_builder_that_dies_is_an_error_of_ours(rtx, exported, tmp_path, monkeypatch):
    job = a_job(exported, out=tmp_path / "x")
    for number, words in ((9, "ran out of memory"), (11, r"crashed on video.onnx \(SIGSEGV")):
        code = f"import os, sys; sys.stdin.read(); os.kill(os.getpid(), {number})"
        monkeypatch.setattr(build_module, "_COMMAND", (sys.executable, "-c", code))
        with pytest.raises(MissingError, match=words):
            run_job(job, lambda part: None)


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit")
def test_too_little_memory_is_said(rtx, copy):
    code = (
        "import resource as r; r.setrlimit(r.RLIMIT_AS, (350 * 2**20,) * 2)\n"
        "from stan_infer.tensorrt_plans.build import build_plans\n"
        "from stan_infer.cli import main; import sys\n"
        f"sys.argv = ['stan-infer', 'export', {str(copy)!r}, '--format', 'tensorrt-rtx']\n"
        "main.main()"
    )
    done = python("-c", code, code=3)
    assert "memory" in done.stderr.replace(str(copy), "") and "Traceback" not in done.stderr
    assert not (copy / "engines").exists()


def test_ctrl_c_ends_the_builder_and_leaves_nothing(rtx, copy):
    command = [sys.executable, "-m", "stan_infer", "export", copy, "--format", "tensorrt-rtx"]
    command += ["--batch", "1,2,3,4,5,6,7,8"]  # a build that lasts longer than the wait below
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(copy.glob("engines/.stan-infer-work-*")), process)
    time.sleep(0.5)  # the file is there before the builder is at work
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130 and "Traceback" not in errors
    assert not (copy / "engines").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_said(rtx, exported):
    with pytest.raises(InputError, match="No space left on device; free some space"):
        run_job(a_job(exported, out="/dev/full"), lambda part: None)


def test_the_command(rtx, copy):
    options = ("--format", "tensorrt-rtx", "--plans", "text", "--target", "sm_89", "--json")
    done = python("-m", "stan_infer", "export", copy, *options)
    (sidecar,) = json.loads(done.stdout)["plans"]
    assert sidecar["targets"] == ["sm_89"] and sidecar["tf32"] is False
    assert "building text.fp32.trt-rtx.plan" in done.stderr
    plan = copy / "engines/text.fp32.trt-rtx.plan"
    assert "tensorrt_rtx" in python("-m", "stan_infer", "inspect", plan).stdout


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("folder", "--format tensorrt-rtx --precision fp16"),
        ("folder", "--format tensorrt --set heads=2"),
        ("folder", "--format tensorrt --backend tensorrt"),
        ("folder", "-o r --format triton-server --batch 1:2:3"),
        ("folder", "-o r --format triton-server --tf32"),
        ("checkpoint", "-o r --tf32"),
        ("checkpoint", "-o r --format triton-server --builder-level 3"),
        ("checkpoint", "-o r --backend tensorrt"),
    ],
)
def test_options_that_change_nothing(exported, tmp_path, monkeypatch, capsys, source, words):
    from stan_infer.cli.main import main

    (tmp_path / "x.pth").touch()
    given = exported if source == "folder" else tmp_path / "x.pth"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["stan-infer", "export", str(given), *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "changes nothing in the export of a" in said
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("visible", "gpu", "seen"), [(None, 1, "1"), ("3,5", 1, "5"), ("GPU-a,GPU-b", 0, "GPU-a")]
)
def test_a_builder_sees_the_gpu_that_it_is_for(monkeypatch, visible, gpu, seen):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert build_module._only(gpu)["CUDA_VISIBLE_DEVICES"] == seen
    assert build_module._only(None) is None


def test_a_cancelled_builder_ends_by_itself_however_much_it_says(monkeypatch, tmp_path):
    code = (
        "import signal, sys, time\n"
        "def stop(*args):\n"
        f"    print('x' * 2**18, flush=True); open({str(tmp_path / 'ended')!r}, 'w'); sys.exit()\n"
        "signal.signal(signal.SIGINT, stop)\n"
        "sys.stdin.read(); print('{\"part\": 0.5}', flush=True); time.sleep(60)"
    )
    monkeypatch.setattr(build_module, "_COMMAND", (sys.executable, "-c", code))

    def interrupt(part):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(Job(engine="trt-rtx", onnx="x", out="y", profiles=[]), interrupt)
    assert (tmp_path / "ended").exists()
