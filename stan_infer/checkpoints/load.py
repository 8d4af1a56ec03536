"""Load a trained model, from whichever file, into a Stan; write our own format.

A source is the authors' file (.pth, .pt, .bin), a safetensors file in their names or ours, or an
open_clip name with a tag (a branch on CLIP). Files are strangers': nothing in them is executed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.checkpoints.layouts import Layout, Origin, check_names, recognise
from stan_infer.checkpoints.openclip import clip_layout, is_clip_name, load_clip
from stan_infer.checkpoints.trainer_hints import trainer_hints
from stan_infer.checkpoints.weights_file import METADATA_KEY, Reader, open_weights, read_weight
from stan_infer.config import StanConfig, parameter_shapes
from stan_infer.errors import InputError, MissingError, nearest, storable
from stan_infer.system import earlier_result
from stan_infer.system.atomic import Sources, check_file, new_file
from stan_infer.system.json_file import parse_json
from stan_infer.system.packages import require

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from stan_infer.network.model import Stan


why_keep = earlier_result.safetensors(METADATA_KEY, "stan-infer convert")


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a source holds, found without reading a weight."""

    layout: Layout
    bytes: int | None  # of the file
    dtypes: dict[str, int]  # stored dtype -> number of values
    hints: dict[str, object]  # what the file says of itself


def load_model(source: str | Path, settings: Mapping[str, Any] | None = None) -> Stan:
    """Load a checkpoint as a Stan in eval mode, on the CPU, in float32.

    source: a file, or an open_clip name and tag such as "ViT-B-32-quickgelu:openai" (the tag may be
    a path to that CLIP's weights), which gives an untrained branch on CLIP. settings: StanConfig
    fields that tensor shapes cannot tell.

    Raises InputError for a missing, damaged, hostile or unknown file, a missing or left-over
    weight, a shape that contradicts the rest, a value that is not finite. No weight is ever left
    random.
    """
    require_torch("loading a checkpoint", "cpu", source, settings)
    if _is_file(source):
        with _opened(Path(source)) as reader:
            return _build(reader, _recognise_file(reader, settings))
    return load_clip(str(source), settings)


def require_torch(
    purpose: str, extra: str, source: object, settings: Mapping[str, Any] | None = None
) -> Any:
    """Import torch; where it is absent, tell first what is wrong with the source, if it is a file.

    Raises InputError as inspect_checkpoint does, MissingError as errors.require does.
    """
    try:
        return require("torch", purpose, extra)
    except MissingError:
        if isinstance(source, (str, Path)) and os.path.isfile(source):
            inspect_checkpoint(source, settings)
        raise


def inspect_checkpoint(source: str | Path, settings: Mapping[str, Any] | None = None) -> Inspection:
    """Recognise a source without reading its weights (and, for a file, without torch).

    An open_clip name needs no tag here. Raises InputError as load_model does, but for values.
    """
    if not _is_file(source):
        return Inspection(clip_layout(str(source), settings), None, {}, {})
    with _opened(Path(source)) as reader:
        layout = _recognise_file(reader, settings)
        dtypes: dict[str, int] = {}
        for info in reader.tensors.values():
            dtypes[info.dtype] = dtypes.get(info.dtype, 0) + math.prod(info.shape)
        cfg = reader.hints.get("cfg")
        hints = {k: v for k, v in reader.hints.items() if k not in ("cfg", "config")}
        hints["trainer"] = trainer_hints(cfg if isinstance(cfg, str) else None)
        return Inspection(layout, Path(source).stat().st_size, dtypes, hints)


def save_model(
    model: Stan, path: str | Path, *, dtype: dtype | None = None, sources: Sources = ()
) -> None:
    """Write a model in our own format: safetensors with the config as metadata.

    dtype: of the stored floats (default: as the model is). sources: see atomic.check_file. The file
    appears whole or not at all; of earlier files only one of ours is replaced.
    """
    state = {
        k: v.detach().to(dtype) if dtype else v.detach() for k, v in model.state_dict().items()
    }
    _write(state, model.config, Path(path), sources)


def convert(
    source: str | Path, target: str | Path, settings: Mapping[str, Any] | None = None
) -> StanConfig:
    """Rewrite a checkpoint in our own format, every value bit for bit in its stored dtype.

    Raises what convert_counted does.
    """
    return convert_counted(source, target, settings)[0]


def convert_counted(
    source: str | Path, target: str | Path, settings: Mapping[str, Any] | None = None
) -> tuple[StanConfig, int]:
    """As convert; return the config and how many bytes were written: a pipe has no size.

    Raises InputError as load_model does, or when the target is not a .safetensors file, is the
    source itself, or is a file that this did not write.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise InputError(f"target {target} must end in .safetensors, the one format written")
    tag = str(source).partition(":")[2]  # may be the path of CLIP's weights
    sources = [source, tag] if tag else [source]
    check_file(target, why_keep, sources=sources)
    require_torch("converting a checkpoint", "cpu", source, settings)
    if not _is_file(source):
        model = load_model(source, settings)
        state = {k: v.detach() for k, v in model.state_dict().items()}
        return model.config, _write(state, model.config, target, sources)
    with _opened(Path(source)) as reader:
        layout = _recognise_file(reader, settings)
        state = {name: read_weight(reader, origin) for name, origin in layout.origins.items()}
    return layout.config, _write(state, layout.config, target, sources)


@contextmanager
def _opened(path: Path) -> Iterator[Reader]:
    """Open a weights file; errors that come out name it."""
    try:
        reader = open_weights(path)
        try:
            yield reader
        finally:
            reader.close()
    except InputError as e:
        raise e if str(path) in str(e) else InputError(f"checkpoint {path}: {e}") from e


def _recognise_file(reader: Reader, settings: Mapping[str, Any] | None) -> Layout:
    shapes = {k: t.shape for k, t in reader.tensors.items()}
    own = reader.hints.get("config")
    if own is None:
        cfg = reader.hints.get("cfg")
        return recognise(shapes, settings, cfg if isinstance(cfg, str) else None)
    config = _own_config(str(own)).replace(settings or {})
    wanted = parameter_shapes(config)
    origins = {name: Origin((name,)) for name in wanted}
    check_names(shapes, origins, (), wanted)
    return Layout("stan_infer", config, origins, {})


def _own_config(text: str) -> StanConfig:
    values = parse_json(text, "the config in the file's metadata")
    if not isinstance(values, dict):
        raise InputError("the config in the file's metadata is not a JSON object")
    return StanConfig.from_dict(values)


def _build(reader: Reader, layout: Layout) -> Stan:
    import torch

    from stan_infer.network.model import Stan

    with torch.device("meta"):  # no memory yet: each parameter is its only copy when it arrives
        model = Stan(layout.config)
    state = {
        name: read_weight(reader, origin).to(torch.float32)
        for name, origin in layout.origins.items()
    }
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _write(state: dict[str, Tensor], config: StanConfig, path: Path, sources: Sources) -> int:
    """Write weights as a file of ours and return its bytes."""
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


def _is_file(source: str | Path) -> bool:
    """Tell a path from an open_clip name; an existing path always wins."""
    if isinstance(source, Path) or os.path.exists(source):
        return True
    if is_clip_name(source):
        return False
    hint = nearest(source.split(":")[0], ["ViT-B-32-quickgelu", "ViT-B-16-quickgelu"])
    raise InputError(f"checkpoint {source}: no such file, and no open_clip name{hint}")
