"""Run a program in an empty home under strace: the sockets it opens and the files it leaves."""

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT

# What a program needs to start. LOGNAME: as every login has it; without it libc asks nscd's socket.
_KEPT = ("PATH", "LD_LIBRARY_PATH")
_CALLS = "socket,connect,openat,open,creat,mkdir,mkdirat"


@dataclass(frozen=True)
class Trace:
    """sockets: calls that make or connect one, of any family. files: what lies in home and
    temporary folder afterwards. outside: files and folders made elsewhere than there and in `work`.
    """

    code: int
    out: str
    err: str
    sockets: list[str]
    files: list[str]
    outside: list[str]
    work: Path

    def check_silent(self):
        assert not self.sockets, self.sockets[:5]
        assert not self.files, self.files
        assert not self.outside, self.outside


def traced(command, place, **environment) -> Trace:
    """Run the command in place/work, with place/home and place/tmp empty. Skips without strace."""
    if why := _unusable():
        if os.environ.get("STAN_INFER_REQUIRE_STRACE") == "1":
            pytest.fail(f"STAN_INFER_REQUIRE_STRACE=1, but {why}")
        pytest.skip(why)
    home, temporary, work = (place / name for name in ("home", "tmp", "work"))
    for folder in (home, temporary, work):
        folder.mkdir(exist_ok=True)
    env = {k: os.environ[k] for k in _KEPT if k in os.environ} | {"LOGNAME": "somebody"}
    env |= {"HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), **environment}
    log = place / "strace.txt"
    strace = ["strace", "-f", "--seccomp-bpf", "-s", "4096", "-e", f"trace={_CALLS}", "-o", log]
    done = subprocess.run(
        [*strace, *map(str, command)], env=env, cwd=work, capture_output=True, text=True
    )
    lines = log.read_text(errors="replace").splitlines()
    left = [*home.rglob("*"), *temporary.rglob("*")]
    return Trace(
        done.returncode,
        done.stdout,
        done.stderr,
        [line for line in lines if re.search(r"\b(socket|connect)\(", line)],
        sorted(str(p.relative_to(place)) for p in left),
        sorted({path for path in map(_made, lines) if path and _is_outside(path, place)}),
        work,
    )


@functools.cache
def _unusable() -> str:
    if shutil.which("strace") is None:
        return "strace is not installed"
    done = subprocess.run(["strace", "-f", "--seccomp-bpf", "true"], capture_output=True, text=True)
    return f"strace cannot trace here: {done.stderr[-200:]}" if done.returncode else ""


def _made(line: str) -> str:
    """The absolute path that a call makes, or nothing."""
    found = re.search(r'\b(openat|open|creat|mkdir|mkdirat)\([^"]*"(/[^"]*)"(.*)', line)
    if not found or "= -1 " in line:
        return ""
    return found[2] if "O_CREAT" in found[3] or found[1] not in ("openat", "open") else ""


def _is_outside(path: str, place: Path) -> bool:
    # Python's own compiled files of a source; devices are no files.
    return not (Path(path).is_relative_to(place) or "__pycache__" in path or path[:5] == "/dev/")
