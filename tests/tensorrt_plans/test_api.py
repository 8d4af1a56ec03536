"""Our calls against the names of each version, as recorded and as installed."""

import logging
import re
import sys

import pytest

from stan_infer.errors import MissingError
from stan_infer.system.packages import install_command
from stan_infer.tensorrt_plans import api
from stan_infer.tensorrt_plans.api import load_tensorrt, message_log, missing_names, used_names
from tests.tensorrt_plans.fake import VERSIONS, World, fake_tensorrt, names
from tests.tensorrt_plans.record_api import record

# Names that version 11 removed or RTX never had: our code may not use them.
GONE = {
    "BuilderFlag": {"FP16", "BF16", "INT8", "FP8", "OBEY_PRECISION_CONSTRAINTS"},
    "IBuilderConfig": {"int8_calibrator", "set_calibration_profile", "algorithm_selector"},
    "NetworkDefinitionCreationFlag": {"EXPLICIT_BATCH"},
    "OnnxParser": {"supports_model"},
    "ICudaEngine": {"device_memory_size", "has_implicit_batch_dimension"},
}


def engine_of(version):
    return "trt-rtx" if "rtx" in version else "trt"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_has_what_is_called(version):
    recorded = names(version)["classes"]
    for kind, members in used_names(engine_of(version)).items():
        assert members <= set(recorded[kind]), (version, kind, members - set(recorded[kind]))
        assert not members & GONE.get(kind, set())


def test_the_tables_are_not_of_one_version():
    ten, eleven, rtx = (names(v)["classes"] for v in VERSIONS)
    assert GONE["BuilderFlag"] <= set(ten["BuilderFlag"])
    assert not GONE["BuilderFlag"] & set(eleven["BuilderFlag"]) | set(rtx["BuilderFlag"]) & {"FP16"}
    assert "ComputeCapability" in rtx and "ComputeCapability" not in eleven


def test_the_bindings_that_are_installed_are_those_recorded():
    module = pytest.importorskip("tensorrt_rtx")
    assert missing_names(module, "trt-rtx") == []
    recorded = names("tensorrt_rtx-1.7")
    if module.__version__ == recorded["version"]:
        assert record("tensorrt_rtx") == recorded


@pytest.mark.parametrize("version", VERSIONS)
def test_a_package_is_loaded(version, monkeypatch):
    module = fake_tensorrt(version, World())
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert load_tensorrt(engine_of(version)) is module


@pytest.mark.parametrize(
    ("engine", "fault", "words"),
    [
        ("trt", "absent", f"needs tensorrt: {re.escape(install_command('trt'))}"),
        ("trt", "stub", "installed but does not load.*libnvinfer.so.11.*pypi.nvidia.com"),
        ("trt-rtx", "stub", "tensorrt_rtx is installed but does not load.*tensorrt-rtx --extra"),
        # The stub imports its bindings, which are a package of their own.
        ("trt", "bindings", "installed but does not load.*tensorrt_bindings"),
        ("trt", "empty", "it has no Builder"),
        ("trt", "old", r"tensorrt 9.3.0.1 is not known.*10.0 up to 12.0: pip install"),
        ("trt", "new", r"tensorrt 12.0.0.5 is not known"),
        ("trt-rtx", "lacks", "lacks Builder.create_network.*pip install --upgrade tensorrt-rtx"),
    ],
)
def test_what_cannot_be_loaded_is_said_with_the_command(engine, fault, words, monkeypatch):
    version = "tensorrt_rtx-1.7" if engine == "trt-rtx" else "tensorrt-11.4"
    module = fake_tensorrt(version, World())

    def load(name):
        if fault in ("absent", "bindings"):
            missing = name if fault == "absent" else "tensorrt_bindings"
            raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)
        if fault == "stub":
            raise ImportError("libnvinfer.so.11: cannot open shared object file")
        if fault == "empty":
            return logging
        if fault in ("old", "new"):
            module.__version__ = {"old": "9.3.0.1", "new": "12.0.0.5"}[fault]
        if fault == "lacks":
            type.__delattr__(module.Builder, "create_network")
        return module

    monkeypatch.setattr(api.importlib, "import_module", load)
    with pytest.raises(MissingError, match=words):
        load_tensorrt(engine)


def test_a_library_that_is_here_and_does_not_load(monkeypatch, tmp_path):
    """NVIDIA's package ignores such a library, and its bindings then report a missing file."""
    libraries = tmp_path / "tensorrt_libs"
    libraries.mkdir()
    (libraries / "__init__.py").write_text("")
    (libraries / "libnvinfer.so.11").write_bytes(b"cut")

    def load(name):
        raise ImportError("libnvinfer.so.11: cannot open shared object file")

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(api.importlib, "import_module", load)
    told = r"does not load \(.*tensorrt_libs/libnvinfer.so.11: .*more memory.*damaged.*reinstall"
    with pytest.raises(MissingError, match=told):
        load_tensorrt("trt")


def test_one_log_of_a_module_which_goes_on_to_ours(caplog):
    module = fake_tensorrt("tensorrt-11.4", World())
    log = message_log(module)
    assert message_log(module) is log
    with caplog.at_level(logging.DEBUG, "stan_infer.tensorrt_plans.api"):
        log.log(module.ILogger.ERROR, "wrong")
        log.log(module.ILogger.WARNING, "odd")
        log.log(module.ILogger.VERBOSE, "chatter")
    assert (list(log.errors), list(log.warnings)) == (["wrong"], ["odd"])
    assert [r.levelname for r in caplog.records] == ["INFO", "INFO", "DEBUG"]


def test_the_reason_is_no_echo_of_a_missing_driver():
    echo = "Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient)"
    assert api.reason([echo, "the true reason"]) == "the true reason"
    assert "cudaError 35" in api.reason([echo])
    assert api.reason([]) == "no reason was logged"
    assert len(api.reason(["x" * 9000])) < 600
