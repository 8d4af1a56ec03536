"""The passport of a library: which model and which way of reading made its vectors, and a proof.

Facts say what is known: hashes, versions, sizes. The proof is what this stack makes of a few canary
clips, small videos of moving shapes that come with the package: the hash of the pixels that were
read, and the vector. Whoever opens the library with a session embeds them again. A fact that
changed is named; the vectors decide:

    cosine of each canary >= MIXED      rows may be added
    cosine of each canary >= SEARCHED   the library may be searched with it; a warning says so
    below                               refused
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import numpy as np
from numpy.typing import NDArray

import stan_infer
from stan_infer.engines.opened import path_of
from stan_infer.engines.session import Session
from stan_infer.errors import CheckError, InputError, storable
from stan_infer.library.database import MAX_WIDTH, PASSPORT, check_own
from stan_infer.library.levels import Level, normalised
from stan_infer.library.model_files import chosen_weights
from stan_infer.library.reading import reading_facts
from stan_infer.library.sliding import embedder
from stan_infer.system.json_file import checked, plain, read_object
from stan_infer.system.result import Result
from stan_infer.video.clip import Clip
from stan_infer.video.decode_pool import read_clips
from stan_infer.video.spec import ClipSpec
from stan_infer.video.windows import Windows

# An angle of 0.8 degrees: rounding in another engine stays above it, other preprocessing does not.
MIXED = 0.9999
# 8 degrees. calibrate asks of 8 bits 0.995 by default; near rows change ranks among themselves.
SEARCHED = 0.99
NEIGHBOURS = 10
CANARIES = Path(__file__).parent / "canaries"
_MAX_BYTES = 16 * 2**20
PASSPORT_SCHEMA = "stan-infer/library/3"
_OLD = "stan-infer/library/2"  # whose vectors.i8, if there is one, may be of other vectors
# What a run may change without changing a vector.
_FREE = {"threads", "cuda_graphs"}
_NAME = "checkpoint"  # the fact that is shown and not compared: files are told by their hashes

_Hash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Canary(TypedDict):
    """One canary clip: its file, the pixels that were read of it, its vector of length 1."""

    file: str
    sha256: _Hash
    pixels: _Hash
    vector: list[float]


class Passport(TypedDict):
    """What library.json holds. width: numbers in a vector. batch: videos per call of the network,
    on which the last bits of a vector may depend.
    """

    schema: str
    width: Annotated[int, msgspec.Meta(ge=1, le=MAX_WIDTH)]
    batch: Annotated[int, msgspec.Meta(ge=1, le=64)]
    windows: dict[str, Any] | None
    facts: dict[str, Any]
    canaries: Annotated[list[Canary], msgspec.Meta(min_length=1, max_length=64)]


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison(Result):
    """A library's passport against a session that is open now.

    Attributes:
        changed: names of facts that differ -> [in the library, now].
        pixels: canary clips that are read to other pixels now.
        cosine: the smallest between a canary's stored vector and the one made now.
        neighbours: of the 10 rows nearest to a canary, the share that stays; None in a library
            without rows. It says how ranks change.
    """

    changed: dict[str, list[Any]]
    pixels: tuple[str, ...]
    cosine: float
    neighbours: float | None = None

    @property
    def same(self) -> bool:
        """Whether nothing at all was noticed."""
        return not self.changed and not self.pixels and self.cosine >= 1 - 1e-6

    def summary(self) -> str:
        """What differs, and how far the vectors are apart."""
        ranks = "" if self.neighbours is None else f", {self.neighbours:.0%} of near rows stay"
        what = self.differences()
        return f"smallest cosine of the canary clips {self.cosine:.6f}{ranks} ({what})"

    def differences(self) -> str:
        """The facts that differ, the first of them where they are many."""
        shown = list(self.changed.items())[:6]
        parts = [f"{k} {_short(a)} -> {_short(b)}" for k, (a, b) in shown]
        more = len(self.changed) - len(shown)
        parts += [f"and {more} more"] if more else []
        parts += [f"other pixels of {len(self.pixels)} canary clips"] if self.pixels else []
        return "; ".join(parts) or "nothing that is known has changed"

    def check(self, bound: float, folder: Path, purpose: str) -> None:
        """Raise CheckError where a canary's cosine is below `bound`."""
        if not self.cosine >= bound:
            raise CheckError(
                f"library {folder} was made by another stack: {self}; {purpose} needs at least "
                f"{bound}: open what made it, or embed into a new library"
            )


def facts_of(session: Session, source: Mapping[str, Any], spec: ClipSpec) -> dict[str, Any]:
    """What is known of a stack, as JSON types with one level: "engine.precision" and so on.

    source: what model_files.model_source says of the session's files without settings. What does
    not change a vector is left out.
    """
    groups: dict[str, Mapping[str, Any]] = {
        "weights": {
            **{key: source[key] for key in ("model", "checkpoint_sha256")},
            **chosen_weights(session.options),
        },
        "config": session.config.to_dict(),
        "engine": {k: v for k, v in session.describe().items() if k not in _FREE},
        "reading": reading_facts(spec),
    }
    flat = {f"{g}.{k}": plain(v) for g, values in groups.items() for k, v in values.items()}
    flat[_NAME] = storable(Path(path_of(session) or "").name)
    flat["stan_infer"] = stan_infer.__version__
    return flat


def changed_facts(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Names of facts that differ -> [old, new]; the name of a file tells nothing of its content."""
    keys = sorted({*old, *new} - {_NAME})
    return {k: [old.get(k), new.get(k)] for k in keys if old.get(k) != new.get(k)}


def seen_canaries(
    session: Session, spec: ClipSpec, timeout_s: float, windows: Windows | None = None
) -> list[Canary]:
    """Read and embed the canary clips with a session, as rows of such windows are embedded.

    One at a time, so that their bits depend on nothing else. Raises CheckError where one cannot be
    read: it is the decoder that is wrong then.
    """
    found: list[Canary] = []
    embed = embedder(session, spec, windows)
    with Level(session, "video") as level:
        for path, clip in read_canaries(spec, timeout_s):
            vector = _canary_vector(level.of_video(embed(clip.pixels)), path.name)
            file, pixels = hashlib.sha256(path.read_bytes()).hexdigest(), pixels_hash(clip)
            found.append(Canary(file=path.name, sha256=file, pixels=pixels, vector=vector))
    return found


def read_canaries(spec: ClipSpec, timeout_s: float) -> Iterator[tuple[Path, Clip]]:
    """Read the canary clips. Raises the error of one that cannot be read."""
    paths = sorted(CANARIES.glob("*.mp4"))
    for path, clip in read_clips(paths, spec, workers=1, timeout_s=timeout_s):
        if not isinstance(clip, Clip):
            raise type(clip)(f"canary clip: {clip}")
        yield path, clip


def pixels_hash(clip: Clip) -> str:
    """SHA-256 of a clip's pixels, in hexadecimal."""
    return hashlib.sha256(clip.pixels.data).hexdigest()


def _canary_vector(features: NDArray[Any], name: str) -> list[float]:
    """The vector of one clip, of length 1."""
    if not np.isfinite(features).all():
        raise CheckError(f"the model gives values that are not finite for canary clip {name}")
    return [float(x) for x in normalised(features, name)]


def new_passport(
    facts: dict[str, Any], canaries: list[Canary], batch: int, windows: Windows | None
) -> Passport:
    """The passport of a new library."""
    return Passport(
        schema=PASSPORT_SCHEMA,
        width=len(canaries[0]["vector"]),
        batch=batch,
        windows=None if windows is None else dataclasses.asdict(windows),
        facts=facts,
        canaries=canaries,
    )


def read_passport(folder: Path) -> Passport:
    """Read and check the passport of a library; InputError where it is none."""
    path = folder / PASSPORT
    check_own(path, False)
    found = read_object(path, _MAX_BYTES, "; this is not the passport of a library")
    if found.get("schema") not in (PASSPORT_SCHEMA, _OLD):
        raise InputError(
            f"{path} is of schema {_short(found.get('schema'))}; this version reads "
            f"{PASSPORT_SCHEMA}: embed the videos into a new library "
            "(stan-infer embed MODEL VIDEOS -o NEW)"
        )
    passport = checked(found, Passport, str(path))
    for canary in passport["canaries"]:
        vector = canary["vector"]
        if len(vector) != passport["width"] or not abs(math.hypot(*vector) - 1) < 1e-3:
            raise InputError(
                f"{path}: the vector of canary {_short(canary['file'])} has not length 1 and "
                f"{passport['width']} numbers: it was changed"
            )
    return passport


def windows_of(passport: Passport) -> Windows | None:
    """The windows of a library's rows; InputError where the passport says what is none."""
    try:
        return None if passport["windows"] is None else Windows(**passport["windows"])
    except TypeError as e:
        raise InputError(f"{PASSPORT} does not say which windows its rows have: {e}") from e


def compare(
    passport: Passport,
    facts: Mapping[str, Any],
    canaries: Sequence[Canary],
    vectors: NDArray[np.float32],
) -> Comparison:
    """What differs between a library and what was seen now.

    vectors: the library's [R, E], or some of them, for the neighbours. Raises CheckError where the
    width or the canary clips are others, so that nothing can be compared.
    """
    old = {c["file"]: c for c in passport["canaries"]}
    new = {c["file"]: c for c in canaries}
    if {k: c["sha256"] for k, c in old.items()} != {k: c["sha256"] for k, c in new.items()}:
        raise CheckError("the library's canary clips are not those of this version of stan_infer")
    widths = passport["width"], len(canaries[0]["vector"])
    if widths[0] != widths[1]:
        raise CheckError(f"the library's vectors have {widths[0]} numbers, the model's {widths[1]}")
    a, b = (np.array([side[k]["vector"] for k in sorted(old)]) for side in (old, new))
    return Comparison(
        changed=changed_facts(passport["facts"], facts),
        pixels=tuple(k for k in sorted(old) if old[k]["pixels"] != new[k]["pixels"]),
        cosine=float((a * b).sum(1).min()),
        neighbours=_neighbours(a, b, vectors),
    )


def _neighbours(a: NDArray[Any], b: NDArray[Any], vectors: NDArray[np.float32]) -> float | None:
    count = min(NEIGHBOURS, len(vectors))
    if not count:
        return None
    with np.errstate(all="ignore"):  # vectors that were changed may hold anything; NaN comes last
        near = [np.argsort(-(vectors @ x.T.astype(np.float32)), axis=0)[:count].T for x in (a, b)]
    kept = [len(set(p.tolist()) & set(q.tolist())) for p, q in zip(*near, strict=True)]
    return sum(kept) / (count * len(kept))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
