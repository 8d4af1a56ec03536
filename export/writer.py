"""Which source wrote a graph: two graphs of the same weights have the same nodes if it is one."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import stan_infer

# What decides which nodes a graph has, below the package.
_SOURCES = (
    *(f"export/{n}.py" for n in ("onnx_graph", "onnx_nodes", "onnx_ops", "video_graph")),
    *(f"export/{n}.py" for n in ("text_graph", "class_head", "score_graph", "preprocess_graph")),
    *(f"network/{n}.py" for n in ("fused", "plain_ops", "fold", "folded")),
)


@functools.cache
def writer() -> str:
    """The version, and a digest of the source that decides which nodes a graph has."""
    digest = hashlib.sha256()
    top = Path(stan_infer.__file__).parent
    for name in _SOURCES:
        path = top / name
        # Line ends may differ between a checkout and a wheel.
        text = path.read_bytes().replace(b"\r\n", b"\n") if path.is_file() else b""
        digest.update(name.encode() + b"\0" + text)
    return f"{stan_infer.__version__}-{digest.hexdigest()[:12]}"
