"""Load a trained model from any source into a Stan; write a model in our own format.

A source is the authors' file (.pth, .pt, .bin), a safetensors file in their names or ours, CLIP's
weights, an open_clip name with a tag (a branch on CLIP), or a name on the hub of one of these
files. Files may be a stranger's: nothing in them is run.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.checkpoints import own
from stan_infer.checkpoints.clip_alone import ALONE, clip_alone
from stan_infer.checkpoints.clip_names import is_clip
from stan_infer.checkpoints.hub import located
from stan_infer.checkpoints.hub_names import is_repository
from stan_infer.checkpoints.layout import Recognised
from stan_infer.checkpoints.openclip import (
    clip_file_layout,
    clip_layout,
    is_clip_name,
    weights_path,
)
from stan_infer.checkpoints.recognise import recognise
from stan_infer.checkpoints.trainer_hints import trainer_hints
from stan_infer.checkpoints.untrained_branch import untrained_branch
from stan_infer.checkpoints.weights_file import Reader, opened, read_weight
from stan_infer.checkpoints.weights_folder import CONFIGS
from stan_infer.config import StanConfig, parameter_shapes
from stan_infer.errors import InputError, MissingError, nearest
from stan_infer.system.atomic import Sources, check_file, files_of
from stan_infer.system.outside_file import odd_name
from stan_infer.system.packages import require

if TYPE_CHECKING:
    from torch import Tensor, dtype

    from stan_infer.network.model import Stan

WEIGHTS = "weights"  # the setting that is no field of the config: which set of weights is read
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a source holds, found without reading a weight."""

    layout: Recognised
    bytes: int | None  # of the weights' files
    dtypes: dict[str, int]  # stored dtype -> number of values
    hints: dict[str, object]  # what the file says of itself
    weights: list[dict[str, Any]]  # the sets of weights in it: name, kind, tensors, read (or not)


def load_model(source: str | Path, settings: Mapping[str, Any] | None = None) -> Stan:
    """Load a checkpoint as a Stan, a torch module: in eval mode, on the CPU, in float32.

    No weight is ever left random, and nothing in the file is executed.

    Args:
        source: a file, a name on the hub, "hf:OWNER/NAME[@REVISION][/FILE]", or an open_clip name
            and tag such as "ViT-B-32-quickgelu:openai" (the tag may be a path to that CLIP's
            weights), which gives an untrained branch on CLIP, as CLIP's weights alone do where they
            show what they are.
        settings: StanConfig fields that tensor shapes do not determine, such as {"head": "mug"},
            and `weights`: which set of a file that has several, such as "ema".

    Returns:
        Stan: `model.config`, `model.encode_video`, `model.encode_text`; for open_session and
        export_model.

    Raises:
        InputError: a missing, damaged, hostile or unknown file, a missing or left-over weight, a
            shape that contradicts the rest, a value that is not finite.
        MissingError: torch is not installed; the hub cannot be reached.
        CheckError: bytes that are not those of the hub or of the lock file.

    Example:
        >>> import stan_infer as si
        >>> si.load_model("examples/motion/motion.safetensors").config.embed_dim
        64
    """
    source = located(source)
    torch = require_torch("loading a checkpoint", "cpu", source, settings)
    config, state = _read(source, settings, torch.float32)
    from stan_infer.network.model import Stan

    with torch.device("meta"):  # no memory yet: each parameter is its only copy when it arrives
        model = Stan(config)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _read(
    source: str | Path, settings: Mapping[str, Any] | None, dtype: dtype | None = None
) -> tuple[StanConfig, dict[str, Tensor]]:
    """Return the config and the weights by our names. dtype: of the weights; None: as stored.

    A branch that is untrained has the dtype of the trunk's layers.
    """
    weights, settings = _chosen(settings)
    with opened(_path(source, settings), weights) as reader:
        layout = _recognise(source, reader, settings)
        alone = layout.notes if layout.name == ALONE else ()
        for note in (*reader.notes, *alone):
            _log.warning("%s", note)
        stored = ((name, read_weight(reader, o)) for name, o in layout.origins.items())
        state = {name: w.to(dtype) if dtype else w for name, w in stored}
        missing = layout.origins.keys() != parameter_shapes(layout.config).keys()
        return layout.config, state | (untrained_branch(layout.config, state) if missing else {})


def require_torch(
    purpose: str, extra: str, source: object, settings: Mapping[str, Any] | None = None
) -> Any:
    """Import and return torch. Where it is absent, a faulty source file is reported first.

    Raises InputError as inspect_checkpoint does, MissingError as packages.require does.
    """
    try:
        return require("torch", purpose, extra)
    except MissingError:
        if isinstance(source, (str, Path)) and os.path.isfile(source):
            inspect_checkpoint(source, settings)
        raise


def inspect_checkpoint(source: str | Path, settings: Mapping[str, Any] | None = None) -> Inspection:
    """Recognise a source without reading its weights (and, for a file, without torch).

    An open_clip name needs no tag here, and nothing is downloaded for one. Raises InputError as
    load_model does, except for values.
    """
    source = located(source)
    weights, settings = _chosen(settings)
    if not _is_file(source) and not os.path.exists(str(source).partition(":")[2]):
        if weights is not None:
            raise InputError(f"--weights {weights} chooses in a file, and {source} is none")
        return Inspection(clip_layout(str(source), settings), None, {}, {}, [])
    with opened(_path(source, settings), weights) as reader:
        layout = _recognise(source, reader, settings)
        dtypes: Counter[str] = Counter()
        for info in reader.tensors.values():
            dtypes[info.dtype] += math.prod(info.shape)
        hints = {k: v for k, v in reader.hints.items() if k not in ("cfg", "config", *CONFIGS)}
        hints["trainer"] = trainer_hints(reader.hints.get("cfg"))
        layout = dataclasses.replace(layout, notes=(*layout.notes, *reader.notes))
        return Inspection(layout, reader.bytes, dict(dtypes), hints, _listed(reader))


def _path(source: str | Path, settings: Mapping[str, Any]) -> Path:
    """Return the file or folder to open; a faulty name or setting is reported before a download."""
    if _is_file(source):
        return Path(source)
    clip_layout(str(source), settings)
    return weights_path(str(source))


def _listed(reader: Reader) -> list[dict[str, Any]]:
    """The sets of weights in a file, for `inspect`."""
    return [
        {
            "name": found.name,
            "kind": found.kind,
            "tensors": len(found.names),
            "read": found == reader.chosen,
        }
        for found in reader.sets
    ]


def _chosen(settings: Mapping[str, Any] | None) -> tuple[str | None, dict[str, Any]]:
    """Part the settings: the name of the set of weights, and the fields of the config."""
    fields = dict(settings or {})
    weights = fields.pop(WEIGHTS, None)
    if weights is not None and not isinstance(weights, str):
        raise InputError(f"setting {WEIGHTS} is the name of a set of weights, such as 'ema'")
    return weights, fields


def save_model(
    model: Stan, path: str | Path, *, dtype: dtype | None = None, sources: Sources = ()
) -> None:
    """Write a model in our own format: safetensors with the config as metadata.

    Args:
        model: a Stan, as load_model returns it.
        path: a .safetensors file. It appears whole or not at all; of earlier files only one of ours
            is replaced.
        dtype: torch's, of the stored floats; None: as the model is.
        sources: files that must not be replaced; see atomic.check_file.

    Raises:
        InputError: the file cannot be written, or is one that this did not write.

    Example:
        >>> import stan_infer as si
        >>> model = si.load_model("examples/motion/motion.safetensors")
        >>> si.save_model(model, "copy.safetensors")
    """
    state = {
        k: v.detach().to(dtype) if dtype else v.detach() for k, v in model.state_dict().items()
    }
    own.write(state, model.config, Path(path), sources)


def convert(
    source: str | Path, target: str | Path, settings: Mapping[str, Any] | None = None
) -> StanConfig:
    """Rewrite a checkpoint in our own format, every value bit for bit in its stored dtype.

    Args:
        source: see load_model.
        target: a .safetensors file. It appears whole or not at all.
        settings: see load_model.

    Returns:
        StanConfig: of the model.

    Raises:
        InputError: as load_model, or a target that does not end in .safetensors, is the source
            itself, or is a file that this did not write.
        MissingError: torch is not installed.

    Example:
        >>> import stan_infer as si
        >>> si.convert("examples/motion/motion.safetensors", "converted.safetensors").frames
        8
    """
    return convert_counted(source, target, settings)[0]


def convert_counted(
    source: str | Path, target: str | Path, settings: Mapping[str, Any] | None = None
) -> tuple[StanConfig, int]:
    """As convert; return the config and how many bytes were written (a pipe has no size to read).

    Raises InputError as load_model does, or when the target is not a .safetensors file, is the
    source itself, or is a file that this did not write.
    """
    source, target = located(source), Path(target)
    if target.suffix != ".safetensors":
        raise InputError(f"target {target} must end in .safetensors, the one format written")
    sources = files_of(source)
    check_file(target, own.why_keep, sources=sources)
    require_torch("converting a checkpoint", "cpu", source, settings)
    config, state = _read(source, settings)
    return config, own.write(state, config, target, sources)


def _recognise(source: str | Path, reader: Reader, settings: Mapping[str, Any]) -> Recognised:
    """Return the layout of an open file; source: as it was given, NAME:PATH or the file itself."""
    shapes = {k: t.shape for k, t in reader.tensors.items()}
    if not _is_file(source):
        return clip_file_layout(str(source), shapes, settings)
    if "config" not in reader.hints and is_clip(shapes):
        return clip_alone(shapes, reader.hints, settings, Path(source))
    layout = recognise(shapes, settings, reader.hints)
    if layout.config.is_mug and _trained_head(reader.hints) == "mean":
        note = f"trained with head mean, and was not trained for head {layout.config.head}"
        _log.warning("the checkpoint was %s, which is used", note)
        layout = dataclasses.replace(layout, notes=(*layout.notes, f"the model was {note}"))
    return layout


def _trained_head(hints: Mapping[str, object]) -> object:
    """The head that our own file or the trainer's config names; None where neither does."""
    if "config" in hints:
        return own.read_config(str(hints["config"])).head
    return trainer_hints(hints.get("cfg")).get("head")


def _is_file(source: str | Path) -> bool:
    """Whether a source is a file's path, and not an open_clip name; InputError if it is neither."""
    if isinstance(source, Path) or os.path.exists(source):
        return True
    if is_clip_name(source):
        return False
    raise no_checkpoint(source)


def no_checkpoint(source: str) -> InputError:
    """The error of a source that is neither there nor a name."""
    if odd := odd_name(source):
        return InputError(f"checkpoint {odd}")
    hint = nearest(source.split(":")[0], ["ViT-B-32-quickgelu", "ViT-B-16-quickgelu"])
    if is_repository(source):
        hint = f"; on the Hugging Face hub it would be hf:{source}"
    return InputError(f"checkpoint {source}: no such file or folder, and no open_clip name{hint}")
