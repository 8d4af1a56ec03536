"""The documents are true: commands, Python blocks, files, links, generated tables."""

import re

import pytest

from tests.conftest import APART, LONGEST, QUICK, ROOT, SLOW, WHOLE, python

README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    from stan_infer.cli.app import app

    groups = [
        ("", app),
        *((f"{g.typer_instance.info.name} ", g.typer_instance) for g in app.registered_groups),
    ]
    return [f"{of}{c.callback.__name__}" for of, a in groups for c in a.registered_commands]


@pytest.mark.parametrize("name", commands())
def test_every_command_is_documented_and_has_help(name):
    page = README if " " not in name else (ROOT / "docs" / "embed.md").read_text()
    assert re.search(rf"stan-infer {name}\b", page)
    done = python("-m", "stan_infer", *name.split(), "--help")
    assert "Usage:" in done.stdout
    # Every option says what it does.
    for line in re.findall(r"^  -.*$", done.stdout, re.MULTILINE):
        assert len(line.split("  ")) > 2, line


TOPS = "stan_infer|kernels|export|benchmarks|examples|tests|docs|cpp"
PATHS = [*ROOT.glob("*.*"), *(p for top in TOPS.split("|") for p in (ROOT / top).rglob("*"))]
FILES = {path.name for path in PATHS}
# The change log tells of files that are gone.
PAGES = [path for path in PATHS if path.suffix == ".md" and path.name != "CHANGELOG.md"]


def headings(page) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def absent(page) -> list[str]:
    """What a page names and the repository does not have: links, files, modules to run."""
    text = page.read_text()
    wrong = []
    for target, _, heading in (t.partition("#") for t in re.findall(r"\]\(([^)\s]+)\)", text)):
        place = page.parent / target if target else page
        if not target.startswith("http"):
            if not place.exists() or (heading and heading not in headings(place)):
                wrong.append(f"{target}#{heading}")
    for name in re.findall(rf"(?<![\w/.~<-])((?:{TOPS})/[\w./-]*\w)", text):
        places = (name, name.removeprefix("stan_infer/"))  # a clone has the package's name, too
        wrong += [] if any((ROOT / place).exists() for place in places) else [name]
    for name in re.findall(r"`(?:[\w.-]+/)*([\w.-]+\.(?:py|sh|cpp|md))\b", text):
        wrong += [] if name in FILES else [name]
    for module in re.findall(rf"python3? -m\s+((?:{TOPS})(?:\.\w+)*)", text):
        path = ROOT / module.replace(".", "/")
        if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists():
            wrong.append(f"-m {module}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_is_there(page):
    assert absent(page) == []


LONGEST_LINE = 90  # characters of code that the site shows without scrolling


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_of_code_need_no_scrolling(page):
    code = re.findall(r"^```\w*\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in code for line in block.splitlines()]
    assert [line for line in lines if len(line) > LONGEST_LINE] == []


def test_what_is_not_there_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading\n[a](#a-heading) [b](#another) [c](nowhere.md)\n`tests/none.py` `absent.py`\n"
        "`tests/test_docs.py` `python -m tests.none` `python -m\ntests.installs`\n"
    )
    wanted = ["#another", "nowhere.md#", "tests/none.py", "none.py", "absent.py"]
    assert absent(page) == [*wanted, "-m tests.none"]


def test_what_make_test_leaves_out_is_there():
    for file, _, test in (
        name.partition("::") for name in {*SLOW, *QUICK, *WHOLE, *LONGEST, *APART}
    ):
        assert (ROOT / file).exists(), file
        assert not test or f"def {test}(" in (ROOT / file).read_text(), test


def test_generated_tables_are_fresh():
    from benchmarks.tables.render import FILES, render

    for name in FILES:
        text = (ROOT / name).read_text()
        assert "<!-- table:" in text
        assert render(text) == text, name


def test_values_of_tables_are_parted_at_most_behind_commas():
    from benchmarks.tables.markdown import markdown

    row = "2 threads | 863 ms, 1.00x, 38 % | 1662 ms, 1.81x to 2.04x, 78 % | not measured"
    last = markdown("a | b | c | d", [row]).splitlines()[-1].replace("\N{NO-BREAK SPACE}", "_")
    assert (
        last == "| 2 threads | 863_ms,_1.00x,_38_% | 1662_ms, 1.81x_to_2.04x, 78_% | not measured |"
    )


def test_a_stale_table_fails(monkeypatch):
    from benchmarks.tables import render

    monkeypatch.setitem(render.TABLES, "engines_two", lambda: "other figures")
    assert render.render(README) != README


def held(text: str) -> list[str]:
    """The tests that CHECKPOINTS.md names, as file::name below tests/."""
    names = re.findall(r"`((?:tests/\w+/)?test_\w+\.py)::(test_\w+)`", text)
    return [f"{n if '/' in n else f'tests/checkpoints/{n}'}::{test}" for n, test in names]


def test_the_tests_that_hold_the_forms_of_checkpoints_exist():
    text = (ROOT / "CHECKPOINTS.md").read_text()
    rows = re.findall(r"^\| .*(?<!test) \|$", text, re.MULTILINE)  # without the heads of tables
    assert len(rows) > 40
    for row in rows:
        assert held(row), row
    for file, _, test in (name.partition("::") for name in held(text)):
        assert f"def {test}(" in (ROOT / file).read_text(), (file, test)
