"""The error of every linear as a chart: blocks along x, error along y, a colour per kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from stan_infer.system.charts import INK, image_files, legend, look, new_figure, styled, upright

_LINEARS = ("qkv", "q", "out", "fc1", "fc2", "single")  # each has its colour and marker
_BLOCKS = 26  # of a row of the chart, so that names stay legible
_APART = 0.18  # between the linears of a block, of which none hides another


def draw(errors: Mapping[str, float], kept: Collection[str], title: str) -> dict[str, bytes]:
    """Return {"svg": ..., "png": ...}. kept: linears that stay in fp32, drawn with a ring.

    errors: of each linear alone in 8 bits, in the order of the network. Raises MissingError without
    matplotlib.
    """
    return image_files(figure_of(errors, kept, title), title)


def figure_of(errors: Mapping[str, float], kept: Collection[str], title: str) -> Any:
    """Return the chart as matplotlib's figure: as many rows as the blocks need, on one scale."""
    blocks = list(dict.fromkeys(_block(name) for name in errors))
    count = -(-len(blocks) // _BLOCKS)
    columns = -(-len(blocks) // count)
    figure = new_figure((min(max(6.4, 1.4 + 0.34 * columns), 10.0), 1.0 + 2.9 * count))
    figure.suptitle(title, color=INK, fontsize=12)
    figure.supylabel("relative error of the video embedding", color=INK, fontsize=10)
    positive = [e for e in errors.values() if e > 0] or [1.0]
    low, high = min(positive) / 2, 2 * max(positive)
    for row in range(count):
        axes = figure.add_subplot(count, 1, row + 1)
        styled(axes, "", "")
        own = blocks[row * columns : (row + 1) * columns]
        _points(axes, {n: max(e, low) for n, e in errors.items() if _block(n) in own}, own, kept)
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        axes.set_xlim(-0.5, columns - 0.5)
        axes.set_xticks(range(len(own)), own, fontsize=9)
        upright(axes)
        axes.grid(visible=False, axis="x")
        for i in range(1, len(own)):
            axes.axvline(i - 0.5, color=INK, alpha=0.12, linewidth=0.6)
    legend(figure)
    return figure


def _points(
    axes: Any, errors: Mapping[str, float], blocks: Sequence[str], kept: Collection[str]
) -> None:
    """Draw the linears of these blocks, those of one block beside each other."""
    place: dict[str, float] = {}
    for i, block in enumerate(blocks):
        names = [n for n in errors if _block(n) == block]
        for j, name in enumerate(names):
            place[name] = i + _APART * (j - (len(names) - 1) / 2)
    for i, word in enumerate(_LINEARS):
        if own := [n for n in errors if n.rpartition("/")[2] == word]:
            colour, marker = look(i)
            x, y = [place[n] for n in own], [errors[n] for n in own]
            axes.plot(x, y, marker, color=colour, label=word, ms=5, clip_on=False)
    if rings := [n for n in errors if n in kept]:
        x, y = [place[n] for n in rings], [errors[n] for n in rings]
        style = {"mfc": "none", "mec": INK, "ms": 11, "clip_on": False}
        axes.plot(x, y, "o", label="stays in fp32", **style)


def _block(name: str) -> str:
    """video/branch/layer2/temporal/qkv -> branch 2 temporal; in the trunk one block per layer."""
    parts = name.split("/")
    inner = ("mlp" if "mlp" in parts else parts[3]) if parts[1] == "branch" else ""
    return f"{parts[1]} {parts[2].removeprefix('layer')} {inner}".strip()
