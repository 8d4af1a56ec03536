"""Write src/html_entities.cpp from the HTML standard's entities, as Python's html module has them.

Run as: python cpp/tools/make_entities.py
"""

import html.entities
import textwrap
from pathlib import Path

HEAD = """\
// Written by tools/make_entities.py from the named character references of the HTML standard.
#include "html_entities.hpp"

namespace stan_infer {

// name=code points in hexadecimal; each is spelled with a semicolon.
"""


def main() -> None:
    """Write the file beside this folder."""
    entities = html.entities.html5
    closed = [
        f"{name[:-1]}={'+'.join(f'{ord(c):x}' for c in value)}"
        for name, value in sorted(entities.items())
        if name.endswith(";")
    ]
    legacy = [name for name in sorted(entities) if not name.endswith(";")]
    # Those without a semicolon mean what they mean with one, so their names suffice.
    assert all(entities[name] == entities[f"{name};"] for name in legacy)
    text = HEAD + literal("kEntities", closed)
    text += "\n// These are also known without a semicolon.\n" + literal("kLegacyEntities", legacy)
    text += "\n}  // namespace stan_infer\n"
    path = Path(__file__).parents[1] / "src" / "html_entities.cpp"
    path.write_text(text, encoding="utf-8")


def literal(name: str, words: list[str]) -> str:
    """Return the definition of a string literal that holds `words`, with spaces between."""
    lines = textwrap.wrap(" ".join(words), 104, break_long_words=False, break_on_hyphens=False)
    body = "\n".join(f'    "{line} "' for line in lines)
    return f"const char* const {name} =\n{body};\n"


if __name__ == "__main__":
    main()
