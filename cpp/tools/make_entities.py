"""Write src/html_entities.cpp from the HTML standard's entities, as Python's html module has them.

Run as: python cpp/tools/make_entities.py
"""

import html
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
    closed = {name: value for name, value in sorted(entities.items()) if name.endswith(";")}
    legacy = [name for name in sorted(entities) if not name.endswith(";")]
    # Those without a semicolon mean what they mean with one, so their names suffice.
    assert all(entities[name] == entities[f"{name};"] for name in legacy)
    # Names in capitals that HTML does not know stand for what these stand for, in upper case. Here
    # are those for which that is another character.
    capitals = {
        name.upper(): value.upper()
        for name, value in closed.items()
        if name == name.lower() and value.upper() != value and is_unknown(name.upper())
    }
    text = HEAD + literal("kEntities", spelled(closed))
    text += "\n// These are also known without a semicolon.\n" + literal("kLegacyEntities", legacy)
    text += "\n// Names in capitals that only ftfy knows, where they stand for another character.\n"
    text += literal("kCapitalEntities", spelled(capitals))
    text += "\n}  // namespace stan_infer\n"
    path = Path(__file__).parents[1] / "src" / "html_entities.cpp"
    path.write_text(text, encoding="utf-8")


def is_unknown(name: str) -> bool:
    """Whether HTML finds no entity in this name, which has its semicolon."""
    return html.unescape(f"&{name}") == f"&{name}"


def spelled(entities: dict[str, str]) -> list[str]:
    """Return name=code points in hexadecimal of each, the names without semicolons."""
    return [f"{name[:-1]}={'+'.join(f'{ord(c):x}' for c in v)}" for name, v in entities.items()]


def literal(name: str, words: list[str]) -> str:
    """Return the definition of a string literal that holds `words`, with spaces between."""
    lines = textwrap.wrap(" ".join(words), 104, break_long_words=False, break_on_hyphens=False)
    body = "\n".join(f'    "{line} "' for line in lines)
    return f"const char* const {name} =\n{body};\n"


if __name__ == "__main__":
    main()
