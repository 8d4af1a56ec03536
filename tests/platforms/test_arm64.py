"""The tests of the C++ library for 64-bit ARM: cross-compiled, and run by qemu."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import av
import numpy as np
import pytest

import stan_infer as si
from stan_infer.video.rgb import upright_rgb
from tests.conftest import ROOT
from tests.cpp.conftest import Program, build, unavailable
from tests.cpp.test_client import (  # noqa: F401
    test_frames_are_those_of_python,
    test_hashes,
    test_ids_of_ordinary_strings,
    test_ids_of_the_golden_strings,
    test_self_test_passes,
)
from tests.cpp.test_face import (  # noqa: F401
    session,
    test_all_frames_or_by_time,
    test_decoded_frames_give_the_clip_of_their_file,
    test_frames_for_a_graph_of_floats,
    test_rgb_in_memory,
    test_what_callers_get_wrong_is_a_typed_error,
)
from tests.cpp.test_installed import CLIP, configured, done, frames_through
from tests.cpp.test_pixels import FORMATS, stored
from tests.cpp.test_unicode import (  # noqa: F401  # pytest collects them here, too
    facts,
    test_code_pages_are_those_that_ftfy_looks_for,
    test_every_pair_of_hangul,
    test_final_sigma,
)
from tests.platforms.conftest import LIBRARIES, unpacked
from tests.video.test_rgb import every_colour

# Formats that FFmpeg's converter rounds in another way on ARM, where their height is even: by at
# most so many levels. All others have the bytes of x86-64.
ROUNDED = re.compile(r"yuv42[02]p(9|1[0-6])le")
LEVELS = 4

# ONNX Runtime reads the processor's name here, and crashes on that of x86-64.
CPUINFO = """processor : 0
Features : fp asimd
CPU implementer : 0x41
CPU architecture: 8
CPU variant : 0x0
CPU part : 0xd08
CPU revision : 3
"""


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Libraries and headers for ARM of the release that this machine runs, as its compiler's."""
    for tool in ("aarch64-linux-gnu-g++", "qemu-aarch64"):
        if shutil.which(tool) is None:
            unavailable(f"{tool} is not installed: cpp/setup-debian.sh --tests")
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if line
    )["VERSION_CODENAME"]
    root = tmp_path_factory.mktemp("arm") / "root"
    packages = ("libc6-dev", "libstdc++6", "nlohmann-json3-dev", *LIBRARIES.split())
    unpacked(root, release, *packages, processor="arm64")
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text(CPUINFO)
    yield root
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def onnxruntime(tmp_path_factory):
    """ONNX Runtime for ARM, of the version that Python has here."""
    folder = tmp_path_factory.mktemp("onnxruntime")
    wanted = f"onnxruntime=={version('onnxruntime')}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", wanted]
    command += ["-d", folder, "--only-binary=:all:", "--platform=manylinux_2_28_aarch64"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        unavailable(f"{wanted} for ARM cannot be fetched: {done.stderr[-1000:]}")
    (wheel,) = folder.glob("*.whl")
    with ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if "capi/libonnxruntime.so" in n)
        return archive.extract(name, folder)


@pytest.fixture(scope="session")
def cross(root):
    """Settings of a build for ARM."""
    return f"CMAKE_TOOLCHAIN_FILE={ROOT / 'cpp' / 'aarch64.cmake'}", f"CMAKE_SYSROOT={root}"


@pytest.fixture(scope="session")
def plain(root, cross, onnxruntime, tmp_path_factory):
    made = build(tmp_path_factory.mktemp("cpp-arm"), *cross)
    start = ("qemu-aarch64", "-cpu", "cortex-a72", "-L", str(root))
    return Program(made, False, {"STAN_INFER_ORT_LIBRARY": onnxruntime}, start)


def test_the_four_threads_with_a_video(plain, small):
    done = plain.run("threads", small, CLIP, face=True)
    assert done.returncode == 0, done.stderr  # FFmpeg says that it has no quick way on ARM


def off(program, path, tmp_path):
    """By how many levels the picture of a file differs at most from Python's."""
    answer = program.json("frames", path, "1", tmp_path / "raw", probe=True)
    mine = np.fromfile(tmp_path / "raw", np.uint8).reshape(answer["shapes"][0][1:])
    with av.open(str(path)) as container:
        theirs = upright_rgb(next(container.decode(video=0)), path)
    return int(np.abs(mine.astype(np.int16) - theirs).max())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("size", [(64, 48), (63, 47), (16, 2)], ids=str)
def test_pixels_are_those_of_python(plain, tmp_path, name, size):
    most = LEVELS if ROUNDED.fullmatch(name) and size[1] % 2 == 0 else 0
    assert off(plain, stored(tmp_path / "a.mkv", name, size), tmp_path) <= most


@pytest.mark.parametrize(("matrix", "limits"), [(5, 1), (1, 1), (9, 2)])
def test_every_colour_of_8_bits_is_that_of_python(plain, tmp_path, matrix, limits):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("rawvideo", rate=25)
        stream.width, stream.height, stream.pix_fmt = 4096, 4096, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, limits
        out.mux(stream.encode(every_colour(matrix, limits)[0]))
        out.mux(stream.encode())
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (matrix, limits)
    assert off(plain, path, tmp_path) == 0


def test_the_installed_package_gives_the_scores_of_python(
    plain, cross, onnxruntime, exported, labels, tmp_path
):
    done("cmake", "--install", plain.build, "--prefix", tmp_path / "prefix")
    out = configured(ROOT / "examples" / "cpp", tmp_path / "out", tmp_path / "prefix", *cross)
    program = (*plain.before, out / "classify_frames")
    found = frames_through(*program, folder=exported, library=onnxruntime)
    python = si.open_session(str(exported), engine="ort")
    scores = python.score(labels, python.read_clip(CLIP)[None])[:, 0]
    chances = np.exp((scores - scores.max()) / python.config.temperature)
    wanted = dict(zip(labels, chances / chances.sum(), strict=True))
    assert found == {label: pytest.approx(p, abs=1e-4) for label, p in wanted.items()}
