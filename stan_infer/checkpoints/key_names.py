"""Keys of a state dict as the bare model has them: without the names that wrappers put in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from stan_infer.errors import InputError

# torch.compile, FSDP (new and old), activation checkpointing: anywhere in a key.
_WRAPPERS = re.compile(
    r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_fpw_module|_checkpoint_wrapped_module)\."
)
# DDP, and torch's AveragedModel: in front of all keys, perhaps one within the other.
_OUTER = "module."


def without_wrappers(keys: Iterable[str]) -> dict[str, str]:
    """Return key -> the key without the names of wrappers, "module." if all begin with it."""
    names = {key: _WRAPPERS.sub("", key) for key in keys}
    while names and all(name.startswith(_OUTER) for name in names.values()):
        names = {key: name[len(_OUTER) :] for key, name in names.items()}
    return names


def inverted(names: Mapping[str, str]) -> dict[str, str]:
    """Return name -> key of a dict of key -> name; InputError where two keys have one name."""
    keys = {name: key for key, name in names.items()}
    if len(keys) < len(names):
        twice = next(name for key, name in names.items() if keys[name] != key)
        raise InputError(f"two weights are called {twice} without the names of wrappers")
    return keys
