"""The command line starts light. Times are measured in benchmarks/, never limited here."""

from __future__ import annotations

import pytest

from tests.conftest import python

HEAVY = ("torch", "onnxruntime", "onnx", "cv2", "av", "decord", "tokenizers", "open_clip", "numpy")


@pytest.mark.parametrize("args", [["--help"], ["bench", "--help"], ["--version"], []])
def test_help_imports_nothing_heavy(args):
    code = (
        "import sys; sys.argv = ['stan-infer', *sys.argv[1:]]\n"
        "from stan_infer.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = python("-c", code, *args)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr


def test_importing_the_package_is_light():
    code = f"import sys, stan_infer; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert python("-c", code).stdout.strip() == "[]"


def test_public_names_resolve():
    import stan_infer as si

    for name in si.__all__:
        assert getattr(si, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'exprt_model'"):
        _ = si.exprt_model
