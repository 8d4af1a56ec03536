"""Fixtures and helpers that every test may use: golden data, a tiny model, random clips."""

from __future__ import annotations

import os

# Kernels run in Triton's interpreter, on the CPU: decided when they are first imported. Real ones,
# on a GPU: TRITON_INTERPRET=0 pytest -m gpu. Compiled ones: tests/kernels/test_aot.py, a process
# of its own.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Processes of pytest-xdist share the cores: with as many threads each as there are cores, OpenMP's
# threads wait for each other most of the time.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    _share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(_share))

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import stan_infer  # noqa: F401  # keeps the engines silent that tests import themselves
from stan_infer.system.cache_folder import keep_library_caches

# Started in the background or by nohup; children must not inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
keep_library_caches()  # here, where no test has put a folder of its own into the environment yet
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    import onnxruntime

    class _Shared(onnxruntime.SessionOptions):
        """As many threads as OpenMP's, unless a test says how many: they spin while they wait."""

        def __init__(self) -> None:
            super().__init__()
            self.intra_op_num_threads = _share

    onnxruntime.SessionOptions = _Shared
ROOT = Path(__file__).resolve().parents[1]
GOLDEN_CASES = (
    "a_hd32.pth",
    "b_hd64_outlier.pth",
    "c_deep.pth",
    "d_fullvocab.pth",
    "e_oldnames.pth",
    "f_conv.bin",
)


# `make test` leaves to `make test-all`: folders in which whole commands and other programs run, on
# the inputs of strangers too (each command once stays: QUICK); tests that ask for a program or a
# plan that is built first (BUILT); points of a grid (tests/grids.py); and what takes many seconds
# although its folder is quick (SLOW): the rest of that folder proves the numbers without it.
WHOLE = {"tests/benchmarks", "tests/cli", "tests/cpp", "tests/examples", "tests/hostile"}
WHOLE |= {"tests/platforms"}
QUICK = {"tests/cli/test_commands.py", "tests/cli/test_parsing.py", "tests/cli/test_vocabulary.py"}
QUICK |= {"tests/benchmarks/test_quantisers.py"}
BUILT = {"plain", "sanitized", "raced", "program", "rtx", "quantised"}
SLOW = {
    "tests/artefacts/test_npz_file.py::test_a_bomb_takes_no_memory",
    "tests/artefacts/test_onnx_sizes.py::test_sizes_are_those_of_the_runtime",
    "tests/artefacts/test_onnx_sizes.py::test_sizes_of_the_onnx_projects_own_cases",
    "tests/benchmarking/test_page.py",
    "tests/benchmarking/test_run.py::test_bench_from_python",
    "tests/checkpoints/test_bounds.py::test_memory_is_bounded",
    "tests/checkpoints/test_clip_alone.py::test_the_message_has_the_exact_commands",
    "tests/checkpoints/test_hub.py::test_the_command_line",
    "tests/checkpoints/test_same_reading.py::test_many_ways_of_writing_are_read_as_the_same",
    "tests/checkpoints/test_torch_file.py::test_memory_of_a_large_directory",
    "tests/checkpoints/test_torch_file.py::test_memory_stays_bounded",
    "tests/cli/test_commands.py::test_doctor_finds_two_onnxruntimes",
    "tests/cli/test_commands.py::test_doctor_tries_every_engine",
    "tests/cli/test_commands.py::test_export_and_run_again_over_the_same_folder",
    "tests/engines/test_ov_session.py::test_what_is_kept_for_shapes_is_bounded",
    "tests/engines/test_session_inputs.py::test_one_text",
    "tests/engines/test_session_inputs.py::test_our_kernels_take_the_same_forms",
    "tests/engines/test_session_inputs.py::test_sessions_go_to_spawned_processes",
    "tests/engines/test_triton_session.py::test_new_weights_drop_the_graphs",
    "tests/engines/test_triton_session.py::test_windows_that_slide",
    "tests/export/test_public_tools.py",
    "tests/export/test_to_onnx.py::test_the_reference_graph_gives_the_same_numbers",
    "tests/kernels/test_aot.py::test_all_configurations",
    "tests/kernels/test_aot.py::test_what_is_recorded_for_the_same_code_is_not_compiled_again",
    "tests/kernels/test_counts.py",
    "tests/kernels/test_export.py",
    "tests/kernels/test_ops.py::test_opcheck",
    "tests/library/server/test_page.py",
    "tests/library/server/test_requests.py::test_a_client_that_does_not_read_is_left",
    "tests/library/server/test_requests.py::test_a_thousand_at_once",
    "tests/library/server/test_serve.py::test_another_host_is_warned_of",
    "tests/library/server/test_serve.py::test_ctrl_c_ends_it",
    "tests/library/test_hostile.py::test_a_file_system_that_is_full",
    "tests/library/test_maintenance.py::test_a_migration_killed_at_every_step",
    "tests/library/test_maintenance.py::test_from_the_command_line",
    "tests/library/test_ray.py::test_a_machine_is_killed",
    "tests/library/test_ray.py::test_an_actor_is_killed",
    "tests/library/test_ray.py::test_an_object_store",
    "tests/library/test_ray.py::test_calls_of_the_network_are_those_of_one_machine",
    "tests/library/test_stops.py",
    "tests/network/test_fused.py::test_flops_saved",
    "tests/quantisation/test_calibrate.py::test_a_clip_that_makes_nan_is_named_and_left_out",
    "tests/quantisation/test_calibrate.py::test_a_ratio_while_other_work_had_the_cpus_says_nothing",
    "tests/quantisation/test_calibrate.py::test_int8_that_is_faster_is_written",
    "tests/quantisation/test_calibrate.py::test_memory_is_flat_from_10_to_1000_clips",
    "tests/quantisation/test_calibrate.py::test_no_engine_that_gives_the_same",
    "tests/system/test_signals.py",
    "tests/tensorrt_plans/test_triton_server.py::test_the_command",
    "tests/test_pages.py::test_a_page_that_is_wrong_is_found",
    "tests/test_pages.py::test_the_site_is_built_without_a_warning",
    "tests/test_pages.py::test_the_site_fits_screens_of_all_widths",
    "tests/test_pages.py::test_what_a_page_shows_runs",
    "tests/test_pages.py::test_what_is_wrong_on_a_screen_is_seen",
    "tests/test_packaging.py",
    "tests/test_scores.py::test_memory_stays_in_its_limit",
    "tests/verification/test_clean.py",
    "tests/verification/test_faults.py::test_planted_faults_are_caught_and_named",
    "tests/video/test_against_ffmpeg.py",
    "tests/video/test_decoder_trial.py",
    "tests/video/test_decord_reader.py::test_a_name_that_is_a_pattern_is_not_followed",
    "tests/video/test_decord_reader.py::test_right_frames",
    "tests/video/test_decord_reader.py::test_tracks_that_lie_in_other_files_are_not_opened",
    "tests/video/test_decord_reader.py::test_wrong_frames_are_refused",
    "tests/video/test_feed.py",
    "tests/watch/test_watch.py",
}


# The longest files of `make test-all` go first, so that all processes end at about the same time.
LONGEST = (
    "tests/cpp/",
    "tests/platforms/",
    "tests/verification/",
    "tests/tensorrt_plans/test_build.py",
    "tests/cli/",
    "tests/hostile/",
    "tests/kernels/test_aot.py",
    "tests/library/",
    "tests/quantisation/",
    "tests/benchmarks/",
)
# Seconds since 1970: what has not begun by then is skipped, and counted in the last lines. CI has a
# limit of its own, and the slowest machines that it gets take five times as long as the fastest.
END = float(os.environ.get("STAN_INFER_TESTS_END") or "inf")
# Long files of tests that share little: each test goes to the next free process.
APART = {"tests/verification/test_clean.py", "tests/verification/test_faults.py"}


def is_slow(file: str) -> bool:
    return file in SLOW or (file.rpartition("/")[0] in WHOLE and file not in QUICK)


def pytest_ignore_collect(collection_path, config):
    """`make test` does not even import what it leaves out."""
    file = collection_path.relative_to(ROOT).as_posix()
    return (config.option.markexpr == "not slow" and is_slow(file)) or None


def pytest_collection_modifyitems(items):
    order = (*LONGEST, "")
    for item in items:
        test = item.nodeid.partition("[")[0]
        if is_slow(test.partition("::")[0]) or test in SLOW or BUILT & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: next(i for i, n in enumerate(order) if item.nodeid.startswith(n)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if time.time() > END:
        pytest.skip(f"not run, out of time: {item.nodeid.partition('::')[0]}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Share the tests among processes by file; those of tests/cpp together, for one build."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if file in APART:
                return nodeid
            return "tests/cpp" if file.startswith("tests/cpp/") else file

    return ByFile(config, log)


def golden_folder() -> Path:
    """Where the outputs of the authors' code lie: STAN_INFER_GOLDEN, or ../shared/golden."""
    return Path(os.environ.get("STAN_INFER_GOLDEN", ROOT.parent / "shared" / "golden"))


@pytest.fixture(autouse=True)
def _no_width_of_a_terminal(monkeypatch):
    """Tables are as wide as they are, whatever started the tests."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def golden() -> Path:
    folder = golden_folder()
    if not (folder / "README.md").is_file():
        pytest.skip(f"the authors' golden data is not here ({folder}); set STAN_INFER_GOLDEN")
    return folder


@pytest.fixture(scope="session")
def annotations() -> Path:
    """Heads of public annotation files: ../shared/annotations."""
    folder = ROOT.parent / "shared" / "annotations"
    if not folder.is_dir():
        pytest.skip(f"the heads of public annotation files are not here ({folder})")
    return folder


@pytest.fixture(scope="session")
def tiny_model():
    """A small STAN with a text tower, seeded random weights, nothing zero."""
    from stan_infer.network.model import Stan, init_random

    return init_random(Stan(tiny_config()), seed=1).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def folder(tiny_model):
    """The exported folder of tiny_model; copy it before changing it."""
    from tests.exported import exported

    return exported(tiny_model)


@pytest.fixture
def quick_calibration(monkeypatch):
    """Calibrations draw no plot and measure speed for a moment only: for tests of all else."""
    quicken(monkeypatch)


@pytest.fixture
def quiet_machine(monkeypatch):
    """Benchmarks judge their rows as if nothing else ran, whatever runs beside the tests."""
    quieten(monkeypatch)


def quieten(patch):
    from stan_infer.system.cpu_use import CpuMeter, CpuUse, MachineMeter, MachineUse

    real = CpuMeter.around

    def around(self, run):
        out, use = real(self, run)
        return out, CpuUse(use.used, 0.0)

    patch.setattr(CpuMeter, "around", around)
    patch.setattr(MachineMeter, "read", lambda self: MachineUse(0.0, 0.0))
    patch.setattr("stan_infer.benchmarking.interleave.let_others_sleep", lambda: True)
    patch.setattr("stan_infer.benchmarking.peak_gemm.add_far_below", lambda row, threads: None)


def same_for_each(exact, quantised, rows, threads):
    """As times_saved, without chance: what linears of a tiny model gain is noise."""
    return dict.fromkeys(rows, 1.0)


def quicken(patch):
    from stan_infer.benchmarking.interleave import Schedule

    short = Schedule(warmup=1, repeats=2)
    patch.setattr("stan_infer.quantisation.verdict.Schedule", lambda **given: short)
    patch.setattr("stan_infer.benchmarking.interleave.WARM_MS", 0.0)
    patch.setattr("stan_infer.quantisation.work.times_saved", same_for_each)
    patch.setattr("stan_infer.quantisation.work.draw", lambda *given: {})


def tiny_config(**changes):
    """L=3, K=2, D=32, P=4: every size differs, so a swapped axis cannot hide."""
    from stan_infer.config import StanConfig

    values = dict(
        width=32,
        layers=3,
        heads=2,
        patch=8,
        image_size=16,
        embed_dim=24,
        mlp_width=96,
        branch_layers=2,
        text_width=16,
        text_layers=2,
        text_heads=2,
        text_mlp_width=64,
        vocab_size=128,
        context_positions=20,
        frames=6,
        context_length=12,
        short_side=16,
    )
    return StanConfig(**(values | changes))


def clips(b: int, t: int, side: int, seed: int = 0) -> np.ndarray:
    """Random uint8 clips [B, T, side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (b, t, side, side, 3), dtype=np.uint8)


def relative_error(got, wanted) -> float:
    """Largest difference relative to the largest wanted value."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape, (got.shape, wanted.shape)
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """A folder with three short clips."""
    return _clips(tmp_path_factory.mktemp("videos"), ["clip0", "clip1", "clip2"])


@pytest.fixture(scope="session")
def more_videos(tmp_path_factory):
    """A folder with 16 short clips: enough to measure ranges and to check on others."""
    return _clips(tmp_path_factory.mktemp("more_videos"), [f"clip{i:02d}" for i in range(16)])


def _clips(folder, names):
    for seed, name in enumerate(names):
        write_video(folder / f"{name}.mp4", seed=seed)
    return folder


def python(*words, code=0, **options):
    """Run Python with these words to its end; check its exit code, unless that is None."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert code in (None, done.returncode), done.stdout[-4000:] + done.stderr[-4000:]
    return done


def edit_json(path, change=None, **values):
    """Change a file of one JSON object: by a function, or by other values of its keys."""
    content = json.loads(path.read_text())
    if change:
        change(content)
    path.write_text(json.dumps(content | values))


def flip(path, at=-1):
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def zero_weight(path, name):
    """Set a weight of an .onnx file to zeros; its hash in a manifest stays."""
    import onnx

    model = onnx.load(path)
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    zeros = np.zeros_like(onnx.numpy_helper.to_array(tensor))
    tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, name))
    onnx.save(model, path)


def wait_until(condition, process, seconds=120):
    """Wait for what a child does and return it; fail where the child ends before, or is late."""
    last = time.monotonic() + seconds
    while not (found := condition()):
        assert process.poll() is None, f"it ended before, with {process.returncode}"
        if time.monotonic() > last:
            process.kill()  # else the test would wait for its end
            pytest.fail(f"nothing happened in {seconds} s")
        time.sleep(0.05)
    return found


def write_video(path, seed=0, frames=20, size=96):
    """A moving bright square on noise, H.264."""
    import av

    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        # One thread: x264's bytes follow the number of cores otherwise.
        stream = container.add_stream("libx264", rate=10, options={"threads": "1"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for t in range(frames):
            image = rng.integers(0, 60, (size, size, 3), dtype=np.uint8)
            image[10:30, 2 * t : 2 * t + 20] = 200
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
