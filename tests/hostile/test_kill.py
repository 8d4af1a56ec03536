"""A few kills of tests.hostile.kill; 200 are run by hand (CONTRIBUTING.md)."""

import sys

import pytest

from tests.conftest import ROOT, python


@pytest.mark.skipif(sys.platform != "linux", reason="forks after imports, needs flock")
@pytest.mark.parametrize("more", [["--kills", "6"], ["--kills", "2", "--no-exchange"]])
def test_results_are_whole_after_a_kill(more):
    # In a process of its own: a fork of this one would lack the threads that other tests started.
    commands = "export,embed,eval,calibrate" if "6" in more else "export"
    words = ("tests.hostile.kill", *more, "--seed", 3, "--commands", commands)
    python("-m", *words, cwd=ROOT)
