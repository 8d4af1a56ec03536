"""What each graph's metadata notes of the config that it was exported with: its hash."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from typing import Any

from stan_infer.config import StanConfig

CONFIG_KEY = "stan_infer.config_sha256"  # in the metadata


def config_sha256(model: Mapping[str, Any]) -> str:
    """SHA-256 of a config as JSON types, such as a manifest's "model", in hexadecimal.

    Each graph has it in its metadata, so that a config that was edited in the manifest is noticed.
    Hashed is a line "key=value" for each key, sorted. A number is its IEEE 754 double, most
    significant byte first, in hexadecimal: so no language has to spell a number as another does.
    Values of a list are joined by commas. The C++ client does the same.
    """
    lines = (f"{key}={_canonical(value)}\n" for key, value in sorted(model.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _canonical(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return ",".join(map(_canonical, value))
    return struct.pack(">d", value).hex()


def is_of_config(noted: str | None, manifest: Mapping[str, Any]) -> bool:
    """Whether `noted`, a graph's entry for CONFIG_KEY, is of the manifest's config."""
    model = manifest["model"]
    if noted == config_sha256(model):
        return True
    if not is_complete(manifest):
        text = json.dumps(StanConfig.from_dict(model).to_dict(), sort_keys=True)
        return noted in (None, hashlib.sha256(text.encode()).hexdigest())
    return False


def is_complete(manifest: Mapping[str, Any]) -> bool:
    """Whether a manifest is of schema 1.1 or later, see SCHEMA."""
    return str(manifest.get("schema")).partition(".")[2] not in ("", "0")
