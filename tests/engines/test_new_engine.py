"""An engine that wraps another runtime, added from outside by CONTRIBUTING's recipe."""

import numpy as np
import pytest

import stan_infer as si
from stan_infer.benchmarking.candidates import open_folder
from stan_infer.benchmarking.options import BenchOptions
from stan_infer.engines.folder_session import FolderSession
from stan_infer.engines.graph import OpenGraph, Signature
from stan_infer.engines.open import ENGINES, FOLDER, Engine, Trial, graph_engines, listed
from stan_infer.engines.trials import try_engines
from stan_infer.errors import InputError, MissingError
from tests.conftest import clips, relative_error
from tests.verification.records import verify

# The session's file.


class ReferenceGraph(OpenGraph):
    """A graph in the ONNX project's own evaluator."""

    package = "onnx"

    def __init__(self, graph, name=""):
        from onnx.reference import ReferenceEvaluator

        self._evaluator = ReferenceEvaluator(graph if isinstance(graph, bytes) else str(graph))

    def signature(self):
        sides = self._evaluator.proto_.graph.input, self._evaluator.proto_.graph.output
        return Signature(*({v.name: _type(v.type.tensor_type) for v in side} for side in sides))

    def run(self, feeds, outputs=None):
        names = list(outputs or self._evaluator.output_names)
        return dict(zip(names, self._evaluator.run(names, dict(feeds)), strict=True))

    def describe(self):
        import onnx

        return {"provider": "numpy", "onnx": onnx.__version__}


class ReferenceSession(FolderSession):
    engine = "onnx-reference"

    def open(self, graph, source, precision, threads):
        return ReferenceGraph(source.path)


def _type(tensor):
    import onnx

    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return dtype, tuple(d.dim_value or None for d in tensor.shape.dim)


# The table.


@pytest.fixture
def engine(monkeypatch):
    entry = Engine(
        "onnx-reference",
        FOLDER,
        lambda: ReferenceSession,
        "cpu",
        {"cpu": ("fp32",)},
        load_graph=lambda: lambda graph, name="", device="cpu", threads=None: ReferenceGraph(graph),
        trials=(Trial("cpu", "cpu"),),
    )
    monkeypatch.setitem(ENGINES, entry.name, entry)
    return entry.name


def test_it_runs_and_the_whole_product_knows_it(engine, folder, tiny_model):
    video, ids = clips(2, 3, 16), np.arange(24).reshape(2, 12) % 100
    with_it, with_ort = (si.open_session(folder, e) for e in (engine, "ort"))
    for name, given in (("embed_video", video), ("embed_text", ids)):
        got, wanted = (getattr(s, name)(given) for s in (with_it, with_ort))
        assert relative_error(got, wanted) < 1e-5, name
    assert with_it.describe()["engine"] == engine
    record = verify(folder / "video.onnx", folder / "video.onnx", engine_b=engine, frames=[2])
    assert record["pass"] and record["b"]["engine"] == engine
    assert engine in listed() and engine in graph_engines()
    assert {"name": engine, "device": "cpu", "works": True} in try_engines()


def test_what_it_has_not_is_told_by_the_table(engine, folder, tiny_model):
    with pytest.raises(InputError, match="is a choice of engine ort, not onnx-reference"):
        si.open_session(folder, engine, provider="cpu")
    with pytest.raises(InputError, match="takes an exported folder, not CHECKPOINT"):
        si.open_session(tiny_model, engine)
    with pytest.raises(MissingError, match="has no bf16 on cpu: .* --engine eager or compile or"):
        ENGINES[engine].check_precision("bf16", "cpu")
    with pytest.raises(InputError, match="did you mean 'onnx-reference'"):
        si.open_session(folder, "onnx-referense")


def test_it_is_benched_beside_another(engine, folder):
    options = BenchOptions(source=str(folder), engines=("ort", engine))
    candidates = open_folder(str(folder), options, device="cpu", threads=1)
    assert [c.name for c in candidates.opened] == ["ort fp32", "onnx-reference fp32"]
    candidates.close()
