"""ONNX Runtime's execution providers: the one asked for runs, or an error says why not.

Where CUDA cannot be loaded, ONNX Runtime itself opens a session on the CPU and only logs a line.
"""

from __future__ import annotations

import dataclasses
import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

from stan_infer.engines.session import split_device
from stan_infer.errors import InputError, MissingError, check_word
from stan_infer.system.machine import faults, installed_versions
from stan_infer.system.packages import install_command, require

if TYPE_CHECKING:
    import onnxruntime

_RTX = "NvTensorRTRTXExecutionProvider"
_RTX_PLUGIN = "onnxruntime-ep-nv-tensorrt-rtx-cu13"
# Our word -> the device that it runs on, ONNX Runtime's name, the extras that bring it.
_KNOWN = {
    "cpu": ("cpu", "CPUExecutionProvider", ("runtime",)),
    "cuda": ("cuda", "CUDAExecutionProvider", ("gpu",)),
    "cuda-graph": ("cuda", "CUDAExecutionProvider", ("gpu",)),
    "tensorrt": ("cuda", "TensorrtExecutionProvider", ("gpu", "trt")),
    "tensorrt-rtx": ("cuda", _RTX, ()),  # a plug-in, in no extra
}
PROVIDERS = tuple(_KNOWN)


@dataclasses.dataclass(frozen=True)
class Provider:
    """An execution provider and the device that it is asked to run on."""

    word: str  # one of PROVIDERS
    device: str  # cpu or cuda
    index: int = 0  # of the GPU

    @property
    def name(self) -> str:
        """ONNX Runtime's name."""
        return _KNOWN[self.word][1]

    @property
    def is_bound(self) -> bool:
        """Whether inputs and outputs are bound to the device's memory.

        Not with RTX's plug-in: plain onnxruntime, which loads it, has no allocator for CUDA.
        """
        return self.device != "cpu" and self.name != _RTX

    @property
    def tf32(self) -> str:
        """Whether fp32 linears may run in TF32: "no", or "library's choice"."""
        return "no" if self.word in ("cpu", "cuda", "cuda-graph") else "library's choice"

    def missing(self, why: str = "") -> MissingError:
        """Return the error that says that it is not available here, and what helps."""
        extras = _KNOWN[self.word][2]
        install = install_command(*extras) if extras else f"pip install {_RTX_PLUGIN}"
        place = f"{self.device}:{self.index}" if self.index else self.device
        return MissingError(
            f"engine ort cannot use {self.name} on device '{place}' here{why and f' ({why})'}: "
            f"{install} on a machine with an NVIDIA driver, or --device cpu"
        )


def choose_provider(device: str, word: str | None = None) -> Provider:
    """Return the provider of a word, or the device's own where none is given.

    Raises InputError for an unknown word or device, or a provider of another device.
    """
    kind, index = split_device(device, ["cpu", "cuda"])
    word = word or kind
    check_word("provider", word, PROVIDERS)
    if _KNOWN[word][0] != kind:
        raise InputError(
            f"provider {word} runs on device {_KNOWN[word][0]}, not {device}: "
            f"give --device {_KNOWN[word][0]}"
        )
    return Provider(word, kind, int(index or 0))


def open_with(
    provider: Provider, source: str | bytes, options: onnxruntime.SessionOptions
) -> onnxruntime.InferenceSession:
    """Open a session on this provider alone.

    Raises MissingError where the provider is not here or ONNX Runtime took another one. Exceptions
    of ONNX Runtime about the graph come out as they are.
    """
    ort = require("onnxruntime", "engine ort", "runtime")
    check_wheels()
    listed: list[Any] = []
    if provider.device != "cpu":
        # No node may run on the CPU instead; this setting allows no CPU provider in the list.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if provider.name == _RTX:
        _add_plugin(ort, provider, options)
    elif provider.name not in ort.get_available_providers():
        raise provider.missing()
    else:
        listed = [(provider.name, _settings(provider))]
    session = ort.InferenceSession(source, options, providers=listed or None)
    if session.get_providers()[0] != provider.name:
        raise provider.missing(f"it opened {session.get_providers()[0]} instead")
    return session


@cache  # some milliseconds, and verify opens a graph for every part of a network
def check_wheels() -> None:
    """Raise MissingError where both of ONNX Runtime's packages are installed: one is broken."""
    wrong = faults(installed_versions(("onnxruntime", "onnxruntime-gpu")))
    if wrong:
        raise MissingError(wrong[0])


def _settings(provider: Provider) -> dict[str, str]:
    if provider.device == "cpu":
        return {}
    found = {"device_id": str(provider.index)}
    if provider.name == "CUDAExecutionProvider":
        found["use_tf32"] = "0"  # on by default, and costs fp32 ten bits
    if provider.word == "cuda-graph":
        found["enable_cuda_graph"] = "1"
    return found


def _add_plugin(ort: Any, provider: Provider, options: Any) -> None:
    """Load TensorRT for RTX, a library that plain onnxruntime takes as a plug-in."""
    try:
        plugin = importlib.import_module("onnxruntime_ep_nv_tensorrt_rtx")
    except ModuleNotFoundError as e:
        raise provider.missing("its plug-in is not installed") from e
    except (Exception, SystemExit) as e:  # a broken package may raise anything
        reason = f"{type(e).__name__}: {str(e)[:200]}"
        raise provider.missing(f"its plug-in does not load ({reason})") from e
    known = [d for d in ort.get_ep_devices() if d.ep_name == _RTX]
    if not known:
        try:
            ort.register_execution_provider_library(_RTX, plugin.get_library_path())
        except Exception as e:  # ONNX Runtime's own classes share no base but Exception
            reason = str(e).split("with error: ")[-1]  # without the path
            raise provider.missing(reason.splitlines()[0][:200]) from e
        known = [d for d in ort.get_ep_devices() if d.ep_name == _RTX]
    if provider.index >= len(known):
        raise provider.missing(f"it finds {len(known)} GPUs")
    options.add_provider_for_devices([known[provider.index]], {})
