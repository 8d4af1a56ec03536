"""Nothing leaves the machine and nothing is left on it but what a command was asked to write."""

import importlib.metadata
import importlib.util
import os
import sys

import pytest

from stan_infer.library.embed_library import embed_library
from tests.traced import traced

PROGRAM = (sys.executable, "-m", "stan_infer")
ONCE = "--min-seconds 0 --repeats 1 --warmup 1 --frames 2"
# Arguments, then what they ask to write. C: a checkpoint, D: its folder, V: videos, A: annotations,
# L: a library of them, W: one of them.
QUICK = {
    "inspect": ("inspect C", []),
    "inspect a folder": ("inspect D", []),
    "run ort": ("run D V --text dog", []),
    "run ort, decord": ("run D V --text dog --decoder decord", []),
    "run openvino": ("run D V --text dog --engine openvino", []),
    "embed": ("embed D V -o v.npz --workers 2", ["v.npz"]),
    "embed a library": ("embed D V -o library --workers 2", ["library"]),
    "search": ("search L dog --model D --html page.html", ["page.html"]),
    "library": ("library verify L D --files", []),
    "eval": ("eval D --dataset retrieval --annotations A --videos V", []),
}
CACHE = ("home/.cache", "home/.cache/stan-infer")
SLOW = {
    "run eager": ("run C V --text dog", []),
    "watch": (
        "watch C W --text dog --not cat --windows 0.2 -o rows --plot p.png",
        ["p.png", "rows"],
    ),
    "export": ("export C -o folder --card", ["folder"]),
    "export by torch": ("export C -o folder --graph reference --tower text", ["folder"]),
    "calibrate": ("calibrate D --videos V -o int8 --min-cosine 0.5 --force", ["int8"]),
    "verify": ("verify C D --frames 1", []),
    "convert": ("convert C c.safetensors", ["c.safetensors"]),
    "bench": (f"bench C --engine eager,ort {ONCE}", []),
    "bench a folder": (
        f"bench D --engine ort,openvino {ONCE} --out rows --report page",
        ["page", "rows"],
    ),
    "doctor": ("doctor", []),
}


@pytest.fixture(scope="session")
def inputs(checkpoint, artefact, videos, tmp_path_factory):
    annotations = tmp_path_factory.mktemp("annotations") / "a.csv"
    rows = [f"clip{i}.mp4,text {i}" for i in range(3)]
    annotations.write_text("\n".join(["video,text", *rows]))
    library = annotations.parent / "library"
    embed_library(artefact, [videos], library, workers=1)
    places = {"C": checkpoint, "D": artefact, "V": videos, "A": annotations, "L": library}
    return places | {"W": videos / "clip0.mp4"}


def run(case, inputs, place, **environment):
    words, written = {**QUICK, **SLOW}[case]
    done = traced([*PROGRAM, *(inputs.get(w, w) for w in words.split())], place, **environment)
    starved = "bench" in case and "every row is starved" in done.err  # by other tests
    assert done.code in (0, 3 if case == "doctor" else 4 if starved else 0), done.err[-2000:]
    assert sorted(p.name for p in done.work.iterdir()) == written
    return done


@pytest.mark.parametrize("case", QUICK)
def test_a_command_is_silent(case, inputs, tmp_path):
    for name in ("decord", "openvino"):
        if name in case:
            pytest.importorskip(name)
    done = run(case, inputs, tmp_path)
    # What SQLite's readers leave beside a database, and the next writer removes.
    notes = {str(inputs["L"] / f"rows.db-{end}") for end in ("shm", "wal")}
    done.outside[:] = [f for f in done.outside if f not in notes]
    done.check_silent()


@pytest.mark.parametrize("case", SLOW)
def test_a_slow_command_is_silent(case, inputs, tmp_path):
    done = run(case, inputs, tmp_path)
    # The one place for what can be made again: matplotlib's list of fonts, torch's empty folder.
    done.files[:] = [f for f in done.files if f != CACHE[0] and not f.startswith(CACHE[1])]
    done.check_silent()


def test_every_command_is_tried():
    from stan_infer.cli.app import app

    names = {command.callback.__name__ for command in app.registered_commands} | {"library"}
    assert names - {"serve"} == {words.split()[0] for words, _ in {**QUICK, **SLOW}.values()}


def test_serve_speaks_with_who_asks_it_alone(inputs, tmp_path):
    """It listens on this machine; every connection that is made is this test's own."""
    pytest.importorskip("uvicorn")
    code = f"""
import urllib.request
from stan_infer.library.server.serve import served
with served({str(inputs["L"])!r}, model={str(inputs["D"])!r}, port=0) as server:
    for path in ("", "library", "search?text=dog", "thumbnail/0", "video/0"):
        urllib.request.urlopen(server.address + path).read()
"""
    done = traced([sys.executable, "-c", code], tmp_path)
    assert done.code == 0, done.err
    made = [call for call in done.sockets if "connect(" in call]
    assert len(made) == 5 and all('inet_addr("127.0.0.1")' in call for call in made), made
    assert not done.files


def need_openvino_telemetry():
    """Skip without the package, which cannot be imported in this process any more."""
    try:
        importlib.metadata.version("openvino-telemetry")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("openvino-telemetry is not installed")


def test_a_program_that_imports_the_engines_itself_is_silent(inputs, tmp_path):
    need_openvino_telemetry()
    code = f"""
import stan_infer as si
import onnxruntime
for engine in ("ort", "openvino"):
    session = si.open_session({str(inputs["D"])!r}, engine=engine)
    session.score(["a dog"], session.read_clip({str(inputs["V"] / "clip0.mp4")!r})[None])
import openvino
"""
    done = traced([sys.executable, "-c", code], tmp_path)
    assert done.code == 0, done.err
    done.check_silent()


def test_a_video_that_names_an_address_opens_no_socket(inputs, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    address = "192.0.2.1"  # for documentation, nobody's
    for name, text in {
        "hls.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://{address}/a.ts\n",
        "sdp.mp4": f"v=0\no=- 0 0 IN IP4 {address}\ns=x\nc=IN IP4 {address}\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "concat.mp4": f"ffconcat version 1.0\nfile http://{address}/a.mp4\n",
        "dash.mp4": f'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011">'
        f"<BaseURL>http://{address}/</BaseURL></MPD>",
    }.items():
        (folder / name).write_text(text)
    command = [*PROGRAM, "embed", inputs["D"], folder, "-o", "v.npz"]
    for decoder in ("pyav", "decord"):
        if importlib.util.find_spec("av" if decoder == "pyav" else decoder):
            done = traced([*command, "--decoder", decoder], tmp_path)
            assert done.code == 2, done.err
            done.check_silent()


# What a library does when nobody stops it is found: the check can fail.


def test_the_choice_of_a_user_is_kept_and_onnxruntime_is_then_seen(inputs, tmp_path):
    if tuple(map(int, importlib.metadata.version("onnxruntime").split(".")[:2])) < (1, 32):
        pytest.skip("onnxruntime before 1.32 has no telemetry on Linux")
    done = run("run ort", inputs, tmp_path, ORT_DISABLE_TELEMETRY="0")
    assert any("deviceid" in file for file in done.files), done.files
    with pytest.raises(AssertionError, match="deviceid"):
        done.check_silent()


def test_openvino_alone_is_seen(tmp_path):
    need_openvino_telemetry()
    done = traced([sys.executable, "-c", "import openvino"], tmp_path)
    assert any("AF_INET" in call for call in done.sockets), done.sockets
    assert "home/intel" in done.files


def test_a_file_made_elsewhere_is_seen(tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "x"
    code = f"open({str(elsewhere)!r}, 'w'); import os; os.mkdir({str(elsewhere) + 'y'!r})"
    done = traced([sys.executable, "-c", code], tmp_path_factory.mktemp("place"))
    assert done.outside == [str(elsewhere), str(elsewhere) + "y"]


LATE = """
import os, sys, types
sys.modules["onnxruntime"] = types.SimpleNamespace(disable_telemetry_events=lambda: print("stop"))
import stan_infer
print(os.environ["ORT_DISABLE_TELEMETRY"], sys.modules["openvino_telemetry"])
"""


@pytest.mark.parametrize(("chosen", "said"), [(None, "stop\n1 None\n"), ("0", "0 None\n")])
def test_onnxruntime_imported_before_us_is_told_to_stop(chosen, said, tmp_path):
    choice = {} if chosen is None else {"ORT_DISABLE_TELEMETRY": chosen}
    done = traced([sys.executable, "-c", LATE], tmp_path, **choice)
    assert done.out == said, done.err


def test_caches_of_libraries_lie_in_our_folder(monkeypatch, tmp_path):
    from stan_infer.system.cache_folder import keep_library_caches

    monkeypatch.setenv("STAN_INFER_CACHE", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", "chosen")
    for name in ("TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    keep_library_caches()
    assert os.environ["TRITON_CACHE_DIR"] == "chosen"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    assert os.environ["MPLCONFIGDIR"] == str(tmp_path / "matplotlib")
    assert not list(tmp_path.iterdir())
