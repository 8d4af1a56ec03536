"""A folder with plans that a stand-in built, and a machine on which the stand-in runs."""

import shutil
import sys

import pytest
import torch

from stan_infer.engines import trt_session
from stan_infer.tensorrt_plans import build as build_module
from stan_infer.tensorrt_plans.api import message_log
from stan_infer.tensorrt_plans.build_process import build
from stan_infer.tensorrt_plans.plan_file import sidecar_path
from tests.conftest import edit_json
from tests.engines.fake_cuda import FakeCuda
from tests.tensorrt_plans.fake import VERSIONS, World, fake_tensorrt

GPU = {"name": "Stand-in", "sm": "sm_89", "driver": "580.1"}


class Gpu(FakeCuda):
    """torch.cuda on a machine with one GPU, whose memory is the CPU's."""

    def is_available(self):
        return True

    def get_device_capability(self, device):
        return (8, 9)

    def get_device_name(self, device):
        return GPU["name"]


class Machine:
    """A version of TensorRT, stand-in and GPU included; `folder` is an exported one."""

    def __init__(self, version, folder) -> None:
        self.cuda = Gpu()
        self.world = World(self.cuda)
        self.module = fake_tensorrt(version, self.world)
        self.engine = "trt-rtx" if "rtx" in version else "trt"
        self.version, self.folder = version, folder

    @property
    def log(self):
        return message_log(self.module)


@pytest.fixture(scope="session")
def exported(folder):
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    """The exported folder, to put plans into."""
    return shutil.copytree(exported, tmp_path / "tiny")


def put_in_place(module, monkeypatch):
    """Have plans built by a stand-in, in this process, as on a machine with a GPU."""

    def run_job(job, progress, gpu=None):
        return build(job, module, lambda part: progress(part) or True)

    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(build_module, "run_job", run_job)
    monkeypatch.setattr(build_module, "nvidia_gpus", lambda: [GPU])


def edit(plan, **values):
    """Change values of the sidecar of a plan's file."""
    edit_json(sidecar_path(plan), **values)


@pytest.fixture(params=VERSIONS)
def machine(request, copy, tmp_path, monkeypatch):
    """The stand-in takes the place of package, builder's process, GPU and torch.cuda."""
    made = Machine(request.param, copy)
    put_in_place(made.module, monkeypatch)
    monkeypatch.setattr(trt_session, "torch_device", lambda device: torch.device("cpu"))
    monkeypatch.setenv("STAN_INFER_CACHE", str(tmp_path / "cache"))
    return made
