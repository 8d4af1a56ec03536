"""Recognise a checkpoint's layout by its key names and shapes; LAYOUTS is the table of layouts.

Nothing here reads a weight or imports torch. A CLIP that open_clip knows by name is not in the
table: `openclip` builds its config from open_clip's.
"""

from __future__ import annotations

from collections.abc import Callable

from stan_infer.checkpoints.authors import authors_layout
from stan_infer.checkpoints.layout import Hints, Recognised, Settings, Shapes, check_names, some
from stan_infer.checkpoints.own import own_layout
from stan_infer.config import parameter_shapes
from stan_infer.errors import InputError, see

Layout = Callable[[Shapes, Hints, Settings], Recognised | None]

LAYOUTS: tuple[Layout, ...] = (own_layout, authors_layout)


def recognise(
    shapes: Shapes, settings: Settings | None = None, hints: Hints | None = None
) -> Recognised:
    """Return the layout of a state dict and the config that follows from it.

    shapes: of every tensor by its key. settings: StanConfig fields that shapes do not determine.
    Raises InputError for a model that is not STAN, a variant whose computation is unknown, keys
    that are missing or left over, or shapes that contradict each other.
    """
    shapes = {k: tuple(s) for k, s in shapes.items()}
    for layout in LAYOUTS:
        if found := layout(shapes, hints or {}, settings or {}):
            check_names(shapes, found.origins, found.ignored, parameter_shapes(found.config))
            return found
    raise InputError(
        "not a STAN checkpoint of a layout that is known (the authors' has a key that ends with "
        f"'pre_layrnorm.weight', the trunk's first norm); it holds {len(shapes)} tensors such as "
        f"{some(shapes, 3)}{see('CHECKPOINTS')}"
    )
