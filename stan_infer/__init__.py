"""stan_infer: run trained STAN and Mug-STAN video-text checkpoints anywhere.

The public names are imported when they are first used, so that importing the package imports
neither torch nor a decoder.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stan_infer.system import privacy

__version__ = "0.1.0"

privacy.switch_off_telemetry()

if TYPE_CHECKING:
    from stan_infer.checkpoints.load import convert, load_model, save_model
    from stan_infer.config import StanConfig
    from stan_infer.engines.open import open_session
    from stan_infer.errors import CheckError, InputError, MissingError, StanError
    from stan_infer.export.export_model import export_model
    from stan_infer.text.tokenizer import tokenize
    from stan_infer.video.clip import read_clip, sample_indices

_HOME = {
    "convert": "checkpoints.load",
    "load_model": "checkpoints.load",
    "save_model": "checkpoints.load",
    "StanConfig": "config",
    "open_session": "engines.open",
    "CheckError": "errors",
    "InputError": "errors",
    "MissingError": "errors",
    "StanError": "errors",
    "export_model": "export.export_model",
    "tokenize": "text.tokenizer",
    "read_clip": "video.clip",
    "sample_indices": "video.clip",
}

__all__ = [
    "CheckError",
    "InputError",
    "MissingError",
    "StanConfig",
    "StanError",
    "convert",
    "export_model",
    "load_model",
    "open_session",
    "read_clip",
    "sample_indices",
    "save_model",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'stan_infer' has no attribute '{name}'")
    return getattr(importlib.import_module(f"stan_infer.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
