"""An optional package that is absent or broken is a MissingError with the command that helps."""

from __future__ import annotations

import pytest

from stan_infer.errors import MissingError, require


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise RuntimeError('built for numpy 1')", "RuntimeError: built for numpy 1"),
        ("raise AttributeError('no such name')", "AttributeError: no such name"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        ("raise OSError('libx.so: cannot open')", "OSError: libx.so: cannot open"),
        ("import a_module_that_is_absent", "ModuleNotFoundError: No module named"),
        ("def f(:", "SyntaxError: "),
    ],
)
def test_a_package_that_does_not_load(tmp_path, monkeypatch, code, told):
    (tmp_path / "a_broken_package.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingError) as caught:
        require("a_broken_package", "a test", "cpu")
    message = str(caught.value)
    assert f"a test needs a_broken_package, which does not load ({told}" in message
    assert "): pip install --force-reinstall " in message


def test_a_package_that_is_absent():
    with pytest.raises(MissingError) as caught:
        require("a_module_that_is_absent", "a test", "cpu")
    assert "a test needs a_module_that_is_absent (No module named" in str(caught.value)
    assert "pip install" in str(caught.value) and "--force-reinstall" not in str(caught.value)


def test_an_interrupt_while_a_package_loads_stays_one(tmp_path, monkeypatch):
    (tmp_path / "a_slow_package.py").write_text("raise KeyboardInterrupt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        require("a_slow_package", "a test", "cpu")
