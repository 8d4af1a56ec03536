"""How videos are read, as facts that are stored beside their vectors."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

from stan_infer.system.json_file import plain
from stan_infer.video.clip import RULES, reader_of
from stan_infer.video.spec import PIXELS, ClipSpec


def reading_facts(spec: ClipSpec) -> dict[str, Any]:
    """The spec, the decoder with its package's version, the rules, as JSON types.

    The names are those of a library's passport.
    """
    decoder = reader_of(spec)
    facts = {
        **dataclasses.asdict(spec),
        "decoder": f"{decoder} {_version('av' if decoder == 'pyav' else 'decord')}",
        "numpy": _version("numpy"),
        "pixels": PIXELS,
        "rules": RULES,
    }
    return {name: plain(value) for name, value in facts.items()}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
