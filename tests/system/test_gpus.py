"""GPUs as the driver shows them, on a stand-in for its two libraries."""

import ctypes

import pytest

from stan_infer.system import gpus


class Driver:
    """libcuda and libnvidia-ml of a machine with two GPUs; `fault` names a call that fails."""

    def __init__(self, fault="") -> None:
        self.fault = fault

    def __getattr__(self, name):
        def call(*args):
            given = getattr(type(self), f"_{name}", lambda *args: None)
            given(self, *(getattr(a, "_obj", a) for a in args))
            return int(name == self.fault)

        return call

    def _cuDeviceGetCount(self, count):  # noqa: N802 - the driver's own names
        count.value = 2

    def _cuDeviceGet(self, device, i):  # noqa: N802 - as above
        device.value = 10 + i

    def _cuDeviceGetName(self, buffer, size, device):  # noqa: N802 - as above
        buffer.value = f"GPU {device.value}".encode()

    def _cuDeviceGetAttribute(self, value, attribute, device):  # noqa: N802 - as above
        value.value = {75: (8, 12), 76: (9, 0)}[attribute][device.value - 10]

    def _nvmlSystemGetDriverVersion(self, buffer, size):  # noqa: N802 - as above
        buffer.value = b"580.65.06"


@pytest.mark.parametrize(
    ("fault", "driver"),
    [("", "580.65.06"), ("nvmlInit_v2", "unknown"), ("nvmlSystemGetDriverVersion", "unknown")],
)
def test_what_the_driver_shows(monkeypatch, fault, driver):
    monkeypatch.setattr(gpus, "_load", lambda name: Driver(fault))
    assert gpus.nvidia_gpus() == [
        {"name": "GPU 10", "sm": "sm_89", "driver": driver},
        {"name": "GPU 11", "sm": "sm_120", "driver": driver},
    ]


@pytest.mark.parametrize("fault", ["cuInit", "cuDeviceGetCount"])
def test_a_driver_that_does_not_work(monkeypatch, fault):
    monkeypatch.setattr(gpus, "_load", lambda name: Driver(fault))
    assert gpus.nvidia_gpus() == []


def test_no_driver(monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert gpus.nvidia_gpus() == []
