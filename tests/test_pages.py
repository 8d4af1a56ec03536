"""README.md and docs/: every command and block of Python runs on the demo; the site has no warning.

A block `sh` has commands that run one after another in a folder with the demo's files, one folder
for each page. In a block `console` a command stands behind "$ ", and what it prints follows. Blocks
`python` run in that folder, too. Plain blocks need a GPU, a data set or an installation, and are
not run; but their commands and options exist.
"""

import contextlib
import os
import re
import shlex

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from stan_infer.cli.app import app
from tests.conftest import ROOT, python, quicken, quieten

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ("sh", "console", "python")


def blocks(page) -> list[tuple[str, str]]:
    """The fenced blocks of a page: language, content."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [(language or "text", content) for language, content in found]


def commands(text: str) -> list[list[str]]:
    """The words of the stan-infer commands in a block, without what stands behind "#"."""
    lines = text.replace("\\\n", " ").splitlines()
    parted = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [words[1:] for words in parted if words[:1] == ["stan-infer"]]


def invoke(words: list[str]):
    """Run a command in this process; what stands behind ">" is the file that takes its results."""
    target = words[words.index(">") + 1] if ">" in words else None
    words = words[: words.index(">")] if target else words
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (words, done.exit_code, done.exception, done.stderr[-2000:])
    if target:
        with open(target, "w") as file:
            file.write(done.stdout)
    return done.stdout


def alike(got: str, wanted: str) -> bool:
    """Whether two outputs have the same words; numbers may differ by a hundredth."""
    pairs = got.split(), wanted.split()
    return len(pairs[0]) == len(pairs[1]) and all(map(same_word, *pairs))


def same_word(got: str, wanted: str) -> bool:
    with contextlib.suppress(ValueError):
        return abs(float(got) - float(wanted)) <= 0.01 * max(abs(float(wanted)), 0.01)
    return got == wanted


def shown(content: str) -> list[tuple[list[str], str]]:
    """The commands of a block `console` with what each prints."""
    return [
        (commands(part)[0], part.partition("\n")[2])
        for part in re.split(r"^(?=\$ )", content, flags=re.MULTILINE)
        if part
    ]


LONG = ("calibrate", "verify", "bench")


def run_by_their_pages() -> list[list[str]]:
    """The long commands of docs/, which README.md need not run once more."""
    found = [words for p in PAGES[1:] for kind, text in blocks(p) if kind == "sh"
             for words in commands(text)]  # fmt: skip
    return [words for words in found if words[0] in LONG]


def run(language: str, content: str, left_out: list[list[str]]) -> None:
    if language == "python":
        python("-c", content)
        return
    if language == "console":
        for words, wanted in shown(content):
            got = invoke(words)
            assert alike(got, wanted), f"{words}\n{got}\nis not\n{wanted}"
        return
    for words in commands(content):
        if words not in left_out:
            invoke(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_runs(page, tmp_path, monkeypatch):
    quicken(monkeypatch)
    quieten(monkeypatch)
    monkeypatch.chdir(tmp_path)
    for name in ("motion.safetensors", "labels.txt", "clips", "clips.csv"):
        os.symlink(ROOT / "examples" / "motion" / name, name)
    left_out = run_by_their_pages() if page == PAGES[0] else []
    ran = [run(kind, content, left_out) for kind, content in blocks(page) if kind in RUN]
    has_commands = any(language == "text" for language, _ in blocks(page))
    assert ran or has_commands or page.name in ("api.md", "index.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_have_their_options(page):
    known = get_command(app).commands
    for language, content in blocks(page):
        for words in commands(content) if language != "python" else ():
            options = {o for p in known[words[0]].params for o in (*p.opts, *p.secondary_opts)}
            given = {w.partition("=")[0] for w in words if re.match(r"--?[a-z]", w)}
            assert not given - options, words


def test_pages_that_messages_name_are_there():
    from stan_infer.errors import see

    code = [p.read_text() for top in ("stan_infer", "export") for p in (ROOT / top).rglob("*.py")]
    named = {name for text in code for name in re.findall(r"see\(['\"]([\w/-]+)['\"]\)", text)}
    assert named and all((ROOT / f"{name}.md").is_file() for name in named), named
    assert see("CHECKPOINTS") == " (docs: CHECKPOINTS)"


def test_the_readme_is_short_and_shows_the_picture():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 150
    assert "](examples/motion/order.svg)" in text


def test_a_page_that_is_wrong_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink(ROOT / "examples" / "motion" / "motion.safetensors", "m.safetensors")
    with pytest.raises(AssertionError, match="no such file"):
        run("sh", "stan-infer inspect m.safetensors  # fine\nstan-infer inspect nothing.pth\n", [])
    with pytest.raises(AssertionError, match="is not"):
        run("console", "$ stan-infer inspect m.safetensors\nnothing\n", [])
    assert alike("a  0.35841 b", "a 0.3584 b") and not alike("a 0.36 b", "a 0.37 b")
    with pytest.raises(AssertionError, match="ZeroDivision"):
        run("python", "1 / 0\n", [])


def test_the_site_is_built_without_a_warning(tmp_path):
    python("-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", tmp_path, cwd=ROOT)
    for page in PAGES[1:]:
        assert (tmp_path / page.relative_to(ROOT)).with_suffix(".html").is_file()
    text = (tmp_path / "docs" / "api.html").read_text()
    assert 'id="stan_infer.open_session"' in text and "%NAMES%" not in text
