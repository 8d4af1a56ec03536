"""calibration.json as types; see calibration_file.

Checked once, when it is read; whoever uses a record later relies on these types.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from stan_infer.artefacts.manifest import Digest, Word

SCALE = (1e-30, 1e30)  # smallest, largest: a float32 holds both, and their products with 448


class Tensor(TypedDict):
    """The input of one linear; 0 is the scale of one that reads nothing but zeros."""

    scale: Annotated[float, Meta(ge=0, le=SCALE[1])]


class Key(TypedDict):
    """What the ranges depend on."""

    checkpoint_sha256: NotRequired[Digest | None]
    preprocessing_sha256: NotRequired[Digest | None]


class Record(TypedDict):
    """calibration.json."""

    schema: Word
    precision: Word
    tensors: Annotated[dict[Word, Tensor], Meta(max_length=10_000)]
    kept: Annotated[list[Word], Meta(max_length=10_000)]
    key: Key
    preprocessing: NotRequired[dict[str, Any] | None]
