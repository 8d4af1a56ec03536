"""calibration.json: which linears run in 8 bits, and with which scales, for one model.

The file may come from a stranger: its size is bounded, and its numbers are checked before use.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.artefacts.folder import check_schema, sha256
from stan_infer.config import StanConfig
from stan_infer.errors import InputError
from stan_infer.system.json_file import checked, read_object

if TYPE_CHECKING:
    from stan_infer.artefacts.calibration_record import Record

CALIBRATION = "calibration.json"
SCHEMA = "1.1"  # 1.0 lacks `checked` and `bound`; readers take any of 1
_MAX_BYTES = 4 * 2**20
_AGAIN = ": calibrate again"


def digest(value: Any) -> str:
    """SHA-256, in hexadecimal, of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def preprocessing(config: StanConfig) -> dict[str, Any]:
    """The settings that decide how a video becomes the network's input."""
    return {
        "frames": config.frames,
        "short_side": config.short_side,
        "crop": config.image_size,
        "mean": list(config.mean),
        "std": list(config.std),
    }


def read_calibration(path: str | Path) -> Record:
    """Read a calibration.json, given as the file or as the folder that holds it.

    Raises InputError for a file that is missing or too large, has another schema, a value of
    another type or out of range, or a scale that is not a positive number.
    """
    from stan_infer.artefacts.calibration_record import SCALE, Record

    file = Path(path)
    file = file / CALIBRATION if file.is_dir() else file
    if not os.path.isfile(file):
        raise InputError(
            f"calibration {file} cannot be read (no such file); stan-infer calibrate writes one"
        )
    values = read_object(file, _MAX_BYTES, _AGAIN)
    check_schema(values, SCHEMA, str(file), _AGAIN)
    record = checked(values, Record, str(file), _AGAIN)
    low, high = SCALE
    for name, scale in scales(record).items():
        if not low <= scale <= high:
            raise InputError(
                f"{file}: the scale of {name[:80]} is {scale}, not a positive number{_AGAIN}"
            )
    return record


def scales(record: Record) -> dict[str, float]:
    """Scales of the inputs of the linears that run in 8 bits, by the linear's name."""
    kept = set(record["kept"])
    return {n: float(t["scale"]) for n, t in record["tensors"].items() if n not in kept}


def calibration_of(
    path: str | Path,
    precision: str,
    checkpoint: str | Path,
    config: StanConfig,
    weights: str | None = None,
) -> Record:
    """Read a calibration and check that it is for this checkpoint file, precision and config.

    precision: int8 or fp8. weights: the set of the checkpoint's weights, None for the default one.
    Raises InputError for a calibration of another precision, checkpoint, set of weights or
    preprocessing, and as read_calibration does.
    """
    record = read_calibration(path)
    if record["precision"] != precision:
        raise InputError(
            f"calibration {path} is of {record['precision'][:20]}, not {precision}: "
            f"stan-infer calibrate --precision {precision}"
        )
    if not Path(checkpoint).is_file():
        raise InputError(
            f"a calibration belongs to one checkpoint file, and {checkpoint} is not a file whose "
            "hash could be compared: give the checkpoint file"
        )
    known = record["key"].get("checkpoint_sha256")
    if known is None:
        raise InputError(
            f"calibration {path} does not name its checkpoint: stan-infer calibrate {checkpoint}"
        )
    if known != sha256(Path(checkpoint)):
        raise InputError(
            f"calibration {path} is of another model than {checkpoint}: stan-infer calibrate "
            f"{checkpoint} --precision {precision}"
        )
    if record["key"].get("weights") != weights:
        own, asked = (
            "the default weights" if name is None else f"--weights {name[:80]}"
            for name in (record["key"].get("weights"), weights)
        )
        raise InputError(f"calibration {path} is of {own}, not of {asked}: calibrate again")
    wanted = preprocessing(config)
    if record["key"].get("preprocessing_sha256") != digest(wanted):
        old = record.get("preprocessing") or {}
        other = [
            f"{k} {str(old.get(k))[:40]}, not {v}" for k, v in wanted.items() if old.get(k) != v
        ]
        raise InputError(
            f"calibration {path} was made with another preprocessing ({'; '.join(other)}): "
            "calibrate again"
        )
    return record


def fp8_scales(
    path: str | Path, checkpoint: str | Path, config: StanConfig, weights: str | None = None
) -> dict[str, float]:
    """Scales of the linears' inputs in a calibration for fp8; raises as calibration_of does."""
    return scales(calibration_of(path, "fp8", checkpoint, config, weights))
