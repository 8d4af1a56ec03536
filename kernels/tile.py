"""What a kernel is compiled for: its tile."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a program's tile; warps and pipeline stages to compile with.

    maxnreg: registers per thread at most, 0 as many as the compiler likes. split_k: programs that
    share a tile's sum over K. persistent: a program per processor on tensor descriptors (sm_90 and
    newer). The last two are forms of `linear`.
    """

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    maxnreg: int = 0
    split_k: int = 1
    persistent: bool = False
