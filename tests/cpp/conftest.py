"""Builds of the C++ program, an exported folder, and how to run the one on the other."""

import importlib.util
import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import stan_infer as si
from stan_infer.network.model import Stan, init_random
from tests.cli.conftest import cli  # noqa: F401  # a fixture
from tests.conftest import ROOT, edit_json, tiny_config
from tests.exported import exported as make_exported
from tests.hostile.folders import entry_of

SOURCE = Path(__file__).parent
MOTION = ROOT / "examples" / "motion"
LIBRARIES = ("libavformat", "libavcodec", "libavutil", "libswscale", "libutf8proc", "libcrypto")
# ONNX Runtime keeps some objects for its whole life, which are no leaks of ours; what the program
# itself leaks lies in frames without that library and is still reported.
SUPPRESSED = "leak:libonnxruntime\n"


def unavailable(reason):
    """Skip, or fail where STAN_INFER_REQUIRE_CPP=1 says that nothing may be missing."""
    if os.environ.get("STAN_INFER_REQUIRE_CPP") == "1":
        pytest.fail(f"STAN_INFER_REQUIRE_CPP=1, but {reason}")
    pytest.skip(reason)


def need_tools():
    for tool in ("cmake", "c++", "pkg-config"):
        if shutil.which(tool) is None:
            unavailable(f"{tool} is not installed: cpp/setup-debian.sh")
    if subprocess.run(["pkg-config", "--exists", *LIBRARIES]).returncode:
        unavailable(f"{', '.join(LIBRARIES)} are not installed: cpp/setup-debian.sh")


def package_folder(name):
    """Where an optional Python package lies, without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def ort_library():
    folder = package_folder("onnxruntime")
    found = sorted(folder.glob("capi/libonnxruntime.so.*")) if folder else []
    if not found:
        unavailable("the installed onnxruntime has no libonnxruntime.so")
    return found[0]


@dataclass(frozen=True)
class Program:
    """One build of stan_classify and of the probe; before: words that start it, as of qemu."""

    build: Path
    openvino: bool
    environment: dict[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()

    def run(self, *arguments, probe=False, face=False, other=None, stdin=None):
        """Run it; answers with the finished process, its output as text."""
        name = "probe" if probe else "face" if face else other or "stan_infer/stan_classify"
        ours = {"STAN_INFER_ORT_LIBRARY": str(ort_library()), **self.environment}
        return subprocess.run(
            [*self.before, self.build / name, *map(os.fsencode, arguments)],
            input=stdin,
            capture_output=True,
            timeout=120,
            env=os.environ | ours,
            text=True,
        )

    def json(self, *arguments, **options):
        done = self.run(*arguments, **options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def build(folder, *settings, openvino=False, source=SOURCE, before=()):
    """Build `source` in `folder`; before: words before cmake, as chroot and its folder."""
    need_tools()
    flags = [f"-D{s}" for s in ("CMAKE_BUILD_TYPE=None", "CMAKE_CXX_FLAGS=-O0", *settings)]
    if openvino:
        place = package_folder("openvino")
        flags += ["-DSTAN_INFER_OPENVINO=ON", f"-DOpenVINO_DIR={place / 'cmake'}"]
    for command in (
        [*before, "cmake", "-S", source, "-B", folder, *flags],
        [*before, "cmake", "--build", folder, "-j2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "warning:" not in done.stderr, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """With all engines: TensorRT against the stand-in's headers and library."""
    need_tools()
    openvino = package_folder("openvino") is not None
    root = stand_in(tmp_path_factory.mktemp("tensorrt"))
    settings = ("STAN_INFER_TENSORRT=ON", f"TENSORRT_ROOT={root}", f"CUDA_ROOT={root}")
    made = build(tmp_path_factory.mktemp("cpp"), *settings, openvino=openvino)
    return Program(made, openvino)


def stand_in(root):
    """Build what takes the place of NVIDIA's libraries, as they are laid out."""
    for folder in ("include", "lib"):
        (root / folder).mkdir()
    here, cpp = SOURCE / "tensorrt", ROOT / "cpp"
    for name in ("NvInfer.h", "cuda_runtime_api.h"):
        shutil.copy(here / name, root / "include")
    flags = [
        "-std=c++17",
        "-O0",
        "-shared",
        "-fPIC",
        f"-I{here}",
        f"-I{cpp}/src",
        f"-I{cpp}/include",
        f"-I{cpp}/third_party/onnxruntime",
    ]
    parts = ("backend_ort", "call", "tensor", "folder", "sha256", "shown")
    sources = [here / "stand_in.cpp", *(cpp / "src" / f"{part}.cpp" for part in parts)]
    library = root / "lib" / "libnvinfer.so"
    command = ["c++", *flags, *sources, "-ldl", "-pthread", "-o", library]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.copy(library, root / "lib" / "libcudart.so")
    return root


@pytest.fixture(params=["ort", "openvino"])
def engine(request, plain):
    """An engine of the C++ program, if that was built with it."""
    if request.param == "openvino" and not plain.openvino:
        unavailable("openvino is not installed")
    return request.param


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory):
    """With AddressSanitizer and UBSan, and no engine that is optional."""
    folder = tmp_path_factory.mktemp("cpp-sanitized")
    suppressed = folder / "suppressed.txt"
    suppressed.write_text(SUPPRESSED)
    environment = {"LSAN_OPTIONS": f"suppressions={suppressed}:print_suppressions=0"}
    made = build(folder, "STAN_INFER_SANITIZE=address,undefined")
    return Program(made, False, environment)


@pytest.fixture(scope="session")
def raced(tmp_path_factory):
    """By Clang, with ThreadSanitizer, which sees only the library's own code."""
    if shutil.which("clang++") is None:
        unavailable("clang++ is not installed: cpp/setup-debian.sh --tests")
    folder = tmp_path_factory.mktemp("cpp-raced")
    suppressed = folder / "suppressed.txt"
    # ONNX Runtime unlocks one more mutex, of its own, when the program ends.
    suppressed.write_text(
        "called_from_lib:libonnxruntime\nmutex:__run_exit_handlers\nmutex:OrtEnv\n"
    )
    environment = {"TSAN_OPTIONS": f"suppressions={suppressed}:halt_on_error=1"}
    settings = ("CMAKE_CXX_COMPILER=clang++", "STAN_INFER_SANITIZE=thread")
    # Clang's older runtimes cannot place their memory where the kernel scatters addresses widely.
    before = ("setarch", "-R")
    return Program(build(folder, *settings), False, environment, before)


@pytest.fixture(scope="session")
def labels():
    return [line for line in (MOTION / "labels.txt").read_text().splitlines() if line]


@pytest.fixture(scope="session")
def model():
    return si.load_model(str(MOTION / "motion.safetensors"))


@pytest.fixture(scope="session")
def exported(model, labels):
    return make_exported(model, labels=labels)


@pytest.fixture(scope="session")
def small(labels):
    """A folder with all parts whose files are small: the sanitized build hashes slowly."""
    sizes = {"vocab_size": 49408, "context_positions": 77, "context_length": 32, "embed_dim": 64}
    model = init_random(Stan(tiny_config(**sizes)), seed=1).eval()
    return make_exported(model, labels=labels)


@pytest.fixture
def folder(small, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(small, tmp_path / "folder")


def edit_manifest(folder, change):
    edit_json(folder / "manifest.json", change)


def put(folder, name, content):
    """Write a file, and its size and hash into the manifest, as a stranger would."""
    (folder / name).write_bytes(content)
    entry = entry_of(folder / name)

    def change(manifest):
        manifest["files"][name] = entry

    edit_manifest(folder, change)
