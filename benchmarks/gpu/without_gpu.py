"""Kernels of the package for a GPU that is not here: what a launch would specialise and compile."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction


class _Driver:
    """A driver without a device: its target is enough to specialise and compile a call."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return int(self.target.arch)  # Triton caches kernels per device: one per architecture

    def get_current_stream(self, device: int) -> int:
        return 0


class _Replaced:
    """Takes the place of a kernel."""

    def __init__(self, kernel: JITFunction, call: Callable[..., Any]) -> None:
        self._kernel, self._call = kernel, call

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            self._call(self._kernel, *args, grid=grid, **options)

        return launch


@contextmanager
def launches(family: str, call: Callable[..., Any]) -> Iterator[None]:
    """Give every launch of a kernel of `kernels` to call(kernel, *args, grid=..., **options).

    Triton takes a GPU of the family for the active one, from here on.
    """
    driver: Any = _Driver(GPUTarget("cuda", int(family[2:]), 32))
    triton.runtime.driver.set_active(driver)
    # Functions that kernels call are compiled with the kernels.
    kernels = [
        (module, name, kernel)
        for path, module in list(sys.modules.items())
        if path.startswith("stan_infer.kernels.")
        for name, kernel in vars(module).items()
        if isinstance(kernel, JITFunction) and name.endswith("_kernel")
    ]
    for module, name, kernel in kernels:
        setattr(module, name, _Replaced(kernel, call))
    try:
        yield
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)
