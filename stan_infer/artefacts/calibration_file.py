"""calibration.json: which linears run in 8 bits and by which scales, for one model and its clips.

It may come from a stranger: its size is bounded, and every number is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stan_infer.artefacts.folder import sha256
from stan_infer.config import StanConfig
from stan_infer.errors import InputError
from stan_infer.system.json_file import checked, read_object

if TYPE_CHECKING:
    from stan_infer.artefacts.calibration_record import Record

CALIBRATION = "calibration.json"
SCHEMA = "1.0"
_MAX_BYTES = 4 * 2**20
_AGAIN = ": calibrate again"


def digest(value: Any) -> str:
    """SHA-256 of a value of JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def preprocessing(config: StanConfig) -> dict[str, Any]:
    """What decides how a video becomes pixels and these become numbers."""
    return {
        "frames": config.frames,
        "short_side": config.short_side,
        "crop": config.image_size,
        "mean": list(config.mean),
        "std": list(config.std),
    }


def read_calibration(path: str | Path) -> Record:
    """Read calibration.json, or that of a folder which `stan-infer calibrate` wrote.

    Raises InputError for what is none: missing, too large, another schema, a value of another type
    or out of range, a scale that is not a positive number.
    """
    from stan_infer.artefacts.calibration_record import SCALE, Record

    file = Path(path)
    file = file / CALIBRATION if file.is_dir() else file
    if not os.path.isfile(file):
        raise InputError(
            f"calibration {file} cannot be read (no such file); stan-infer calibrate writes one"
        )
    values = read_object(file, _MAX_BYTES, _AGAIN)
    schema = str(values.get("schema"))[:20]
    if schema.split(".")[0] != SCHEMA.split(".")[0]:
        raise InputError(f"{file} has schema {schema}, this version reads {SCHEMA}{_AGAIN}")
    record = checked(values, Record, str(file), _AGAIN)
    low, high = SCALE
    for name in record["tensors"].keys() - set(record["kept"]):
        scale = record["tensors"][name]["scale"]
        if not low <= scale <= high:
            raise InputError(
                f"{file}: the scale of {name[:80]} is {scale}, not a positive number{_AGAIN}"
            )
    return record


def calibration_of(
    path: str | Path, precision: str, checkpoint: str | Path, config: StanConfig
) -> Record:
    """Read the calibration of this checkpoint file in this precision, int8 or fp8.

    Raises InputError for one of another precision, model or preprocessing.
    """
    record = read_calibration(path)
    if record["precision"] != precision:
        raise InputError(
            f"calibration {path} is of {record['precision'][:20]}, not {precision}: "
            f"stan-infer calibrate --precision {precision}"
        )
    if not Path(checkpoint).is_file():
        raise InputError(
            f"a calibration belongs to a checkpoint file, and {checkpoint} is none: its hash "
            "cannot be compared"
        )
    known = record["key"].get("checkpoint_sha256")
    if known is None:
        raise InputError(
            f"calibration {path} does not tell its checkpoint: stan-infer calibrate {checkpoint}"
        )
    if known != sha256(Path(checkpoint)):
        raise InputError(
            f"calibration {path} is of another model than {checkpoint}: stan-infer calibrate "
            f"{checkpoint} --precision {precision}"
        )
    wanted, given = preprocessing(config), record.get("preprocessing")
    if record["key"].get("preprocessing_sha256") != digest(wanted):
        old = given or {}
        other = [
            f"{k} {str(old.get(k))[:40]}, not {v}" for k, v in wanted.items() if old.get(k) != v
        ]
        raise InputError(
            f"calibration {path} was made with another preprocessing ({'; '.join(other)}): "
            "calibrate again"
        )
    return record


def fp8_scales(path: str | Path, checkpoint: str | Path, config: StanConfig) -> dict[str, float]:
    """Scales of the linears' inputs by name; see calibration_of."""
    record = calibration_of(path, "fp8", checkpoint, config)
    kept = set(record["kept"])
    return {n: float(t["scale"]) for n, t in record["tensors"].items() if n not in kept}
