"""What a layout returns, and the functions that layouts share. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from stan_infer.config import (
    Shape,
    StanConfig,
    check_setting_names,
    default_heads,
)
from stan_infer.errors import InputError

Shapes = Mapping[str, Shape]  # key of the file -> shape
Hints = Mapping[str, object]  # what the file says of itself: `hints` of weights_file.Reader
Settings = Mapping[str, Any]  # fields of the config that shapes do not determine


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where one of our parameters comes from: file keys, and what is done with them.

    how: "copy"; "rows" (concatenate along axis 0: q, k, v); "transpose"; "squeeze" (drop axis 2).
    """

    keys: tuple[str, ...]
    how: str = "copy"

    def shape(self, shapes: Shapes) -> Shape | None:
        """Return the shape after `how`, or None where the parts do not fit together."""
        parts = [shapes[k] for k in self.keys]
        first = parts[0]
        if self.how == "rows":
            same = all(p and p[1:] == first[1:] for p in parts)
            return (sum(p[0] for p in parts), *first[1:]) if same else None
        if self.how == "transpose":
            return first[::-1]
        if self.how == "squeeze":
            fits = len(first) == 5 and first[2] == 1
            return first[:2] + first[3:] if fits else None
        return first


@dataclasses.dataclass(frozen=True)
class Recognised:
    """The layout of a file, and what follows from it."""

    name: str  # of the layout
    config: StanConfig
    origins: dict[str, Origin]  # our parameter name -> where it comes from
    ignored: dict[str, str] = dataclasses.field(default_factory=dict)  # file key -> why
    notes: tuple[str, ...] = ()  # remarks for `inspect`


V = TypeVar("V")
_NAME = re.compile(r"(?:(.+)\.(\d+)\.)?(.+?)(?:[._](weight|bias))?")


def map_keys(
    parameters: Iterable[str],
    once: Mapping[str, str],
    layers: Mapping[str, str],
    in_a_layer: Mapping[str, str],
    places: Mapping[str, str],
) -> dict[str, Origin]:
    """Return where each of our parameters stands, by a key map such as that of authors.py.

    All three tables go from our names to theirs. once: names outside of layers. layers: the part of
    a name before a layer's number. in_a_layer: the part behind it. An ending ".weight" or ".bias"
    that both names share is left out. places: a value for each {word} in their names; {qkv} stands
    for the keys of q, k and v, which are concatenated. A weight whose key ends with ".T" here is
    transposed.
    """
    found = {}
    for name in parameters:
        match = _NAME.fullmatch(name)
        assert match is not None
        above, number, part, kind = match.groups()
        theirs = f"{layers[above]}.{number}.{in_a_layer[part]}" if number else once[part]
        key, is_transposed = theirs.removesuffix(".T"), theirs.endswith(".T")
        ending = f".{kind}" if kind else ""
        keys = [key.replace("{qkv}", p) for p in "qkv"] if "{qkv}" in key else [key]
        how = "transpose" if is_transposed else "rows" if len(keys) > 1 else "copy"
        found[name] = Origin(tuple(k.format(**places) + ending for k in keys), how)
    return found


def keys_of(patterns: Mapping[str, V], places: Mapping[str, str]) -> dict[str, V]:
    """Turn a table's patterns into keys of the file, with the parts in braces from `places`.

    A pattern with a part that the file does not have, as {text} without a text tower, is left out.
    """
    return {
        pattern.format(**places): value
        for pattern, value in patterns.items()
        if all(part in places for part in re.findall(r"{(\w+)}", pattern))
    }


# What trainers and libraries store beside the weights of any CLIP, by the last word of its key.
_UNUSED = {
    "position_ids": "0, 1, 2, ...; saved by old transformers",
    "logit_scale": "the loss's scale; no score uses it",
    "logit_bias": "the loss's bias; no score uses it",
    "attn_mask": "which tokens see which: computed here",
}


def unused(shapes: Shapes) -> dict[str, str]:
    """Return the keys that no STAN and no CLIP needs, wherever they lie, each with the reason."""
    words = ((key, key.rpartition(".")[2]) for key in shapes)
    return {key: _UNUSED[word] for key, word in words if word in _UNUSED}


def sizes(shapes: Shapes, axes: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Read sizes off shapes; axes: key -> the name of each axis, "" where none is needed."""
    found: dict[str, int] = {}
    for key, names in axes.items():
        if key not in shapes:
            raise InputError(f"weight {key} is missing; use the complete checkpoint")
        if len(shapes[key]) != len(names):
            raise InputError(
                f"{key} has shape {list(shapes[key])}; it needs {len(names)} dimensions"
            )
        found |= {n: size for n, size in zip(names, shapes[key], strict=True) if n}
    return found


def count_layers(shapes: Shapes, prefix: str) -> int:
    """Count the layers PREFIX.0.*, PREFIX.1.*, ...; InputError where one in between is missing."""
    found = {int(m[1]) for k in shapes if (m := re.match(re.escape(prefix) + r"\.(\d{1,4})\.", k))}
    if found and found != set(range(len(found))):
        gap = min(set(range(max(found) + 1)) - found)
        raise InputError(f"layer {prefix}.{gap} is missing, though {prefix}.{max(found)} is there")
    return len(found)


def only_prefix(shapes: Shapes, ending: str) -> str | None:
    """Return what stands before `ending` in the one key that ends with it, None without such a key.

    Raises InputError where several keys do.
    """
    found = [k[: -len(ending)] for k in shapes if k.endswith(ending)]
    found = [p for p in found if not p or p.endswith(".")]
    if len(found) > 1:
        raise InputError(f"more than one model in the file: prefixes {some(found, 4)}")
    return found[0] if found else None


def with_settings(values: dict[str, Any], settings: Settings) -> StanConfig:
    """Make a config of the values read off the shapes and the settings; heads: width / 64.

    Raises InputError for an unknown setting or values that contradict each other.
    """
    check_setting_names(settings)
    values = dict(values)
    for name, width in (("heads", "width"), ("text_heads", "text_width")):
        # A setting given by the caller replaces this below, with its own checks.
        if values.get(width):
            values[name] = 1 if name in settings else default_heads(values[width], name)
    values.setdefault("short_side", values["image_size"])
    values.setdefault("frames", min(12, values["max_frames"]))
    if values.get("context_positions"):
        values.setdefault("context_length", min(32, values["context_positions"]))
    return StanConfig.from_dict(values).replace(settings)


def check_names(
    shapes: Shapes,
    origins: Mapping[str, Origin],
    ignored: Iterable[str],
    wanted: Shapes,
) -> None:
    """Raise InputError, with names, for keys that are missing, left over or of the wrong shape."""
    needed = {k for o in origins.values() for k in o.keys}
    missing = sorted(needed - set(shapes))
    if missing:
        raise InputError(
            f"{len(missing)} weights are missing: {some(missing, 5)}; a model with random weights "
            "in their place is never loaded: use the complete checkpoint"
        )
    extra = sorted(set(shapes) - needed - set(ignored))
    if extra:
        raise InputError(
            f"{len(extra)} unexpected weights: {some(extra, 5)}; this is another model or an "
            "unknown variant, and computing without them would give wrong results"
        )
    for name, origin in origins.items():
        got = origin.shape(shapes)
        if got != wanted[name]:
            parts = ", ".join(f"{k} {list(shapes[k])}" for k in origin.keys)
            raise InputError(
                f"shape contradicts the rest: {parts} should give {list(wanted[name])} ({name})"
            )


def some(names: Iterable[str], count: int) -> str:
    """Join the first `count` names, each cut to 120 characters, and say how many more there are."""
    names = list(names)
    more = f", and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(n[:120] for n in names[:count]) + more
