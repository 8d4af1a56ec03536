"""What has not begun when CI's time is over is skipped, and the last lines say what."""

import os

from tests.conftest import ROOT, python


def test_what_is_late_is_counted():
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_errors.py"]
    late = os.environ | {"STAN_INFER_TESTS_END": "1"}
    out = python(*words, cwd=ROOT, env=late).stdout
    assert ": not run, out of time: tests/test_errors.py" in out
    assert " skipped in " in out and "passed" not in out
