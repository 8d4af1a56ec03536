"""Sphinx: make docs. Pages are Markdown that GitHub shows, too; those at the root stay there."""

from __future__ import annotations

import html
import re
from pathlib import Path

import stan_infer

ROOT = Path(__file__).resolve().parents[1]
project = "stan_infer"
html_title = f"stan_infer {stan_infer.__version__}"
copyright = "the authors of stan_infer, Apache-2.0"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    *(f"{name}.md" for name in (
        "CHECKPOINTS", "VIDEOS", "CALIBRATION", "GRAPHS", "TENSORRT", "BENCHMARKS", "SECURITY",
        "CONTRIBUTING", "CHANGELOG",
    )),
    "cpp/README.md",
    "examples/curator/README.md",
    "examples/motion/README.md",
    "examples/web/README.md",
]  # fmt: skip
# Folders, which are then not searched.
exclude_patterns = [
    *(path.name for path in ROOT.glob(".*") if path.is_dir()),
    *("out", "build", "dist", "stan_infer", "kernels", "export", "tests", "examples/motion/clips"),
    "examples/web/node_modules",
]
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["site/index.html"]
html_show_sourcelink = html_copy_source = html_use_index = False
myst_heading_anchors = 4  # as GitHub gives them
myst_enable_extensions = ["attrs_inline"]
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
highlight_language = "text"


def _read(app, docname, source):
    """Fill the API page; let links to folders lead to their pages."""
    folder = (ROOT / f"{docname}.md").parent
    text = source[0]
    if docname == "docs/api":
        text = re.sub(r"<!-- names -->.*", lambda _: _directives(), text, flags=re.DOTALL)

    def linked(match):
        words, target = match.groups()
        if not (folder / target).is_dir():
            return match[0]
        page = folder / target / "README.md"
        return f"[{words}]({target}/README.md)" if page.is_file() else words

    source[0] = re.sub(r"(?<!!)\[([^\]]*)\]\(([\w./-]+)\)", linked, text)


def _kind(name) -> str:
    value = getattr(stan_infer, name)
    if not isinstance(value, type):
        return "autofunction"
    return "autoexception" if issubclass(value, Exception) else "autoclass"


def _names() -> list[str]:
    """The public names in the order of the table in the package's docstring; errors last."""
    table = re.findall(r"^(\w+)  +\S", stan_infer.__doc__, re.MULTILINE)
    public = [name for name in dir(stan_infer) if not name.startswith("_")]
    return [n for n in table if n in public] + [n for n in public if n not in table]


def _directives() -> str:
    found = []
    for name in _names():
        kind = _kind(name)
        options = "\n   :members:" if kind == "autoclass" else ""
        found.append(f"## {name}\n\n```{{eval-rst}}\n.. {kind}:: stan_infer.{name}{options}\n```\n")
    return "\n".join(found)


_COLON = "\N{FULLWIDTH COLON}"  # stands for a colon while napoleon reads
_SHORT = 24  # characters of code that stay in one line


def _colons(app, what, name, value, options, lines):
    """Keep napoleon from taking the words before a colon for a type, of a property or a result."""
    outer = -1 if what == "property" else None  # the indent of what is above such lines
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if outer is not None and line.strip() and indent <= outer:
            outer = None
        if outer is not None:
            lines[number] = line.replace(":", _COLON)
        elif line.strip() == "Returns:":
            outer = indent


def _docstring(app, what, name, value, options, lines):
    """Docstrings are plain text: backticks are code, stars and bars are themselves."""
    lines[:] = [
        line
        if line.lstrip().startswith((">>>", "..."))
        else re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", re.sub(r"([*|@])", r"\\\1", line))
        for line in (line.replace(_COLON, ":") for line in lines)
    ]


def _unbroken(app, pagename, templatename, context, doctree):
    """Options, names and dates stay in one line; long names break behind their separators."""
    body = re.sub(r"(?<=<pre>)<span></span>(.*?)\n*(?=</pre>)", _lines, context.get("body") or "",
                  flags=re.DOTALL)  # fmt: skip
    body = re.sub(r'<code class="docutils([^>]*>)(.*?)</code>', _short, body)
    body = re.sub(r'<span class="pre">([^<]+)</span>', _code, body)
    names = r"\d{4}-\d\d-\d\d|--?[A-Za-z][\w-]*|stan-\w+"
    whole = rf"(?<![\w./-])({names})(?![\w-])(?=[^<>]*<)"
    body = re.sub(whole, r'<span class="whole">\1</span>', body)
    context["body"] = re.sub(r"(\d) %(?=[^<>]*<)", r"\1&nbsp;%", body)


# In code a word with a hyphen would be taken for two where it is broken there; long ones must.
_HYPHENS = r"(?<![\w./<&-])(?=[\w./-]{3,34}(?![\w./-]))([\w./]+-[\w./-]+)(?=[^<>]*(?:<|$))"


def _lines(match):
    """Each line of a block of code apart, so that its rest is indented where a screen is narrow."""
    found = []
    for line in match[1].split("\n"):
        plain = re.sub(r"<[^>]+>", "", line)
        indent = len(plain) - len(plain.lstrip())
        line = re.sub(_HYPHENS, r'<span class="whole">\1</span>', line)
        found.append(f'<span class="line" style="--indent:{indent}">{line}\n</span>')
    return "".join(found)


def _short(match):
    code = html.unescape(re.sub(r"<[^>]+>", "", match[2]))
    kind = "whole docutils" if len(code) <= _SHORT and "," not in code else "docutils"
    return f'<code class="{kind}{match[1]}{match[2]}</code>'


def _code(match):
    if len(match[1]) <= _SHORT and "," not in match[1]:
        return f'<span class="pre whole">{match[1]}</span>'
    parted = re.sub(r"(::|[_/=,])(?=.)", r"\1<wbr>", match[1])
    return f'<span class="pre">{parted}</span>'


def setup(app):
    """Connect the changes of text."""
    app.connect("source-read", _read)
    app.connect("autodoc-process-docstring", _colons, priority=100)
    app.connect("html-page-context", _unbroken)
    app.connect("autodoc-process-docstring", _docstring, priority=900)
