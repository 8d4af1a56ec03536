"""The branch of STAN as training starts it (paper section 3.2), for a CLIP that has none.

Spatial and temporal layers are copies of the last K trunk layers and the temporal output layer is
zero; the time table is zero. So the result is CLIP with a branch that does not yet see time: a
start for training, a baseline, and a check of the towers. Nothing in it is random.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stan_infer.config import StanConfig, parameter_shapes

if TYPE_CHECKING:
    from torch import Tensor

UNTRAINED = "the branch is untrained: copies of the last trunk layers, zero temporal output"
LAYERS = "visual.transformer.resblocks"


def untrained_branch(config: StanConfig, trunk: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the branch by our names; trunk: CLIP's weights by our names."""
    import torch

    state: dict[str, Tensor] = {}
    first = config.layers - config.branch_layers
    for name, shape in parameter_shapes(config).items():
        if not name.startswith("branch."):
            continue
        _, kind, *rest = name.split(".")
        if kind == "time_embedding" or rest[1] in ("fc", "conv"):
            state[name] = torch.zeros(shape, dtype=trunk[f"{LAYERS}.{first}.ln_1.weight"].dtype)
            continue
        layer = f"{LAYERS}.{first + int(rest[0])}"
        part = ".".join(rest[1:])
        part = part.replace("ln.", "ln_1.") if kind == "temporal" else part
        state[name] = trunk[f"{layer}.{part}"].clone()
    return state
