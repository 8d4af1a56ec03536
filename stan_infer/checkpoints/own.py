"""Our own format: safetensors in our parameter names, with the config as metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stan_infer.checkpoints.layout import Hints, Origin, Recognised, Settings, Shapes
from stan_infer.config import StanConfig, parameter_shapes
from stan_infer.errors import InputError, storable
from stan_infer.system import earlier_result
from stan_infer.system.atomic import Sources, new_file
from stan_infer.system.json_file import parse_json

if TYPE_CHECKING:
    from torch import Tensor

# Our files have one metadata key: the library writes several in random order, and the same weights
# must give the same bytes.
METADATA_KEY = "stan_infer.config"

why_keep = earlier_result.safetensors(METADATA_KEY, "stan-infer convert")


def own_layout(shapes: Shapes, hints: Hints, settings: Settings) -> Recognised | None:
    """Recognise a file of `write`; weights_file gives our metadata as the hint "config"."""
    if "config" not in hints:
        return None
    config = read_config(str(hints["config"])).replace(settings)
    return Recognised("stan_infer", config, {n: Origin((n,)) for n in parameter_shapes(config)})


def read_config(text: str) -> StanConfig:
    """Read the config in a file's metadata; InputError for any other text."""
    values = parse_json(text, "the config in the file's metadata")
    if not isinstance(values, dict):
        raise InputError("the config in the file's metadata is not a JSON object")
    return StanConfig.from_dict(values)


def write(state: Mapping[str, Tensor], config: StanConfig, path: Path, sources: Sources) -> int:
    """Write weights by our names, and return the file's bytes. sources: see atomic.check_file."""
    from safetensors.torch import save, save_file

    metadata = {METADATA_KEY: json.dumps(config.to_dict(), sort_keys=True)}
    with new_file(path, why_keep, sources=sources) as temporary:
        try:
            tensors = {k: v.contiguous() for k, v in state.items()}
            if storable(temporary) == str(temporary):
                save_file(tensors, temporary, metadata=metadata)
            else:  # the library writes to names of UTF-8 only
                temporary.write_bytes(save(tensors, metadata))
        except Exception as e:
            # The library reports a full disk as its own SafetensorError, with the cause as text.
            raise OSError(f"{str(e)[:200]}") from e
        return temporary.stat().st_size
