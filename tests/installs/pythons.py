"""Find an interpreter of each version that the package declares."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def declared() -> list[str]:
    """The versions of Python among pyproject.toml's classifiers, as in "3.12"."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = [re.fullmatch(r".*:: Python :: (3\.\d+)", c) for c in project["classifiers"]]
    return [m[1] for m in found if m]


def find(versions: list[str]) -> dict[str, str]:
    """Version -> interpreter, of those given in PYTHONS, on PATH or under pyenv.

    Exits with what is missing and how to give it.
    """
    found: dict[str, str] = {}
    for path in _candidates(versions):
        version = _version(path)
        if version in versions:
            found.setdefault(version, path)
    missing = [v for v in versions if v not in found]
    if missing:
        sys.exit(
            f"error: no Python {' and no '.join(missing)} in PYTHONS, on PATH or in pyenv's "
            "versions: install it (pyenv install, apt-get install), or give its path, as in "
            f"PYTHONS='{' '.join(f'/path/to/python{v}' for v in missing)}' make installs"
        )
    return found


def _candidates(versions: list[str]) -> Iterator[str]:
    yield from os.environ.get("PYTHONS", "").split()
    names = [f"python{v}" for v in versions]
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield from filter(None, (shutil.which(name, path=folder) for name in names))
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True).stdout.strip()
        for name in names:
            yield from map(str, sorted(Path(root, "versions").glob(f"*/bin/{name}")))


def _version(path: str) -> str | None:
    # A shim may lie on PATH that refuses to run, and Debian's Python may lack venv.
    code = "import venv, ensurepip, sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([path, "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
