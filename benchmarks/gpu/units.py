"""Units of work on a GPU, by kind: what the worker runs (see runner)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache

import torch

from benchmarks.gpu import kernels, models, tune
from benchmarks.gpu.cases import Shape
from benchmarks.gpu.timing import Device, peak_rates
from benchmarks.gpu.worker import Steps
from benchmarks.record import ROOT

RATES, TESTS = "peak rates", "tests"
RATES_SECONDS, TESTS_SECONDS = 10.0, 1200.0
# Tests of other engines need packages that this suite does not need.
_TESTS = ("tests/kernels", "tests/engines/test_triton_session.py")


def rates(device: Device, steps: Steps, *, size: int) -> None:
    """The machine's peak rates."""
    if steps.left(RATES):
        with steps.lane(RATES, RATES_SECONDS) as row:
            row.update(peak_rates(device, size=size))


def network(
    device: Device,
    steps: Steps,
    *,
    model: str,
    lanes: Sequence[str],
    batch: int,
    frames: int,
    rounds: int,
) -> None:
    """Lanes of one network at one shape."""
    models.measure(_networks(device, model), device, steps, lanes, batch, frames, rounds)


@cache
def _networks(device: Device, model: str) -> models.Networks:
    return models.Networks(device, model)


def kernel(device: Device, steps: Steps, *, shape: dict[str, int], dtype: str, rounds: int) -> None:
    """Every kernel at the shapes of one network and batch."""
    made = Shape(**shape)
    sizes = {"batch": made.batch, "frames": made.frames, "patches": made.patches}
    fp8 = not device.is_dry and torch.cuda.get_device_capability(device.name) >= (8, 9)
    for one in kernels.comparisons(made, device.name, getattr(torch, dtype), fp8=fp8):
        kernels.measure(device, steps, one, sizes, rounds)


def tests(device: Device, steps: Steps) -> None:
    """The tests that need a GPU, in a process where kernels are compiled."""
    if not steps.left(TESTS):
        return
    with steps.lane(TESTS, TESTS_SECONDS) as row:
        if device.is_dry:
            raise models.RefusedError("they need a GPU")
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu and not slow", *_TESTS]
        env = {**os.environ, "TRITON_INTERPRET": "0"}
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
        )
        said = done.stdout.split("\n") + done.stderr.split("\n") * (not done.stdout.strip())
        last = next((line for line in reversed(said) if line.strip()), "pytest printed nothing")
        if "No module named pytest" in last:
            raise models.RefusedError("pytest is not installed")
        row.update(summary=last, passed=done.returncode == 0)
        if done.returncode:
            row["output"] = done.stdout[-4000:]


KINDS: dict[str, Callable[..., None]] = {
    "rates": rates,
    "network": network,
    "kernel": kernel,
    "tune": tune.measure,
    "tests": tests,
}
