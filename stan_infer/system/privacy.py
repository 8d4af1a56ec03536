"""Switch off the telemetry of the libraries that we use.

`stan_infer/__init__.py` calls this first, so it has run before any engine is loaded, whichever part
of the package a program or a child process uses. Child processes inherit the variables.
"""

from __future__ import annotations

import os
import sys

# Each is read when its library is first imported, Ray's when it starts a cluster.
_OFF = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime: its device number, queue of events and collector
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub, by which open_clip downloads weights
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray tells this address that it is switched off; nobody listens there.
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",
}


def switch_off_telemetry() -> None:
    """Set the libraries' variables; one that the user has set keeps its value.

    A library that the program imported before this package does not read its variable any more.
    ONNX Runtime is then told to stop; the others have sent by then what they send.
    """
    unset = "ORT_DISABLE_TELEMETRY" not in os.environ
    for name, value in _OFF.items():
        os.environ.setdefault(name, value)
    # OpenVINO has no variable: it reports unless this package is absent.
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    stop = getattr(sys.modules.get("onnxruntime"), "disable_telemetry_events", None)
    if unset and stop is not None:
        stop()
