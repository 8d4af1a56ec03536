"""The error of every linear as a chart: blocks along x, error along y, a colour per kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from stan_infer.system.charts import COLOURS, MARKERS, image_files
from stan_infer.system.packages import require

_LINEARS = ("qkv", "q", "out", "fc1", "fc2", "single")  # each has its colour and marker


def draw(errors: Mapping[str, float], kept: Collection[str], title: str) -> dict[str, bytes]:
    """Return {"svg": ..., "png": ...}. kept: linears that stay in fp32, drawn with a ring.

    errors: of each linear alone in 8 bits, in the order of the network. Raises MissingError without
    matplotlib.
    """
    require("matplotlib", "drawing plots", "report")
    from matplotlib.figure import Figure

    blocks = list(dict.fromkeys(_block(n) for n in errors))
    figure = Figure(figsize=(max(6.4, 0.32 * len(blocks)), 4.2), layout="constrained")
    axes = figure.add_subplot()
    for word, colour, marker in zip(_LINEARS, COLOURS, MARKERS, strict=False):
        names = [n for n in errors if n.rpartition("/")[2] == word]
        if names:
            x = [blocks.index(_block(n)) for n in names]
            axes.plot(x, [errors[n] for n in names], marker, color=colour, label=word)
    if rings := [n for n in errors if n in kept]:
        x = [blocks.index(_block(n)) for n in rings]
        y = [errors[n] for n in rings]
        axes.plot(x, y, "o", mfc="none", mec="black", ms=12, label="stays in fp32")
    axes.set_yscale("log")
    axes.set_xticks(range(len(blocks)), blocks, rotation=90, fontsize=8)
    axes.set_ylabel("relative error of the video's embedding")
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.3, linewidth=0.6)
    figure.legend(frameon=False, fontsize=9, ncols=6, loc="outside lower center")
    return image_files(figure, title)


def _block(name: str) -> str:
    """video/branch/layer2/temporal/qkv -> branch 2 temporal; in the trunk one block per layer."""
    parts = name.split("/")
    inner = ("mlp" if "mlp" in parts else parts[3]) if parts[1] == "branch" else ""
    return f"{parts[1]} {parts[2].removeprefix('layer')} {inner}".strip()
