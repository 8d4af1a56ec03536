"""The types of calibration.json; see calibration_file, which checks a file against them.

They are a module of their own because msgspec, which they need, is slow to import.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from stan_infer.artefacts.manifest import Digest, Word

SCALE = (1e-30, 1e30)  # smallest, largest: a float32 holds both, and their products with 448


class Tensor(TypedDict):
    """The input of one linear. Scale 0: on the calibration clips the input was always zero."""

    scale: Annotated[float, Meta(ge=0, le=SCALE[1])]


class Key(TypedDict):
    """Hashes of what the scales were measured with; weights: the set that was chosen by name."""

    checkpoint_sha256: NotRequired[Digest | None]
    preprocessing_sha256: NotRequired[Digest | None]
    weights: NotRequired[Word | None]


class Record(TypedDict):
    """calibration.json."""

    schema: Word
    precision: Word
    tensors: Annotated[dict[Word, Tensor], Meta(max_length=10_000)]
    kept: Annotated[list[Word], Meta(max_length=10_000)]
    key: Key
    preprocessing: NotRequired[dict[str, Any] | None]


# A part of the file with what a calibration tells beyond Record: figures that no scale depends on,
# so that readers check them where they use them.
Told = Mapping[str, Any]
