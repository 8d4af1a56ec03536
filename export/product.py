"""Matrix products on one thread of the CPU, in ONNX Runtime.

NumPy's take all threads, which wait for each other. Where other processes have the cores, such as
those that decode, a product of a tenth of a millisecond then takes twenty; and NumPy can be told
otherwise only before it is imported.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from onnx import TensorProto, helper

from stan_infer.artefacts.opsets import OPSETS
from stan_infer.engines.graph import OpenGraph
from stan_infer.engines.open import open_graph


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a [m, k] times b [k, n], in fp32; any thread may call it."""
    feeds = {name: np.asarray(x, np.float32) for name, x in (("a", a), ("b", b))}
    return _graph().run(feeds)["product"]


@cache
def _graph() -> OpenGraph:
    shapes = {"a": ["m", "k"], "b": ["k", "n"], "product": ["m", "n"]}
    a, b, out = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items())
    node = helper.make_node("MatMul", ["a", "b"], ["product"])
    graph = helper.make_graph([node], "product", [a, b], [out])
    opset = helper.make_opsetid("", min(OPSETS))
    model = helper.make_model(graph, opset_imports=[opset], ir_version=OPSETS[min(OPSETS)].ir)
    return open_graph(model.SerializeToString(), "ort", threads=1)
