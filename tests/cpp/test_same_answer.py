"""The C++ client answers to each folder as `stan-infer run` does, see tests/cli."""

import pytest

from tests.hostile.reader_cases import CASES


@pytest.fixture(params=["plain", "sanitized"])
def program(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_exit_codes(program, case, tmp_path):
    done = program.run(*case.make(tmp_path))
    assert done.returncode == (case.code if case.cpp is None else case.cpp), done.stderr
    assert bool(case.why) == (case.cpp is not None)
    if done.returncode:
        assert done.stderr.startswith("error: ") and done.stdout == ""
    if case.cpp is None:
        assert case.word in done.stderr
