"""Settings found in the text of a trainer's config, and remarks on a checkpoint for `inspect`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stan_infer.config import StanConfig

_END = 2**17  # characters at both ends of the text that are searched; real configs have 20,000
# The text may be a stranger's: repeats are possessive (*+), so that a search takes linear time.
_NUMBERS = {
    "depth": re.compile(r"\bdepth\s*+=\s*+(\d{1,3})\b"),
    "frames": re.compile(r"\bclip_len\s*+=\s*+(\d{1,4})\b"),
    "context_length": re.compile(r"\b(?:max_)?length\s*+=\s*+(\d{1,4})\b"),
    "short_side": re.compile(r"\bscale\s*+=\s*+\(\s*+-1\s*+,\s*+(\d{1,5})\s*+,?\s*+\)"),
}
_MEAN = re.compile(r"\breturn_mean\s*+=\s*+(True|False)\b")
_PATCH = re.compile(r"patch(\d{2})\b|ViT-[BL]/(\d{2})")


def trainer_hints(cfg: object) -> dict[str, Any]:
    """Search a trainer's config text by pattern; it is never executed. {} if it is not a text.

    Keys, each only if found: depth, head, frames, context_length, short_side, patch_sizes (patch
    sizes of the CLIP models that it names).
    """
    if not isinstance(cfg, str):
        return {}
    if len(cfg) > 2 * _END:
        # The model's part stands in front, the test pipeline at the end.
        cfg = f"{cfg[:_END]}\n{cfg[-_END:]}"
    hints: dict[str, Any] = {}
    for name, pattern in _NUMBERS.items():
        if found := pattern.findall(cfg):
            hints[name] = int(found[-1])  # the test pipeline stands behind the training one
    if mean := _MEAN.search(cfg):
        hints["head"] = "mean" if mean[1] == "True" else "mug"
    trunk = sorted(set(_PATCH.findall(cfg)))
    if trunk:
        hints["patch_sizes"] = sorted({int(a or b) for a, b in trunk})
    return hints


def layout_notes(config: StanConfig, cfg: object, ignored: Mapping[str, str]) -> list[str]:
    """Return remarks for `inspect`: contradictions between text and weights, parts not used."""
    hints, notes = trainer_hints(cfg), []
    named = hints.get("patch_sizes", [])
    if named and named != [config.patch]:
        sizes = " and ".join(f"/{p}" for p in named)
        notes.append(
            f"the trainer's config names CLIP {sizes} but the trunk has patch {config.patch}: the "
            "released configs put a B/32 trunk beside other text towers unless clip_weight was set "
            "(authors' issue #10 reports R@1 35.4 for such a model)"
        )
    if hints.get("depth", config.branch_layers) != config.branch_layers:
        notes.append(
            f"the trainer's config says depth {hints['depth']}, the weights {config.branch_layers}"
        )
    for name in ("head", "frames", "context_length", "short_side"):
        value, now = hints.get(name), getattr(config, name)
        if value is not None and value != now and not (name == "head" and config.is_mug):
            notes.append(f"the trainer's config hints at {name} {value}, in use is {now}")
    if any(k.endswith("timesFPN_cls_token") for k in ignored):
        notes.append(
            "timesFPN_cls_token is ignored, as STAN's first release does; BT-Adapter files share "
            "these names and do use it: make sure that this file is STAN's"
        )
    if not config.has_text:
        notes.append("there is no text tower: texts cannot be embedded or scored")
    return notes
