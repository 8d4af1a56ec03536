"""The programs of examples/python: short, and they do what they say."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import stan_infer as si
from tests.conftest import ROOT, python, write_video
from tests.test_pages import joined

PROGRAMS = ROOT / "examples/python"
MODEL, CLIPS = ROOT / "examples/motion/motion.safetensors", ROOT / "examples/motion/clips"
TEXTS = ["a shape moves left", "a shape moves right", "a shape fades in"]


@pytest.fixture(scope="module")
def session():
    with si.open_session(MODEL) as session:
        yield session


@pytest.fixture
def folder(tmp_path):
    """Two clips, and a file that is none."""
    for name in ("red_cross_moves_left", "blue_square_fades_in"):
        shutil.copy(CLIPS / f"{name}.mp4", tmp_path)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    return tmp_path


def program(name):
    return import_module(f"examples.python.{name}")


def test_each_is_short_and_says_how_to_run_it():
    names = [p for p in PROGRAMS.glob("*.py") if p.name != "__init__.py"]
    assert len(names) + len(list(PROGRAMS.glob("*.ipynb"))) == 7
    for path in names:
        text = path.read_text()
        assert len(text.splitlines()) < 50, path.name
        assert f"{path.stem}.py" in text.split('"""')[1] or f"{path.stem}:app" in text
        assert "Installed: extra " in text.split('"""')[1]


def test_camera(session):
    camera = program("camera")
    frames = list(camera.decoded(str(CLIPS / "red_cross_moves_left.mp4")))
    # The file as a camera that shows it three times, with gaps of its own.
    seconds = frames[-1][0] + 0.1
    stream = [(k * seconds + t, frame) for k in range(3) for t, frame in frames]
    answers = list(camera.watch(iter(stream), session, TEXTS))
    assert len(answers) >= 2
    assert all(b[0] - a[0] >= camera.EVERY for a, b in zip(answers, answers[1:], strict=False))
    with pytest.raises(si.InputError, match="this session is closed"):
        closed = si.open_session(MODEL)
        closed.close()
        list(camera.watch(stream, closed, TEXTS))
    whole = session.prepare([f for _, f in frames])
    assert np.array_equal(whole, session.read_clip(CLIPS / "red_cross_moves_left.mp4"))


def test_camera_as_a_program():
    done = python(PROGRAMS / "camera.py", MODEL, CLIPS / "red_cross_moves_left.mp4", *TEXTS)
    assert " s  a shape " in done.stdout


def test_data_loader(session, folder):
    found = program("data_loader").embed(str(MODEL), str(folder), batch=2, workers=0)
    assert sorted(found) == ["blue_square_fades_in.mp4", "red_cross_moves_left.mp4"]
    for name, vector in found.items():
        wanted = session.embed_video(session.read_clip(folder / name)[None])[0]
        assert np.allclose(vector.numpy(), wanted, atol=1e-5)


def test_data_loader_with_processes(folder):
    """As a program: its two processes are forks, which a process of pytest-xdist must not have."""
    done = python(PROGRAMS / "data_loader.py", MODEL, folder)
    assert done.stdout.count(" (64,) length ") == 2 and "error: " in done.stderr


def test_search(session, folder, capsys, monkeypatch):
    search = program("search").search
    first = search(session, folder, "a shape fades in")
    assert first[0][1].endswith("blue_square_fades_in.mp4") and len(first) == 2
    assert "error: " in capsys.readouterr().err
    with monkeypatch.context() as kept:
        kept.setattr(si, "embed_videos", None, raising=False)
        assert search(session, folder, "a shape moves left", 1)[0][1].endswith("moves_left.mp4")
    shutil.copy(CLIPS / "green_bar_grows.mp4", folder / "later.mp4")
    assert len(search(session, folder, "a shape grows")) == 3, "a video that came later is seen"
    with si.open_session(MODEL, settings={"short_side": 80}) as other:
        alike, again = (
            search(session, folder, "a shape grows"),
            search(other, folder, "a shape grows"),
        )
    assert alike[0][0] != again[0][0], "another model's vectors are not used"


def test_top5_csv(folder, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(TEXTS) + "\n\n")
    done = python(PROGRAMS / "top5_csv.py", MODEL, labels, folder, code=2)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 2 * 3 and "error: " in done.stderr
    best = {row["video"].rpartition("/")[2]: row["class"] for row in rows if row["rank"] == "1"}
    assert best["blue_square_fades_in.mp4"] == "a shape fades in"
    assert best["red_cross_moves_left.mp4"] == "a shape moves left"
    shares = [float(r["probability"]) for r in rows if "fades_in" in r["video"]]
    assert abs(sum(shares) - 1) < 1e-3


@pytest.fixture
def client(monkeypatch, tmp_path):
    pytest.importorskip("fastapi")
    testclient = pytest.importorskip("fastapi.testclient")
    monkeypatch.setenv("MODEL", str(MODEL))
    monkeypatch.setenv("MAX_BYTES", "100000")
    (tmp_path / "uploads").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "uploads"))
    sys.modules.pop("examples.python.service", None)
    with testclient.TestClient(program("service").app) as client:
        yield client
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.parametrize("name", ["camera", "data_loader", "top5_csv"])
def test_a_reader_that_leaves_early(folder, tmp_path, name):
    """As with | head: no traceback, whoever notices first."""
    clip, labels = folder / "red_cross_moves_left.mp4", tmp_path / "labels.txt"
    labels.write_text("\n".join(TEXTS))
    words = {
        "camera": [MODEL, clip, *TEXTS],
        "data_loader": [MODEL, folder],
        "top5_csv": [MODEL, labels, folder],
    }
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        command = [sys.executable, PROGRAMS / f"{name}.py", *words[name]]
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert done.returncode in (141, -signal.SIGPIPE)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_service_says_that_it_takes_no_form(client):
    clip = (CLIPS / "red_cross_moves_left.mp4").read_bytes()
    done = client.post("/score", params={"text": TEXTS}, files={"file": clip})
    assert done.status_code == 415 and "curl --data-binary @FILE" in done.json()["detail"]


def test_service(client, session, tmp_path):
    clip = CLIPS / "red_cross_moves_left.mp4"
    done = client.post("/score", params={"text": TEXTS}, content=clip.read_bytes())
    assert done.status_code == 200
    wanted = session.score(TEXTS, session.read_clip(clip)[None])[:, 0]
    assert np.allclose([done.json()[t] for t in TEXTS], wanted, atol=1e-5)
    write_video(tmp_path / "cut.mp4")
    bad = {
        "empty": (b"", 400, "the video is empty"),
        "no video": (b"GIF89a nothing", 400, "the video"),
        "cut off": ((tmp_path / "cut.mp4").read_bytes()[:3000], 400, "the video"),
        "a text file": (b"hello " * 100, 400, "the video"),
        "too large": (b"x" * 100001, 413, "more than 100000 bytes"),
    }
    for name, (body, code, message) in bad.items():
        done = client.post("/score", params={"text": TEXTS}, content=body)
        assert (done.status_code, name) == (code, name), done.text
        assert message in done.json()["detail"] and "/uploads" not in done.text, done.text
    for texts, code in (([], 422), (["x"] * 65, 422), (["x" * 20000], 400)):
        assert client.post("/score", params={"text": texts}, content=b"x").status_code == code
    pieces = client.post("/score", params={"text": TEXTS}, content=iter([b"x" * 60000] * 50))
    assert pieces.status_code == 413


def test_the_service_as_its_page_shows(client, session, monkeypatch):
    """What `curl` in docs/serve.md sends; TestClient stands for uvicorn, which has a port."""
    text = joined((ROOT / "docs/serve.md").read_text())
    (sent,) = re.findall(r"^curl --data-binary @(\S+) \"http://localhost:8000(\S+)\"$", text, re.M)
    model, app = re.search(r"^MODEL=(\S+) python -m uvicorn (\S+)$", text, re.M).groups()
    monkeypatch.chdir(PROGRAMS)
    assert Path(model).resolve() == MODEL and app == "service:app"
    file, address = sent
    done = client.post(address, content=Path(file).read_bytes())
    texts = ["a shape moves left", "a shape moves right"]
    wanted = session.score(texts, session.read_clip(file)[None])[:, 0]
    assert list(done.json()) == texts and np.allclose(list(done.json().values()), wanted, atol=1e-5)


def test_the_notebook_runs_and_has_pictures(tmp_path, monkeypatch):
    path = PROGRAMS / "search.ipynb"
    notebook = json.loads(path.read_text())
    assert path.stat().st_size < 300_000 and notebook["nbformat"] == 4
    outputs = [o for c in notebook["cells"] for o in c.get("outputs", ())]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 2
    assert not any(str(ROOT) in json.dumps(o) for o in outputs)
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    code = "import matplotlib; matplotlib.use('agg')\n" + "\n".join(cells)
    done = python("-c", code + "\nprint('BEST', best(search('a shape fades in')))", cwd=tmp_path)
    assert "BEST blue_square_fades_in.mp4" in done.stdout
