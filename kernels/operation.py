"""How a file of this folder makes an operation of torch from functions with one signature.

A GPU runs the launcher, and so does a CPU in Triton's interpreter; any other CPU runs plain torch;
tracing runs the fake. torch.library.triton_op would take the launcher as the fake: that reads sizes
as numbers, which fixes the batch of an export.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch.utils.flop_counter import register_flop_formula

from stan_infer.kernels.tiles import INTERPRETED

Args = ParamSpec("Args")
Result = TypeVar("Result")  # a tensor, or a tuple of them


def operation(
    name: str,
    *,
    reference: Callable[Args, Result],
    check: Callable[..., object],
    launch: Callable[..., Result],
    fake: Callable[..., Result],
    flops: Callable[..., int] | None = None,
    mutates: tuple[str, ...] = (),
) -> Callable[Args, Result]:
    """Register the operation `name`, with the signature of `reference`; return it.

    reference: computes it in plain torch, on a CPU. check: raises ValueError for arguments that
    the kernel cannot take; a CPU refuses them too, so that a mistake shows without a GPU. launch:
    checks and runs the kernel, on a GPU and in Triton's interpreter. fake: an empty result, for
    tracing. flops: FLOPs of its matrix products, from the arguments with shapes in the place of
    tensors. mutates: names of the tensors that it writes to.
    """

    def without_gpu(*args: Any) -> Result:
        if INTERPRETED:
            return launch(*args)
        check(*args)
        return reference(*args)  # type: ignore[call-arg]

    schema = torch.library.infer_schema(reference, mutates_args=mutates)
    op = torch.library.custom_op(name, without_gpu, mutates_args=mutates, schema=schema)
    op.register_kernel("cuda")(launch)
    op.register_fake(fake)
    if flops is not None:
        namespace, short = name.split("::")
        target = getattr(getattr(torch.ops, namespace), short)
        register_flop_formula(target)(lambda *shapes, **_: flops(*shapes))
    return op
