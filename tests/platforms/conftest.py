"""Folders with Debian's packages for another processor or of another release, and builds for them.

No package is installed on this machine: mmdebstrap unpacks them. Needs root and Debian's archive.
"""

import os
import platform
import shutil
import subprocess

import pytest

from tests.conftest import ROOT
from tests.cpp.conftest import exported, labels, model, small, unavailable  # noqa: F401

LIBRARIES = "libavformat-dev libavcodec-dev libavutil-dev libswscale-dev libutf8proc-dev libssl-dev"


def unpacked(root, suite, *packages, processor="amd64"):
    """Unpack a release's packages, with all that they need, in a new folder."""
    if shutil.which("mmdebstrap") is None:
        unavailable("mmdebstrap is not installed: cpp/setup-debian.sh --tests")
    if os.geteuid() or platform.machine() != "x86_64":
        unavailable("other platforms are tried as root, on x86-64")
    # As this machine fetches: through its proxy, and from an archive that may be a copy.
    settings = subprocess.run(["apt-config", "dump"], capture_output=True, text=True).stdout
    ours = ("Acquire::http", "Acquire::https", "Acquire::Check-Valid-Until")
    lines = [line for line in settings.splitlines() if line.startswith(ours)]
    options = root.with_suffix(".apt")
    options.write_text("\n".join(lines) + "\n")
    command = ["mmdebstrap", "--quiet", "--variant=extract", f"--architectures={processor}"]
    command += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", f"--aptopt={options}"]
    command += [f"--include={name}" for name in packages]
    done = subprocess.run([*command, suite, root], capture_output=True, text=True)
    if done.returncode:
        unavailable(f"Debian's packages of {suite} cannot be fetched: {done.stderr[-1000:]}")
    return root


@pytest.fixture(scope="session")
def engine():
    return "ort"


@pytest.fixture(scope="session")
def program(plain):
    return plain


def copied_sources(root):
    """The sources of the library and of its tests inside such a folder."""
    for name in ("cpp", "tests/cpp", "examples/cpp"):
        shutil.copytree(ROOT / name, root / "src" / name)
    return "/src/tests/cpp"
