"""The origin of exported weights, for the manifest: file, hash, licence, command."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from stan_infer.artefacts.folder import sha256
from stan_infer.checkpoints.load import WEIGHTS, inspect_checkpoint
from stan_infer.checkpoints.weights_folder import weights_files
from stan_infer.errors import storable


def provenance(
    checkpoint: str, settings: Mapping[str, Any], licence: str | None = None
) -> dict[str, Any]:
    """The field `about` of ExportOptions: the origin of the weights, without paths of this machine.

    checkpoint: a file, or an open_clip name with a tag. Raises as inspect_checkpoint does.
    """
    source: dict[str, Any] = {"file": storable(os.path.basename(checkpoint))}
    files = weights_files(checkpoint)
    if len(files) == 1:
        layout = inspect_checkpoint(checkpoint, settings).layout
        source |= {
            "checkpoint_sha256": sha256(files[0]),
            "checkpoint_format": layout.name,
            "state_dict_tensors": len(layout.origins),
        }
    if WEIGHTS in settings:
        source[WEIGHTS] = storable(str(settings[WEIGHTS]))
    if checkpoint.endswith(":openai"):
        licence = licence or "MIT (OpenAI CLIP)"
    words = [os.path.basename(w) if os.path.isabs(w) else w for w in sys.argv[1:]]
    return {
        "source": source,
        "licence": None if licence is None else storable(licence),
        "command": storable(shlex.join(["stan-infer", *words])),
    }
