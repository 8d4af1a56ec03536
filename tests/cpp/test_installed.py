"""The installed package: both examples, a shared object, pkg-config, what it exports."""

import os
import re
import subprocess
import sys

import pytest

import stan_infer as si
from benchmarks import cpp
from benchmarks.tables import library as tables
from tests.conftest import ROOT
from tests.cpp.conftest import (
    MOTION,
    SOURCE,
    build,
    make_exported,
    ort_library,
    package_folder,
)

CLIP = MOTION / "clips" / "red_cross_moves_left.mp4"


def run(*command, **environment):
    environment = {"STAN_INFER_ORT_LIBRARY": str(ort_library())} | environment
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env=os.environ | environment
    )


def done(*command, **environment):
    answer = run(*command, **environment)
    assert answer.returncode == 0, answer.stdout[-2000:] + answer.stderr[-3000:]
    return answer.stdout


@pytest.fixture(scope="module", params=["static", "shared"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def prefix(kind, plain, tmp_path_factory):
    """Installed somewhere and moved from there: nothing in it knows its own place."""
    place = tmp_path_factory.mktemp(kind)
    made = plain.build
    if kind == "shared":
        made = build(place / "build", "BUILD_SHARED_LIBS=ON", openvino=False, source=ROOT / "cpp")
    done("cmake", "--install", made, "--prefix", place / "first")
    return (place / "first").rename(place / "prefix")


def configured(source, out, prefix, *settings):
    """Configure and build a project that finds the package under `prefix`."""
    openvino = package_folder("openvino")
    settings += (f"OpenVINO_DIR={openvino / 'cmake'}",) if openvino else ()
    flags = [f"-D{s}" for s in (f"CMAKE_PREFIX_PATH={prefix}", *settings)]
    done("cmake", "-S", source, "-B", out, *flags)
    done("cmake", "--build", out)
    return out


@pytest.fixture(scope="module")
def examples(prefix, tmp_path_factory):
    return configured(ROOT / "examples" / "cpp", tmp_path_factory.mktemp("examples"), prefix)


def chances(text):
    return {line.split("  ", 1)[1]: float(line.split("  ")[0]) for line in text.splitlines()}


def wanted(program, folder, *arguments):
    answer = program.json(folder, CLIP, *arguments, "--top", "0", "--json")["scores"]
    return {r["text"]: pytest.approx(r["probability"], abs=1e-4) for r in answer}


def test_the_example_for_a_file(examples, plain, exported):
    texts = ["a shape moves left", "a shape grows"]
    found = done(examples / "classify_file", exported, CLIP, *texts)
    assert chances(found) == wanted(plain, exported, *(x for t in texts for x in ("--text", t)))
    answer = run(examples / "classify_file", exported, "/nowhere.mp4", "a")
    assert answer.returncode == 2 and answer.stderr.startswith("error: cannot read the video")


def frames_of_the_clip():
    av = pytest.importorskip("av")
    from stan_infer.video.rgb import upright_rgb

    with av.open(str(CLIP)) as container:
        return [upright_rgb(frame, CLIP) for frame in container.decode(video=0)]


def frames_through(*program, folder, library=None):
    """What the example for frames in memory prints for the frames of a clip."""
    return chances(piped(*program, folder=folder, library=library))


def piped(*program, folder, library=None, more=()):
    frames = frames_of_the_clip()
    height, width = frames[0].shape[:2]
    answer = subprocess.run(
        [*program, folder, str(width), str(height), *more],
        input=b"".join(frame.tobytes() for frame in frames),
        stdout=subprocess.PIPE,
        env=os.environ | {"STAN_INFER_ORT_LIBRARY": str(library or ort_library())},
        check=True,
    )
    return answer.stdout.decode()


def test_the_example_for_frames_in_memory(examples, plain, exported):
    assert frames_through(examples / "classify_frames", folder=exported) == wanted(plain, exported)


def test_the_example_for_windows_that_slide(examples, model, labels):
    folder = make_exported(model, labels=labels, split=True)
    found = piped(examples / "watch_frames", folder=folder, more=("10",))
    lines = []
    with si.open_session(folder, engine="ort") as session:
        stream = session.stream(interval=0.1)
        for i, frame in enumerate(frames_of_the_clip()):
            for window in stream.push(frame, i / 10):
                scores = session.score_embeddings(labels, window.embedding[None])[:, 0]
                best = labels[int(scores.argmax())]
                lines.append(f"{window.start:.2f} to {window.end:.2f} s: {best}")
    assert re.sub(r"s: [01]\.\d{4}  ", "s: ", found).splitlines() == lines and lines


def test_parts_that_are_left_out(plain, exported, tmp_path):
    settings = ("STAN_INFER_FFMPEG=OFF", "STAN_INFER_TEXTS=OFF", "STAN_INFER_OPENSSL=OFF")
    made = build(tmp_path / "build", *settings, openvino=False, source=ROOT / "cpp")
    assert not re.search(r"lib(av|sw|utf8proc|crypto)", done("ldd", made / "stan_classify"))
    answer = run(made / "stan_classify", exported, CLIP)
    assert answer.returncode == 3 and "-DSTAN_INFER_FFMPEG=ON" in answer.stderr
    stages = done(made / "stan_classify", exported, "--self-test")
    assert "video_embeds" in stages
    assert "decode        not run: this library was built without FFmpeg" in stages
    assert "input_ids     not run: this library was built without texts" in stages
    done("cmake", "--install", made, "--prefix", tmp_path / "prefix")
    out = configured(ROOT / "examples" / "cpp", tmp_path / "examples", tmp_path / "prefix")
    assert frames_through(out / "classify_frames", folder=exported) == wanted(plain, exported)


def test_the_installed_program(prefix, exported):
    assert len(done(prefix / "bin" / "stan_classify", exported, CLIP).splitlines()) == 5


LOADED = """
import ctypes, sys
embed = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_LOCAL).embed
values = (ctypes.c_float * 4096)()
count = embed(sys.argv[2].encode(), sys.argv[3].encode(), values, 4096)
print(count, *values[: max(count, 0)])
"""


def exports(library):
    """The symbols that a shared object defines for others, readable."""
    lines = done("nm", "-D", "--defined-only", "-C", library).splitlines()
    return {re.sub(r"^\S+ \S ", "", line) for line in lines}


def test_a_shared_object_with_the_library_inside(prefix, kind, plain, exported, tmp_path):
    out = configured(SOURCE / "installed", tmp_path, prefix, f"WANTED={si.__version__}")
    library = next(out.glob("*plugin.so"))
    values = done(sys.executable, "-c", LOADED, library, exported, CLIP).split()
    embedding = plain.json(exported, CLIP, "--embed", "--json")["embedding"]
    assert [float(v) for v in values[1:]] == pytest.approx(embedding, rel=1e-5)
    assert int(values[0]) == len(embedding)
    bad_folder = 1  # an Error of the library, caught in the shared object
    code = done(sys.executable, "-c", LOADED, library, "/nowhere", CLIP)
    assert int(code) == -1 - bad_folder
    ours = {name for name in exports(library) if "stan_infer" in name or name == "embed"}
    if kind == "static":
        assert ours == {"embed"}


def test_the_shared_library_exports_its_header_only(prefix, kind):
    if kind == "static":
        pytest.skip("a static library has no exports")
    found = exports(next((prefix / "lib").glob("libstan_infer.so.*.*.*")))
    assert any(name.startswith("stan_infer::Model::embed_video(") for name in found)
    names = r"(Model|Stream|Error|ImageView|Tensor|Call)\b"
    ours = rf"((typeinfo( name)?|vtable) for )?stan_infer::{names}"
    assert [name for name in found if not re.match(ours, name)] == []


def test_another_version_is_refused(prefix, tmp_path):
    answer = run(
        "cmake", "-S", SOURCE / "installed", "-B", tmp_path, "-DWANTED=0.2",
        f"-DCMAKE_PREFIX_PATH={prefix}",
    )  # fmt: skip
    assert answer.returncode and "requested version" in answer.stderr


def test_pkg_config(prefix, kind, exported, tmp_path):
    """Of the static library of these tests too, except for OpenVINO and TensorRT, which have no
    .pc files."""
    path = str(prefix / "lib" / "pkgconfig")
    flags = done("pkg-config", "--cflags", "--libs", "stan_infer", PKG_CONFIG_PATH=path).split()
    version = done("pkg-config", "--modversion", "stan_infer", PKG_CONFIG_PATH=path)
    assert version.strip() == si.__version__
    assert ("-lutf8proc" in flags) == (kind == "static")
    if kind == "static":
        return
    source = ROOT / "examples" / "cpp" / "classify_file.cpp"
    done("c++", "-std=c++17", source, *flags, "-o", tmp_path / "program")
    library = {"LD_LIBRARY_PATH": str(prefix / "lib")}
    found = done(tmp_path / "program", exported, CLIP, "a", "b", **library)
    assert set(chances(found)) == {"a", "b"}


def test_the_benchmark_compares_the_same_embeddings(prefix, kind, exported, monkeypatch):
    if kind == "static":
        pytest.skip("with OpenVINO and TensorRT, which have no .pc files")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(prefix / "lib"))
    program = cpp.loop_program(prefix)
    row = cpp.clips_row("clips", program, exported, [CLIP, CLIP], 1, 1)
    assert row["ratio"] == pytest.approx(row["python_s_p50"] / row["cpp_s_p50"])
    start = cpp.start_row(prefix, exported, 1, sys.executable)
    recorded = {
        "machine": {"cpu": "X", "cores": 2, "system": "Linux", "python": "3.11"},
        "versions": {"torch": "2", "onnxruntime": "1"},
        "date": "today",
    }
    size = {"measure": "size", "bytes": 123456}
    rows = [r | recorded for r in (row, start, size)]
    monkeypatch.setattr(tables, "newest", lambda *_: rows)
    table = tables.cpp_table()
    assert f"2 clips of 64x64, each | 1 | {1e3 * row['cpp_s_p50']:.1f} |" in table
    assert "start to first score" in table and "123 kB" in table
