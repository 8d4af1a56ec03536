"""Write the names that NVIDIA's bindings have, of the classes that stan_infer uses, as data.

    python -m tests.tensorrt_plans.record_api tensorrt_rtx tests/tensorrt_plans/api/

The bindings of TensorRT itself load without NVIDIA's libraries too, if libnvinfer.so.N,
libnvinfer_plugin.so.N and libnvonnxparser.so.N exist and have the nine C functions that `nm -D
--undefined-only` shows in them (any bodies: none is called for names): that is how 10.16 and 11.4
were read, as tensorrt_bindings.
"""

import importlib
import json
import sys
from pathlib import Path

from stan_infer.tensorrt_plans.api import COMMON, RTX_ONLY, TRT_ONLY


def record(module_name: str) -> dict:
    """Version, and members by class, of an installed package."""
    module = importlib.import_module(module_name)
    names = sorted({*COMMON, *TRT_ONLY, *RTX_ONLY})
    classes = {
        name: sorted(m for m in dir(getattr(module, name)) if not m.startswith("_"))
        for name in names
        if hasattr(module, name)
    }
    return {"version": module.__version__, "classes": classes}


if __name__ == "__main__":
    found = record(sys.argv[1])
    package = sys.argv[1].replace("_bindings", "")
    version = ".".join(found["version"].split(".")[:2])
    text = json.dumps(found, indent=1, sort_keys=True)
    Path(sys.argv[2], f"{package}-{version}.json").write_text(text + "\n")
