"""Facts of the model that a manifest repeats for clients, and the check that they are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stan_infer.artefacts.config_note import is_complete
from stan_infer.artefacts.folder import MANIFEST, Artefact
from stan_infer.config import FIELDS, StanConfig
from stan_infer.errors import InputError
from stan_infer.text.tokenizer import text_rules
from stan_infer.video.clip import RULES, check_rules


def preprocess_entry(config: StanConfig, input: str) -> dict[str, Any]:
    """The manifest's entry from which a client prepares clips: resize, crop, sampling, layout.

    input: of the video graph, "uint8", or "float" or "float32" for normalised floats.
    """
    return {
        "input_dtype": "uint8" if input == "uint8" else "float32",
        "layout": "BTHWC" if input == "uint8" else "BTCHW",
        "color": "RGB",
        "resize": {"short_side": config.short_side, **RULES["resize"]},
        "crop": RULES["crop"],
        "mean": list(config.mean),
        "std": list(config.std),
        "folded_in_graph": input == "uint8",
        "sampling": {"frames": config.frames, **RULES["sampling"]},
    }


def check_repeated(artefact: Artefact) -> None:
    """Raise InputError where "preprocess" or "text" contradicts the model or this version's rules.

    A folder of schema 1.0 may leave facts out: early exports said less.
    """
    manifest, config = artefact.manifest, artefact.config
    complete = is_complete(manifest)
    if complete and (lacking := sorted(FIELDS.keys() - manifest["model"].keys())):
        raise InputError(
            f"{artefact.path}: {MANIFEST}: model.{lacking[0]} is missing: export the model again"
        )
    video = artefact.graph("video")
    if video is not None:
        wanted = preprocess_entry(config, video.inputs[0]["dtype"])
        _check(artefact, "preprocess", wanted, complete)
    if artefact.graph("text") is not None:
        _check(artefact, "text", text_rules(config.context_length), complete)


def _check(artefact: Artefact, key: str, wanted: Mapping[str, Any], complete: bool) -> None:
    said: Any = artefact.manifest.get(key) or {}
    check_rules(said, f"{artefact.path}: {MANIFEST}: {key}", wanted, complete=complete)
