"""Public checkpoints of STAN and Mug-STAN: only what a public page shows, with that page."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Public:
    """One file that anybody can fetch."""

    name: str  # as a command takes it, at the commit that the page shows
    what: str
    figure: str  # of the paper for exactly this file, or why there is none
    source: str  # the page


PUBLIC = (
    Public(
        "hf:farewellthree/Mug_STAN_Weight@80219bb47974a023a14d38d0fffd319294b4acf4/Mug-StanL14.bin",
        "Mug-STAN with an L/14 trunk, published by the authors on 2024-01-28",
        "none: its page has no model card, so no figure can be tied to it",
        "https://huggingface.co/farewellthree/Mug_STAN_Weight/commits/main",
    ),
)
