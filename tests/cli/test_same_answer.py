"""`stan-infer run` on changed folders; tests/cpp asks the C++ client the same."""

import pytest

from tests.hostile.reader_cases import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_exit_codes(cli, case, tmp_path):
    done = cli("run", *case.make(tmp_path), code=case.code)
    assert case.word in done.err
