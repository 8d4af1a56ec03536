"""bench as a function: what it returns and writes, and what it refuses before measuring."""

import json

import pytest

from stan_infer.benchmarking.options import BenchOptions
from stan_infer.benchmarking.rows import read_json_lines
from stan_infer.benchmarking.run import bench
from stan_infer.errors import InputError


def test_bench_from_python(tmp_path):
    out = tmp_path / "rows.jsonl"
    said = []
    result = bench(
        preset="stan-tiny",
        engines=["eager", "trt", "eager"],
        frames=[2],
        warmup=1,
        repeats=2,
        min_seconds=0,
        memory=False,
        out=out,
        say=said.append,
    )
    assert json.dumps(result.to_dict()) and "eager fp32" in str(result) and "trt" in repr(result)
    assert [r["engine"] for r in result.rows] == ["eager", "trt"]
    assert result.title == "stan-tiny (random weights)" and not result.stages
    assert not result.is_wrong and not result.is_complete
    assert [r["engine"] for r in read_json_lines(out, "bench", "bench")] == ["eager", "trt"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engines": ["eagr"]}, "did you mean 'eager'"),
        ({"precisions": ["fp23"]}, "did you mean 'fp32'"),
        ({"batches": [0]}, "--batch is 0; give a whole number from 1 to 64"),
        ({"frames": [65]}, "--frames is 65; give a whole number from 1 to 64"),
        ({"engines": "eager"}, r"give a list, as in engines=\['eager'\]"),
        ({"frames": 8}, r"give a list, as in frames=\[8\]"),
        ({"repeats": 0}, "repeats is 0; give a whole number from 1 on"),
        ({"tolerance": float("nan")}, "tolerance is nan; give a number from 0 to 1"),
    ],
)
def test_wrong_options_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        BenchOptions(**given)
