"""python -m benchmarks.gpu.packed: draw what a tile of temporal attention computes.

Draws benchmarks/packed.svg to scale, without a background: it is legible on white and on black.
`ways` counts, for BENCHMARKS.md, the bytes that one temporal layer moves and the share of scores
that it uses. Nothing here is timed.
"""

from __future__ import annotations

from typing import Any

from benchmarks.record import ROOT
from stan_infer.system import charts

PICTURE = ROOT / "benchmarks" / "packed.svg"
FLASH_TILE, OUR_TILE = 128, 64  # rows of a tile of scores: FlashAttention-2's at dh = 64, and ours
INK = "#768390"
COLOURS = {"useful": charts.COLOURS[0], "wasted": f"{INK}40", "edge": INK}


def ways(batch: int, frames: int, patches: int, width: int) -> list[dict[str, Any]]:
    """MB moved and share of scores used by a layer in bf16, from norm to attention's output."""
    rows, d = batch * frames * patches, width
    weights = 3 * d * d

    def mb(per_row: int) -> float:
        return 2 * (per_row * rows * d + weights) / 1e6

    alone = (frames / FLASH_TILE) ** 2
    packed = OUR_TILE // frames * frames**2 / OUR_TILE**2
    return [
        # norm 2, linear 1 + 3, copies of q, k, v 6, attention 4, copy of its output 2
        {"way": "torch: norm, linear, copies, SDPA", "mb": mb(18), "useful": alone},
        {"way": "norm, linear, packed attention", "mb": mb(10), "useful": packed},
        # x in, attention's output out
        {"way": "one kernel", "mb": mb(2), "useful": packed},
    ]


def draw(frames: int = 12) -> None:
    """Draw one sequence in a tile of 128 rows, and as many as fit in a tile of 64."""
    import matplotlib

    matplotlib.use("svg")
    # The same file every time.
    matplotlib.rcParams.update({"svg.hashsalt": "packed", "text.color": INK})
    from matplotlib import pyplot
    from matplotlib.patches import Rectangle

    figure, axes = pyplot.subplots(figsize=(5.6, 3.8))
    groups = OUR_TILE // frames
    for x, size, count, title in (
        (0, FLASH_TILE, 1, f"a tile of {FLASH_TILE} rows,\none sequence"),
        (160, OUR_TILE, groups, f"a tile of {OUR_TILE} rows,\n{groups} sequences"),
    ):
        share = count * frames**2 / size**2
        axes.add_patch(
            Rectangle((x, 0), size, size, facecolor=COLOURS["wasted"], edgecolor=COLOURS["edge"])
        )
        for i in range(count):
            corner = (x + i * frames, size - (i + 1) * frames)
            axes.add_patch(Rectangle(corner, frames, frames, facecolor=COLOURS["useful"]))
        axes.text(x, size + 5, title, fontsize=12, va="bottom")
        axes.text(x, -5, f"{100 * share:.1f} % of the\nscores are used", fontsize=12, va="top")
    axes.text(160, 138, f"T = {frames} frames,\nhead width 64,\nto scale", fontsize=12)
    axes.set(xlim=(-4, 250), ylim=(-32, 164), aspect="equal")
    axes.axis("off")
    figure.savefig(PICTURE, metadata={"Date": None}, bbox_inches="tight", transparent=True)
    pyplot.close(figure)


if __name__ == "__main__":
    draw()
