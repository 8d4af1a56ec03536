"""Tables and pairs that fit the terminal: text goes on in its own column, columns move below.

Widths are cells of the terminal, as a character may take two, or none.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Collection, Mapping, Sequence

from rich.cells import cell_len

_GAP = 2  # blanks between columns
_LEAST = 12  # cells to which a column of text may shrink


def terminal_width() -> int | None:
    """The columns of the terminal that standard output goes to; None for a file or a pipe.

    There every row is one line, for other programs to read. COLUMNS holds for both.
    """
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdecimal() and int(given):
        return int(given)
    if not sys.stdout.isatty():
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        return None


def pair_lines(pairs: Mapping[str, str], width: int | None) -> list[str]:
    """Names and values, a pair per line; a long value goes on below itself.

    One long word, such as a hash, has a line of its own, so that it can be copied.
    """
    first = max(map(cell_len, pairs), default=0)
    lines = []
    for name, value in pairs.items():
        cells = cell_len(value)
        room = cells if width is None else max(width - first - _GAP, _LEAST)
        if width is not None and " " not in value and room < cells <= width - _GAP:
            lines += [name, " " * _GAP + value]
            continue
        parts = wrapped(value, room)
        lines.append(_joined([name, parts[0]], [first, 0], set()))
        lines += [" " * (first + _GAP) + part for part in parts[1:]]
    return lines


class Table:
    """An aligned table, whose rows may come one after the other.

    titles: the head of each column. widths: of its cells; wider ones move what follows.
    right: columns that are aligned so. Where width, the columns of the terminal, is not enough,
    text is broken within its column; if that is not enough either, the last columns follow in
    tables below, each with the first `keys` columns.
    """

    def __init__(
        self,
        titles: Mapping[str, str],
        widths: Mapping[str, int],
        right: Collection[str],
        width: int | None,
        keys: int = 1,
    ) -> None:
        """Decide the columns of every part."""
        self._titles, self._right = titles, right
        natural = {c: max(widths[c], cell_len(title)) for c, title in titles.items()}
        self._parts = [natural]
        if width is not None:
            least = {c: w if c in right else min(w, _LEAST) for c, w in natural.items()}
            groups = _groups(least, width, keys)
            self._parts = [
                _shrunk({c: natural[c] for c in group}, self._right, width) for group in groups
            ]
        self._is_bounded = width is not None

    def lines(self, rows: Sequence[Mapping[str, str]], *, has_head: bool) -> list[str]:
        """The lines of these rows; parts of a table are set apart by a blank line."""
        found: list[str] = []
        for widths in self._parts:
            found += [""] if found else []
            lines = [self._titles] if has_head or len(self._parts) > 1 else []
            for row in [*lines, *rows]:
                found += self._row(row, widths)
        return found

    def _row(self, row: Mapping[str, str], widths: Mapping[str, int]) -> list[str]:
        cells = [
            wrapped(row[c], width) if self._is_bounded and c not in self._right else [row[c]]
            for c, width in widths.items()
        ]
        right = {i for i, c in enumerate(widths) if c in self._right}
        return [
            _joined([cell[i] if i < len(cell) else "" for cell in cells], [*widths.values()], right)
            for i in range(max(map(len, cells)))
        ]


def _joined(cells: Sequence[str], widths: Sequence[int], right: Collection[int]) -> str:
    padded = [
        _blanks(text, width) + text if i in right else text + _blanks(text, width)
        for i, (text, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return (" " * _GAP).join(padded).rstrip()


def _blanks(text: str, width: int) -> str:
    return " " * (width - cell_len(text))


def _total(widths: Collection[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)


def _groups(least: Mapping[str, int], width: int, keys: int) -> list[list[str]]:
    """The columns in groups that fit, each with the first `keys` columns in front."""
    first, rest = [*least][:keys], [*least][keys:]
    groups = [list(first)]
    for column in rest:
        wanted = [*groups[-1], column]
        if _total([least[c] for c in wanted]) > width and len(groups[-1]) > len(first):
            groups.append([*first, column])
        else:
            groups[-1].append(column)
    return groups


def _shrunk(widths: dict[str, int], right: Collection[str], width: int) -> dict[str, int]:
    """The widths with columns of text shrunk until all fit, always the widest by one."""
    while _total(widths.values()) > width:
        text = {c: w for c, w in widths.items() if c not in right and w > _LEAST}
        if not text:
            break
        widths[max(text, key=text.__getitem__)] -= 1
    return widths


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` cells, broken at blanks, outside brackets.

    A word that is longer, such as a path, is broken behind its separators.
    """
    if cell_len(text) <= width:
        return [text]
    lines, line = list[str](), ""
    # What is in brackets, as an interval, stays together if it fits.
    for word in re.findall(rf"\([^()]{{1,{max(width - 4, 1)}}}\)[^ ]{{0,2}}(?= |$)|[^ ]+", text):
        for i, piece in enumerate(_pieces(word, width)):
            blank = " " if line and i == 0 else ""
            if line and cell_len(line) + len(blank) + cell_len(piece) > width:
                lines.append(line)
                line = piece
            else:
                line += blank + piece
    return [*lines, line]


def _pieces(word: str, width: int) -> list[str]:
    if cell_len(word) <= width:
        return [word]
    parts = re.findall(r"[^/_,=-]*[/_,=-]+|[^/_,=-]+", word)
    return [piece for part in parts for piece in _cut(part, width)]


def shortened(text: str, width: int) -> str:
    """The text in at most `width` cells, with three dots for what is left out."""
    return text if cell_len(text) <= width else f"{_cut(text, width - 3)[0]}..."


def _cut(text: str, width: int) -> list[str]:
    """The text in pieces of at most `width` cells; what has no cell stays with what it marks."""
    begins = [i for i, character in enumerate(text) if i == 0 or cell_len(character)]
    pieces, cells = [""], 0
    for begin, end in itertools.pairwise([*begins, len(text)]):
        more = cell_len(text[begin:end])
        if cells and cells + more > width:
            pieces.append("")
            cells = 0
        pieces[-1] += text[begin:end]
        cells += more
    return pieces
