"""The C++ program opens no socket and leaves no file (tests/cli/test_network.py: the commands)."""

from __future__ import annotations

import pytest

from tests.cpp.conftest import MOTION, ort_library
from tests.traced import traced

VIDEO = MOTION / "clips" / "red_cross_moves_left.mp4"


@pytest.mark.parametrize("arguments", [[VIDEO], ["--self-test"]], ids=["video", "self-test"])
def test_the_program_is_silent(engine, arguments, plain, small, tmp_path):
    done = classify(plain, small, tmp_path, *arguments, "--engine", engine)
    assert done.code == 0, done.err
    done.check_silent()


def test_the_choice_of_a_user_is_kept_and_onnxruntime_is_then_seen(plain, small, tmp_path):
    if tuple(map(int, ort_library().name.split(".so.")[1].split(".")[:2])) < (1, 32):
        pytest.skip("onnxruntime before 1.32 has no telemetry on Linux")
    done = classify(plain, small, tmp_path, VIDEO, ORT_DISABLE_TELEMETRY="0")
    assert done.code == 0, done.err
    assert any("deviceid" in file for file in done.files), done.files


def classify(program, folder, place, *arguments, **environment):
    environment["STAN_ORT_LIBRARY"] = str(ort_library())
    return traced(
        [program.build / "stan" / "stan_classify", folder, *arguments], place, **environment
    )
