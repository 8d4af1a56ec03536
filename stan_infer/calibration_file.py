"""calibration.json: which linears run in 8 bits and by which scales, for one model and its clips.

It may come from a stranger: its size is bounded, and every number is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from stan_infer.artefact import sha256
from stan_infer.config import StanConfig
from stan_infer.errors import InputError

CALIBRATION = "calibration.json"
SCHEMA = "1.0"
_MAX_BYTES = 16 * 2**20


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


def read_calibration(path: str | Path) -> dict[str, Any]:
    """Read calibration.json, or that of a folder which `stan-infer calibrate` wrote.

    Raises InputError for what is none: missing, too large, another schema, a scale that is not a
    positive number.
    """
    file = Path(path)
    file = file / CALIBRATION if file.is_dir() else file
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise InputError(f"{file} is larger than {_MAX_BYTES >> 20} MiB: no calibration")
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise InputError(
            f"calibration {file} cannot be read ({e.strerror}); stan-infer calibrate writes one"
        ) from e
    except (ValueError, RecursionError) as e:
        raise InputError(f"calibration {file} is not JSON: {str(e)[:100]}") from e
    if not isinstance(record, dict) or not isinstance(record.get("tensors"), dict):
        raise InputError(f"{file} is no calibration.json: it has no tensors")
    schema = str(record.get("schema"))[:20]
    if schema.split(".")[0] != SCHEMA.split(".")[0]:
        raise InputError(
            f"{file} has schema {schema}, this version reads {SCHEMA}: calibrate again"
        )
    kept, key = record.get("kept"), record.get("key")
    if not isinstance(kept, list) or not isinstance(key, dict):
        raise InputError(f"{file} is no calibration.json: it has no kept linears or no key")
    for name, tensor in record["tensors"].items():
        scale = tensor.get("scale") if isinstance(tensor, dict) else None
        number = scale if isinstance(scale, (int, float)) else math.nan
        if name not in kept and not 0 < number < math.inf:
            raise InputError(
                f"{file}: the scale of {name[:80]} is {str(scale)[:40]}, not a positive number: "
                "calibrate again"
            )
    return record


def calibration_of(
    path: str | Path, precision: str, checkpoint: str | Path, config: StanConfig
) -> dict[str, Any]:
    """Read the calibration of this checkpoint file in this precision, int8 or fp8.

    Raises InputError for one of another precision, model or preprocessing.
    """
    record = read_calibration(path)
    if record.get("precision") != precision:
        raise InputError(
            f"calibration {path} is of {str(record.get('precision'))[:20]}, not {precision}: "
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
        old = given if isinstance(given, dict) else {}
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
