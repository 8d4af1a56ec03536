"""Switch off the telemetry of the libraries that we use: nothing is sent to anybody.

The package calls this before it does anything else, so whatever part of it a program or a child
process uses, it has run before an engine is loaded. Children inherit the variables.
"""

from __future__ import annotations

import os
import sys

# Each is read when its library is first imported.
_OFF = (
    "ORT_DISABLE_TELEMETRY",  # ONNX Runtime: a device's number, a queue of events, its collector
    "HF_HUB_DISABLE_TELEMETRY",  # huggingface_hub, with which open_clip fetches a named checkpoint
)


def switch_off_telemetry() -> None:
    """Set what keeps the libraries silent; a variable that the user set keeps its value.

    A library that the program imported before us has spoken already; ONNX Runtime is then told to
    stop, and the others say nothing more.
    """
    unset = "ORT_DISABLE_TELEMETRY" not in os.environ
    for name in _OFF:
        os.environ.setdefault(name, "1")
    # OpenVINO has no variable: it reports unless this package is absent.
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    stop = getattr(sys.modules.get("onnxruntime"), "disable_telemetry_events", None)
    if unset and stop is not None:
        stop()
