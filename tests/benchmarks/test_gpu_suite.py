"""The GPU suite without a GPU: rows, deadlines, going on, fair baselines."""

import json
import shutil

import pytest
import torch

from benchmarks.gpu import journal, models, runner, suite, tune, units
from benchmarks.gpu.journal import BusyError, Journal
from benchmarks.gpu.rows import timed
from benchmarks.gpu.runner import END, SET_UP, TRIES, Runner, Unit
from benchmarks.gpu.stand_in import StandIn
from benchmarks.gpu.timing import Device, interleave
from benchmarks.gpu.worker import Steps
from stan_infer.checkpoints.presets import preset
from stan_infer.network.model import Stan, init_random
from tests.conftest import ROOT

COMMON = {"gpu": "a", "sources": "b", "versions": {"torch": "1"}, "stand_in": True, "kind": "gpu"}


@pytest.fixture
def rows(tmp_path):
    with Journal(tmp_path / "rows.jsonl", COMMON) as made:
        yield made


class Script:
    """A worker that does as the script says: a list of events, numbers for seconds that pass."""

    jobs: list[list[dict]] = []
    scripts: list[list] = []

    def __init__(self, device, jobs, stand_in, rows):
        self.jobs.append(jobs)
        self._events = iter(self.scripts.pop(0))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def next(self, seconds):
        event = next(self._events, {"event": "died", "why": "the process ended with SIGSEGV"})
        if isinstance(event, (int, float)):
            self.waited.append(seconds)
            return None
        return event

    waited: list[float] = []


@pytest.fixture
def scripted(monkeypatch, rows):
    """Run units with workers that follow scripts; returns the runner and the workers' jobs."""

    def go(*scripts, names=("one",), minutes=10.0, **options):
        monkeypatch.setattr(runner, "_Worker", Script)
        Script.jobs, Script.waited, Script.scripts = [], [], list(map(list, scripts))
        said: list[str] = []
        made = Runner(rows, "cuda", minutes, said.append, **options)
        made.run([Unit(name, "rates", {}) for name in names])
        return made, said

    return go


def unit(name):
    return {"event": "unit", "unit": name}


def lane(name, seconds=10.0, **row):
    return [{"event": "begin", "lane": name, "seconds": seconds}, {"event": "row", "row": row}]


STOP = [{"event": "end"}, {"event": "finished"}]


def test_rows_of_lanes(scripted, rows):
    ended = []
    made, said = scripted(
        [unit("one"), *lane("a", ms=1), *lane("b", ms=2), *STOP], on_end=ended.append
    )
    assert [(r["lane"], r.get("ms")) for r in rows.rows] == [("a", 1), ("b", 2), (END, None)]
    assert said == ["one: a", "one: b"] and not made.left and ended[0].name == "one"
    again, said = scripted()  # no worker is started
    assert said == [] and not again.left


def test_a_lane_in_which_the_process_dies(scripted, rows):
    first = [unit("one"), *lane("a", ms=1), *lane("b")[:1]]
    scripted(first, [unit("one"), *lane("b", ms=2), *STOP])
    assert rows.of("one", "b")[0]["failed"] == "the process ended with SIGSEGV"
    assert rows.of("one", "b")[1]["ms"] == 2
    # What was never tried comes first: here all else of the unit was done.
    assert [j["done"] for (j,) in Script.jobs] == [[], ["a"]]


def test_a_lane_that_hangs_has_twice_the_time_at_its_next_try(scripted, rows):
    hangs = [*lane("a", seconds=7)[:1], 1]
    other = [*lane("b", ms=2), *STOP]
    made, _ = scripted(
        [unit("one"), *hangs], [unit("one"), *hangs], [unit("one"), *hangs], [unit("one"), *other]
    )
    assert Script.waited == [7, 14, 28]
    assert [r["failed"] for r in rows.of("one", "a")][:2] == ["not done in 7 s", "not done in 14 s"]
    assert rows.of("one", "b") and not made.left


def test_failed_lanes_come_after_all_else(scripted):
    scripted(
        [unit("one"), *lane("a")[:1]],
        [unit("two"), *lane("c", ms=1), {"event": "end"}, unit("one"), *lane("a", ms=1), *STOP],
        names=("one", "two"),
    )
    assert [[j["name"] for j in jobs] for jobs in Script.jobs] == [["one", "two"], ["two", "one"]]


def test_a_unit_that_cannot_be_set_up_is_given_up(scripted, rows):
    said = [unit("one"), {"event": "failed", "why": "no memory"}, {"event": "finished"}]
    made, _ = scripted(*[said] * TRIES)
    assert [r["failed"] for r in rows.of("one", SET_UP)] == ["no memory"] * TRIES
    assert not made.left


def test_what_there_is_no_time_for_is_left_and_no_row_says_that_it_failed(scripted, rows):
    made, _ = scripted(minutes=0)
    assert made.left == ["one"] and not rows.rows and not Script.jobs
    clock = iter([0.0, 0.0, 0.0, 700.0, 700.0, 700.0, 700.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.time, "monotonic", lambda: next(clock))
        made, _ = scripted([1])
    assert made.left == ["one"] and not rows.rows


def test_an_exception_is_a_row_and_the_rest_runs():
    said: list[dict] = []
    steps = Steps(said.append, {"name": "one", "done": ["b"]})
    assert steps.left("a") and not steps.left("b")
    with steps.lane("a", 5) as row:
        row["x"] = 1
        raise ValueError("no such\nthing")
    assert said[1] == {"event": "row", "row": {"x": 1, "refused": "ValueError: no such"}}


def test_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "rows.jsonl"
    with Journal(path, COMMON) as rows:
        rows.add({"unit": "one", "lane": "a"})
        whole = path.read_bytes()
        rows.add({"unit": "one", "lane": "b"})
    text = path.read_bytes()
    for cut in range(len(whole), len(text)):
        path.write_bytes(text[:cut])
        with Journal(path, COMMON) as rows:
            assert [r["lane"] for r in rows.rows] == ["a"]
            rows.add({"unit": "one", "lane": "c"})
            assert [json.loads(line)["lane"] for line in path.open()] == ["a", "c"]


def test_one_run_at_a_time(rows):
    with pytest.raises(BusyError, match="wait for it or end it"):
        Journal(rows.path, COMMON)


@pytest.mark.parametrize("key", journal.SAME)
def test_another_gpu_code_or_version_starts_anew(tmp_path, key):
    path = tmp_path / "rows.jsonl"
    with Journal(path, COMMON) as rows:
        rows.add({"unit": "one", "lane": "a"})
    with Journal(path, {**COMMON, key: "another"}) as rows:
        assert not rows.rows
        rows.add({"unit": "one", "lane": "b"})
    with Journal(path, COMMON) as rows:
        assert [r["lane"] for r in rows.rows] == ["a"]


def test_the_hash_is_of_what_is_timed(tmp_path):
    for name in journal.TIMED:
        if name.endswith(".py"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
        else:
            shutil.copytree(ROOT / name, tmp_path / name)
    first = journal.sources()
    assert journal.sources(root=tmp_path) == first
    kernels = tmp_path / "stan_infer" / "kernels"
    table_of = json.loads((kernels / "tuned.json").read_text())
    table_of["measured"] = {"sm90": {}}
    rules = journal.sources(root=tmp_path, with_table=False)
    (kernels / "tuned.json").write_text(json.dumps(table_of))
    assert journal.sources(root=tmp_path) != first
    assert journal.sources(root=tmp_path, with_table=False) == rules
    (kernels / "linear.py").write_text("\n" + (kernels / "linear.py").read_text())
    assert journal.sources(root=tmp_path, with_table=False) != rules


def test_ratios_are_of_the_same_round(monkeypatch):
    ticks = iter([1.0, 1.0, 2.0, 1.0, 4.0, 2.0, 8.0, 4.0])  # a round before, to count by
    device = Device("cpu", StandIn())
    device.is_dry = False
    monkeypatch.setattr(device, "ms", lambda run, flush: next(ticks))
    found = interleave(device, {"a": lambda: 0, "b": lambda: 0}, rounds=3)
    assert found["a"]["ratios"] == {"b": 0.5} and found["b"]["ratios"] == {"a": 2.0}
    assert found["a"]["ms_p50"] == 4.0 and found["b"]["ms_p50"] == 2.0


def test_the_headline_comes_first_and_fits_in_three_minutes():
    first, second, *_ = suite.units(suite.USUAL)
    assert first.kind == "rates" and second.spec["model"] == "stan-b16"
    assert (second.spec["batch"], second.spec["frames"]) == (8, 12)
    assert set(second.spec["lanes"]) == set(models.HEADLINE)
    assert {"eager bf16", "triton", "triton, library linears", "compile max-autotune"} == set(
        models.HEADLINE
    )
    limits = [models.seconds(lane) for lane in second.spec["lanes"]]
    to_set_up = 35  # two processes at most, the weights, the reference
    assert units.RATES_SECONDS + sum(limits) + to_set_up <= 180


def test_every_unit_is_of_a_kind_and_has_a_name_of_its_own():
    for found in (
        list(suite.units(suite.PARTS)), list(suite.units(suite.PARTS, dry=True)),
        list(tune.units()), list(tune.units(dry=True)),
    ):  # fmt: skip
        assert len({u.name for u in found}) == len(found)
        assert {u.kind for u in found} <= set(units.KINDS)
        json.dumps([u.spec for u in found])


@pytest.mark.parametrize("kind", [models.Baseline, models.FusedBaseline])
def test_baselines_copy_nothing_but_the_clips(kind):
    """In CUDA graphs, inputs without a static address are copied at every replay."""
    model = init_random(Stan(preset("stan-tiny"))).eval().requires_grad_(False)
    moving, static = [], []

    def backend(graph, inputs):
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                kept = node.meta.get("tensor_dict", {}).get("_dynamo_static_input_type")
                (static if kept else moving).append(node)
            # A tensor that is made anew in every call is one copy from the host each.
            assert "torch.tensor" not in str(node.target), node
        return graph

    torch._dynamo.reset()
    network = torch.compile(kind(model, "cpu"), backend=backend, fullgraph=True, dynamic=False)
    side = model.config.image_size
    clips = torch.randint(0, 256, (1, 2, side, side, 3), dtype=torch.uint8)
    with torch.inference_mode():
        got = network(clips).float()
        wanted = model.encode_video(clips).mean(1)
    assert float((got - wanted).abs().max() / wanted.abs().max()) < models.TOLERANCE["bf16"]
    assert len(moving) == 1 and len(static) > 50


def test_the_graph_of_the_stand_in_computes_anew():
    cuda, x = StandIn(), torch.zeros(3)
    graph = cuda.CUDAGraph()
    with torch.inference_mode(), cuda.graph(graph):
        y = (x + 1).view(3, 1) * 2
    x.fill_(4.0)
    assert y[0] == 2
    graph.replay()
    assert (y == 10).all()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("module", [suite, tune])
def test_without_a_gpu(module, capsys):
    with pytest.raises(SystemExit) as raised:
        module.main([])
    said = capsys.readouterr().err
    assert raised.value.code == 3 and said.startswith("error: ") and said.count("\n") == 1


def test_shares_are_of_this_gpus_own_rates(rows):
    rows.add({"unit": "peak rates", "lane": "peak rates", "bf16_tflops": 100.0,
              "fp8_tflops": 200.0, "copy_tbs": 2.0})  # fmt: skip
    rows.add({"unit": "m", "lane": "triton", "model": "m", "tflop": 0.5, "ms_p50": 10.0})
    kernel = {"unit": "k", "operation": "k", "flops": 0, "bytes": 2 * 10**9, "in_fp8": False}
    rows.add({**kernel, "lane": "k: a", "ms_p50": 2.0})
    rows.add({**kernel, "lane": "k: b", "ms_p50": 1.0, "bytes": 1000})
    network, large, small = timed(rows.rows)
    assert network["share_of_ceiling"] == 0.5 and large["share_of_floor"] == 0.5
    assert small["share_of_floor"] is None  # a cache holds it


def test_targets_are_held_against_rows(monkeypatch):
    from benchmarks.tables import gpu

    monkeypatch.setattr(gpu, "read_rows", lambda kind: [])
    assert gpu.targets_table().count("not measured") == len(gpu.TARGETS)
    shape = {"model": "stan-b16", "batch": 8, "frames": 12, "gpu": "NVIDIA H100", "unit": "a"}
    shape |= {"stand_in": False, "tflop": 4.9, "ratios": {}}
    own, other = {**shape, "lane": "triton"}, {**shape, "lane": "compile max-autotune"}
    found = [
        {**own, "ms_p50": 9.0},
        {**other, "ms_p50": 10.0, "ratios": {"triton": 1 / 1.1}},
        {**own, "ms_p50": 9.1, "unit": "b"},
        {**own, "ms_p50": 1.0, "gpu": "another"},
        {**own, "ms_p50": 1.0, "stand_in": True},
    ]
    monkeypatch.setattr(gpu, "read_rows", lambda kind: found)
    lines = gpu.targets_table().splitlines()
    assert lines[2].endswith("| 9.1,\N{NO-BREAK SPACE}met |")
    assert lines[3].endswith("| 1.1,\N{NO-BREAK SPACE}not\N{NO-BREAK SPACE}met |")


def test_what_is_measured_stands_beside_what_was_predicted(monkeypatch):
    from benchmarks.tables import gpu

    head = {"model": "stan-b16", "batch": 8, "frames": 12, "sm": "sm90"}
    times = dict.fromkeys(("memory_ms", "tensor_ms", "issue_ms", "predicted_ms"), 7.0)
    predicted = {**head, "gpu": "H100", "launches": 100, "gflop": 1, "mb": 1, **times}
    row = {**head, "lane": "triton", "unit": "a", "gpu": "An H100", "ms_p50": 8.5, "tflop": 1}
    row |= {"stand_in": False, "ratios": {}}
    for measured, words in (
        ([], "not measured"),
        ([row], "8.50"),
        ([{**row, "sm": "sm80"}], "not"),
    ):
        rows = {"launches": [predicted], "gpu": measured}
        monkeypatch.setattr(gpu, "read_rows", rows.get)
        assert words in gpu.launches_table().splitlines()[-1].split("|")[-2]
