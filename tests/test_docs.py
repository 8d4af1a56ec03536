"""The README is true: commands, Python blocks, links, generated tables."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    from stan_infer.cli.main import app

    return [c.callback.__name__ for c in app.registered_commands]


@pytest.mark.parametrize("name", commands())
def test_every_command_is_documented_and_has_help(name):
    assert f"stan-infer {name} " in README or f"stan-infer {name}\n" in README
    run = [sys.executable, "-m", "stan_infer", name, "--help"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
    # Every option says what it does.
    for line in re.findall(r"^  -.*$", done.stdout, re.MULTILINE):
        assert len(line.split("  ")) > 2, line


@pytest.mark.slow
def test_python_of_the_readme_runs(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for block in blocks:
        subprocess.run([sys.executable, "-c", block], check=True, cwd=tmp_path)


def test_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_tests_that_the_security_page_names_are_there():
    names = re.findall(
        r"`((?:tests|examples|stan_infer)/[^`]+)`", (ROOT / "SECURITY.md").read_text()
    )
    assert len(names) > 10
    assert not [name for name in names if not (ROOT / name).exists()]


def test_the_readme_is_short():
    assert len(README.splitlines()) < 200


def test_generated_tables_are_fresh():
    from benchmarks.tables.render import FILES, render

    for name in FILES:
        text = (ROOT / name).read_text()
        assert "<!-- table:" in text
        assert render(text) == text, name


def test_a_stale_table_fails(monkeypatch):
    from benchmarks.tables import render

    monkeypatch.setitem(render.TABLES, "engines_two", lambda: "other figures")
    assert render.render(README) != README
