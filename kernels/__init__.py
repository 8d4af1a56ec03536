"""Fused GPU kernels in Triton, one operation per file, each a torch custom operation.

Importing this package costs nothing; its files import torch and triton. On the CPU every operation
runs its plain torch form, so that a model with them can be traced and exported anywhere.
"""

from __future__ import annotations


def unavailable(device: str = "cuda") -> str | None:
    """Why the kernels cannot run on `device`, or None if they can: one sentence for an error."""
    try:
        import torch
        import triton
    except ImportError as e:
        from stan_infer.installing import install_command

        return f"{e.name} is not installed: {install_command('gpu')}"
    if not torch.cuda.is_available():
        built = torch.version.cuda or "none"
        return (
            f"torch {torch.__version__} (built for CUDA {built}) with triton {triton.__version__} "
            "finds no GPU"
        )
    if not device.startswith("cuda"):
        return f"the kernels run on NVIDIA GPUs, not on device '{device}': give --device cuda"
    index, here = torch.device(device).index or 0, torch.cuda.device_count()
    if index >= here:
        return f"device '{device}' is not here: {here} GPUs found"
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        name = torch.cuda.get_device_name(device)
        return f"{name} is sm_{major}{minor}; the kernels need sm_80 (Ampere) or newer"
    return None
