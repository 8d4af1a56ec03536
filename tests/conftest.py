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
    _share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _share)))

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
ROOT = Path(__file__).resolve().parents[1]
GOLDEN_CASES = (
    "a_hd32.pth",
    "b_hd64_outlier.pth",
    "c_deep.pth",
    "d_fullvocab.pth",
    "e_oldnames.pth",
    "f_conv.bin",
)


# What `make test` leaves to `make test-all`, by folder, file or test: it takes many seconds, and
# the rest proves the numbers without it. Left too: what asks for a program that is built first,
# and points of a grid (tests/grids.py).
SLOW = {
    "tests/artefacts/test_npz_file.py::test_a_bomb_takes_no_memory",
    "tests/artefacts/test_onnx_sizes.py::test_sizes_of_the_onnx_projects_own_cases",
    "tests/benchmarking/test_page.py::test_it_fits_the_screen_of_a_phone_and_of_a_desk",
    "tests/benchmarks/test_gpu_suite.py::test_a_run_and_the_next_one",
    "tests/benchmarks/test_record.py",
    "tests/checkpoints/test_bounds.py::test_memory_is_bounded",
    "tests/checkpoints/test_torch_file.py::test_memory_of_a_large_directory",
    "tests/checkpoints/test_torch_file.py::test_memory_stays_bounded",
    "tests/cli/test_bad_input.py::test_a_file_size_limit_leaves_nothing_behind",
    "tests/cli/test_bad_input.py::test_ctrl_c_leaves_nothing_behind",
    "tests/cli/test_bad_input.py::test_sigterm_takes_temporary_files_and_workers_along",
    "tests/cli/test_bench.py::test_a_folder_and_a_bare_graph",
    "tests/cli/test_bench.py::test_a_plan_is_built_kept_and_said_to_be_unable_to_run_here",
    "tests/cli/test_bench.py::test_engines_that_are_not_here_are_shown_with_the_reason_and_the_rest_runs",
    "tests/cli/test_bench.py::test_lower_precisions_have_the_fp32_baseline",
    "tests/cli/test_bench.py::test_peak_memory_is_each_engines_own",
    "tests/cli/test_bench.py::test_rows_are_kept_and_compared",
    "tests/cli/test_bench.py::test_the_whole_way_from_file_to_scores",
    "tests/cli/test_bench.py::test_torch_compile_is_an_engine",
    "tests/cli/test_bench.py::test_without_a_checkpoint",
    "tests/cli/test_calibrate.py::test_a_bound_that_cannot_be_met_is_exit_code_4",
    "tests/cli/test_calibrate.py::test_a_broken_video_is_named_and_left_out",
    "tests/cli/test_calibrate.py::test_a_fixed_folder_with_a_class_head",
    "tests/cli/test_calibrate.py::test_the_folder_runs_and_says_what_it_is",
    "tests/cli/test_calibrate.py::test_the_order_of_the_list_changes_nothing",
    "tests/cli/test_calibration_file.py::test_bench_compares_a_calibration_with_eager",
    "tests/cli/test_commands.py::test_doctor_finds_two_onnxruntimes",
    "tests/cli/test_commands.py::test_doctor_tries_every_engine",
    "tests/cli/test_commands.py::test_export_and_run_again_over_the_same_folder",
    "tests/cli/test_embed_many.py",
    "tests/cli/test_eval.py::test_300_hostile_inputs_give_errors_and_nothing_worse",
    "tests/cli/test_eval.py::test_data_set_settings_are_used_and_said",
    "tests/cli/test_eval.py::test_killed_at_any_moment_it_resumes_to_the_same_figures",
    "tests/cli/test_eval.py::test_the_cache_spares_videos_and_gives_the_same_figures",
    "tests/cli/test_names.py::test_a_locale_that_knows_ascii_only",
    "tests/cli/test_names.py::test_every_command_takes_such_names",
    "tests/cli/test_network.py",
    "tests/cli/test_outputs.py::test_calibrate_with_a_full_tmpdir",
    "tests/cli/test_outputs.py::test_commands_name_a_tmpdir_that_cannot_be_used",
    "tests/cli/test_outputs.py::test_results_replace_results_and_keep_links_and_modes",
    "tests/cli/test_outputs.py::test_rows_go_to_standard_output",
    "tests/engines/test_triton_session.py::test_new_weights_drop_the_graphs",
    "tests/examples/test_motion.py::test_committed_weights_on_fresh_clips",
    "tests/export/test_to_onnx.py::test_the_reference_graph_gives_the_same_numbers",
    "tests/hostile/test_folders.py",
    "tests/hostile/test_fuzz_files.py",
    "tests/hostile/test_kill.py",
    "tests/kernels/test_aot.py::test_all_configurations",
    "tests/kernels/test_export.py",
    "tests/quantisation/test_calibrate.py::test_a_clip_that_makes_nan_is_named_and_left_out",
    "tests/quantisation/test_calibrate.py::test_int8_that_is_faster_is_written",
    "tests/quantisation/test_calibrate.py::test_memory_is_flat_from_10_to_1000_clips",
    "tests/quantisation/test_calibrate.py::test_no_engine_that_gives_the_same",
    "tests/test_docs.py::test_python_of_the_readme_runs",
    "tests/test_packaging.py",
    "tests/verification/test_faults.py::test_clean_pairs_raise_no_alarm",
}
BUILT = {"plain", "sanitized", "program", "rtx", "quantised"}


def pytest_collection_modifyitems(items):
    for item in items:
        test = item.nodeid.partition("[")[0]
        file = test.partition("::")[0]
        if SLOW & {test, file, file.rpartition("/")[0]} or BUILT & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Share the tests among processes by file; those of tests/cpp together, for one build."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "tests/cpp" if file.startswith("tests/cpp/") else file

    return ByFile(config, log)


def golden_folder() -> Path:
    """Where the outputs of the authors' code lie: STAN_INFER_GOLDEN, or ../shared/golden."""
    return Path(os.environ.get("STAN_INFER_GOLDEN", ROOT.parent / "shared" / "golden"))


@pytest.fixture(scope="session")
def golden() -> Path:
    folder = golden_folder()
    if not (folder / "README.md").is_file():
        pytest.skip(f"the authors' golden data is not here ({folder}); set STAN_INFER_GOLDEN")
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


def same_for_each(exact, quantised, rows, threads):
    """As times_saved, without chance: what linears of a tiny model gain is noise."""
    return dict.fromkeys(rows, 1.0)


def quicken(patch):
    from stan_infer.benchmarking.interleave import Schedule

    short = Schedule(warmup=1, repeats=2)
    patch.setattr("stan_infer.quantisation.verdict.Schedule", lambda **given: short)
    patch.setattr("stan_infer.quantisation.calibrate.times_saved", same_for_each)
    patch.setattr("stan_infer.quantisation.calibrate.draw", lambda *given: {})


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
    folder = tmp_path_factory.mktemp("videos")
    for i in range(3):
        write_video(folder / f"clip{i}.mp4", seed=i)
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
        assert time.monotonic() < last, f"nothing happened in {seconds} s"
        time.sleep(0.05)
    return found


def write_video(path, seed=0, frames=20, size=96):
    """A moving bright square on noise, H.264."""
    import av

    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for t in range(frames):
            image = rng.integers(0, 60, (size, size, 3), dtype=np.uint8)
            image[10:30, 2 * t : 2 * t + 20] = 200
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
