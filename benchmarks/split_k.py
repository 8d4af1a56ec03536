"""python -m benchmarks.split_k: would splitting the sum over K pay for few rows? Arithmetic.

Few rows fill few processors, and each walks the whole of K. Split, `split` programs share a tile:
each writes its sums to memory, and the last of a tile to come, which a counter tells, adds them in
a fixed order. So nothing is added atomically and no kernel is launched beside. Times are those of
`kernels/rule.py`, by which the library splits K itself. Nothing here was measured.
"""

from __future__ import annotations

from typing import Any

from benchmarks.tables.markdown import markdown
from stan_infer.kernels import rule, tuned
from stan_infer.kernels.tile import Tile

SPLITS = (1, 2, 4, 8, 16)
FAMILIES = ("sm80", "sm89", "sm90", "sm100")
D = 768
# The last branch layer's products have the class tokens of B clips as rows; B/32 has 600 per clip.
ROWS = (1, 8, 64, 600)
PRODUCTS = {
    "q: norm": (D, D, rule.Epilogue(norm=True, sums=True)),
    "out: residual": (D, D, rule.Epilogue(residual=True)),
    "fc1: norm, silu": (4 * D, D, rule.Epilogue(norm=True, sums=True, activation=True)),
    "fc2": (D, 4 * D, rule.Epilogue()),  # the head adds up its rows itself
}


def split_us(family: str, tile: Tile, rows: int, n: int, k: int, split: int) -> float:
    """Time of our product whose tiles are shared by `split` programs, at least."""
    g, depth = rule.gpu(family), -(-k // split)
    us = rule.product_us(family, tile, g.processors, rows, split * n, depth)
    weights = n * k * 2 / (0.9 * g.memory * 1e6)
    if split == 1:
        return max(us, weights)
    # Sums go to L2 and back, a load of L2 late; the counter is one more trip.
    moved = 2 * split * tile.bm * tile.bn * 4 / rule.L2
    return max(us, weights) + (moved + 2 * rule.LOAD) / (g.ghz * 1000)


def rows() -> list[dict[str, Any]]:
    """Per GPU, rows and product: the library's time, ours, and ours with the best split."""
    found = []
    for family in FAMILIES:
        tiles = [t for t in tuned.tiles("linear", family) if t.bm <= 64 and not t.persistent]
        for count in ROWS:
            for name, (n, k, e) in PRODUCTS.items():
                library = rule.library_us(family, count, n, k)
                us = {s: min(split_us(family, t, count, n, k, s) for t in tiles) for s in SPLITS}
                best = min(us, key=lambda s: us[s])
                found.append({
                    "family": family, "rows": count, "product": name, "ours_us": us[1],
                    "split": best, "split_us": us[best],
                    "library_us": library + rule.beside_us(family, count, n, k, e),
                })  # fmt: skip
    return found


def saved_us(family: str, count: int) -> float:
    """What splitting would save in one layer, where each product runs in the faster form now."""
    own = [r for r in rows() if (r["family"], r["rows"]) == (family, count)]
    now = sum(min(r["library_us"], r["ours_us"]) for r in own)
    return now - sum(min(r["library_us"], r["ours_us"], r["split_us"]) for r in own)


def table(*, all: bool = False) -> str:
    """The rows as a table: of fc2, whose sum is the longest, or of all products."""
    lines = [
        f"{r['family']} | {r['rows']} | {r['product']} | {r['library_us']:.1f} us | "
        f"{r['ours_us']:.1f} us | {r['split_us']:.1f} us ({r['split']})"
        for r in rows()
        if all or r["product"] == "fc2"
    ]
    head = "width 768, bf16, arithmetic | rows | product | library | ours | ours, split (by)"
    return markdown(head, lines)


if __name__ == "__main__":
    print(table(all=True))
    for sm in FAMILIES:
        saved = ", ".join(f"{count} rows {saved_us(sm, count):.1f} us" for count in ROWS)
        print(f"{sm}: splitting would save, in one layer: {saved}")
