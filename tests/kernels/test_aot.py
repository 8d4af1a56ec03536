"""Every shipped configuration compiles for every GPU family, and is no worse than recorded."""

import ast
import json
import os

import pytest
import torch

from benchmarks import aot
from benchmarks.gpu.cases import Shape
from stan_infer.kernels import rule, tuned
from stan_infer.kernels.tuned import FAMILIES
from tests.conftest import ROOT, python

ROW = {
    "kernel": "_linear_kernel", "family": "sm90", "tile": [128, 128, 64, 8, 3], "registers": 100,
    "triton": "3.8.0", "spills": 0, "shared_bytes": 1000, "tensor": {"HGMMA": 4},
    "loop": {"instructions": 80, "shuffles": 0, "bulk_loads": 2},
}  # fmt: skip


def compiling(*words):
    """Run Python where kernels are compiled: they are interpreted in this process."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return python(*words, cwd=ROOT, env=env).stdout


def test_all_configurations():
    compiling("-m", "benchmarks.aot", "--check")


SAME_CODE = """
import dataclasses
import torch
from triton import JITFunction
from benchmarks import aot
from stan_infer.kernels import linear, tiles

def code(case, family="sm90"):
    for module in (linear, tiles):
        for one in vars(module).values():
            if isinstance(one, JITFunction):
                one.hash = None
                one.device_caches.clear()
    ((name, specialised),) = aot.calls(case, family)
    return specialised.code

cases = list(aot.cases("sm90", torch.float16, "cpu", full=False))
case = next(c for c in cases if c.operation == "linear" and "norm" in c.name)
kernel = linear._linear_persistent_kernel if case.tile.persistent else linear._linear_kernel
first = code(case)
kernel.starting_line_number += 7
assert code(case) == first
for function in (kernel, tiles.norm_of_parts):  # which the kernel calls
    before = function.src
    function._unsafe_update_src(before + "    # another\\n")
    assert code(case) != first, function
    function._unsafe_update_src(before)
    assert code(case) == first
tile = dataclasses.replace(case.tile, stages=case.tile.stages + 1)
others = {code(case, "sm80"), code(dataclasses.replace(case, tile=tile)), first}
assert len(others) == 3

# What is recorded for this code is not compiled, what is recorded for another is.
jobs = [j for j in aot.jobs() if j[:2] == ("sm90", "float16")]
job = next(j for j, c in zip(jobs, cases, strict=True) if c.operation == "head_rows")
(row,) = aot.compile_case(job)
planted = {**row, "registers": -1}
assert aot.compile_case(job, {aot._key(row): planted}) == [planted]
for change in ({"code": "other"}, {"triton": "other"}):
    assert aot.compile_case(job, {aot._key(row): planted | change}) == [row]
"""


def test_what_is_recorded_for_the_same_code_is_not_compiled_again():
    compiling("-c", SAME_CODE)


def test_each_kernel_is_compiled_although_recorded():
    rows = [json.loads(line) for line in aot.PATH.read_text().splitlines()]
    again = [r for r in rows if aot._key(r) in aot.to_compile_again(rows)]
    assert sorted(r["kernel"] for r in again) == sorted({r["kernel"] for r in rows})
    assert {r["family"] for r in again} == set(FAMILIES)


def test_what_is_recorded():
    rows = [json.loads(line) for line in aot.PATH.read_text().splitlines()]
    assert {r["family"] for r in rows} == set(FAMILIES)
    assert all(r["spills"] == 0 for r in rows)
    for family, name in (("sm90", "HGMMA"), ("sm100", "UTCHMMA"), ("sm80", "HMMA")):
        assert any(name in r["tensor"] for r in rows if r["family"] == family)


def recorded():
    return [json.loads(line) for line in aot.PATH.read_text().splitlines()]


def test_no_norm_in_the_inner_loop_of_a_product():
    """Sums over a row exchange values between threads; a product has none, in any family."""
    products = [r for r in recorded() if r["operation"] in aot.PRODUCTS]
    assert len(products) > 150
    assert all(r["loop"]["shuffles"] == 0 for r in products)
    # With the norm it had 292 instructions.
    tile = [128, 128, 64, 8, 3, 0, 1, False]
    own = [r for r in products if r["family"] == "sm90" and r["tile"] == tile]
    assert own and all(r["loop"]["instructions"] <= 130 for r in own)


@pytest.mark.parametrize("family", ["sm90", "sm100"])
@pytest.mark.parametrize("batch", [8, 32])
@pytest.mark.parametrize("size", [(196, 768, 16), (256, 1024, 14)])
def test_large_products_are_not_limited_by_their_instructions(family, batch, size):
    """In at most 60 % of the tensor cores' time, for whatever the rule picks by default."""
    shape, d = Shape(batch, 12, *size), size[1]
    for operation, n, k in (
        ("linear", 3 * d, d), ("linear", d, d), ("linear", 4 * d, d), ("linear", d, 4 * d),
        ("fp8_linear", 4 * d, d), ("fp8_linear", d, 4 * d),
    ):  # fmt: skip
        options = tuned.tiles(operation, family)
        processors = rule.gpu(family).processors
        tile = rule.fastest(options, operation, family, processors, shape.rows, n, k)
        own = rule.figures(family, tile, operation)
        tensor = rule.tensor_cycles(family, tile, 1 if operation == "fp8_linear" else 2)
        assert own.issue <= 0.6 * tensor, (operation, n, k, tile, own.issue / tensor)
    places = batch * shape.patches
    if tuned.fuses_qkv(family, torch.bfloat16, 12, places, shape.heads, d):
        tile = tuned.tiles("temporal_qkv_attention", family)[0]
        own = rule.figures(family, tile, "temporal_qkv_attention")
        assert own.issue <= 0.6 * 3 * rule.tensor_cycles(family, tile)


def test_the_persistent_form_loads_in_bulk():
    for family, name in (("sm90", "GMMA"), ("sm100", "UTC")):
        rows = [r for r in recorded() if r["kernel"] == "_linear_persistent_kernel"]
        own = [r for r in rows if r["family"] == family]
        assert {r["operation"] for r in own} == {"linear", "fp8_linear"}
        assert all(r["loop"]["bulk_loads"] == 2 for r in own)
        assert all(any(name in key for key in r["tensor"]) for r in own)


LOOPS = """
        /*0010*/                   MOV R1, c[0x0][0x28] ;
        /*0020*/                   LDG.E R2, [R4.64] ;
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0040*/                   SHFL.BFLY PT, R3, R2, 0x1, 0x1f ;
        /*0050*/               @P0 BRA 0x30 ;
        /*0060*/              @!P1 BRA 0x20 ;
        /*0070*/                   BRA 0x70;
"""


def test_the_innermost_loop_is_counted():
    assert aot.main_loop(LOOPS) == {"instructions": 3, "shuffles": 1, "bulk_loads": 0}
    assert aot.main_loop(LOOPS.replace("HMMA", "IADD")) is None


FEW = """
import torch
from benchmarks import aot
from benchmarks.gpu import cases
from stan_infer.kernels import linear, tuned
from stan_infer.kernels.tuned import Tile

codes = set()
for batch in range(1, 33):
    s = cases.Shape(batch=batch)
    new = cases.empty(torch.bfloat16, "meta")
    made = [cases.linear_case(s, new, "out: residual", 768, 768), cases.temporal_qkv(s, new)]
    made += [*cases.spatial(s, new), cases.class_attention(s, new), cases.temporal(s, new)]
    for case in made:
        tile = tuned.tiles(case.operation, "sm90")[-1]
        import dataclasses
        for name, made_ in aot.calls(dataclasses.replace(case, tile=tile), "sm90"):
            codes.add((name, case.name, made_.code))
print(len(codes))
"""


EARLY = """
import dataclasses, re
import torch
from benchmarks.gpu import cases, without_gpu
from stan_infer.kernels import tuned

WORDS = r"(ld\\.global|ld\\.acquire|st\\.global|cp\\.async|red\\.|atom)"
TOUCHES = re.compile(r"^\\s*(?:@!?%\\w+ )?" + WORDS, re.M)
seen = []

def look(kernel, *args, **options):
    text = kernel.warmup(*args, **options).asm["ptx"]
    body = text[text.index(".entry"):]
    wait, touched = body.find("griddepcontrol.wait"), TOUCHES.search(body)
    seen.append({
        "kernel": kernel.fn.__name__, "pdl": options.get("launch_pdl", False),
        "waits": body.count("griddepcontrol.wait"), "first": wait < touched.start(),
        "starts": "griddepcontrol.launch_dependents" in body[:max(wait, 0)],
        "fetches": "prefetch.global.L2" in body[:max(wait, 0)],
        "exits": bool(re.search(r"^\\s*(?:@!?%\\w+ )?(ret|exit)", body[:max(wait, 0)], re.M)),
    })

for family in ("sm90", "sm100"):
    s = cases.Shape()
    new = cases.empty(torch.bfloat16, "meta")
    made = cases.linear_case(s, new, "out: residual", 768, 768)
    for tile in (tuned.tiles("linear", family)[0], tuned.tiles("linear", family)[-1]):
        for dependent in (True, False):
            with without_gpu.launches(family, look):
                dataclasses.replace(made, tile=tile, dependent=dependent).run()
print(seen)
"""


def test_a_dependent_product_waits_before_it_touches_what_others_wrote():
    """In its PTX: dependents are let go and weights are fetched first; nothing
    else is read or written before the wait, which every program reaches. Without the switch there
    is none of it."""
    found = ast.literal_eval(compiling("-c", EARLY))
    assert len(found) == 8 and {r["kernel"] for r in found} == {
        *("_linear_kernel", "_linear_persistent_kernel")
    }  # fmt: skip
    for r in found:
        if r["pdl"]:
            assert r["waits"] == 1 and r["first"] and r["starts"] and not r["exits"], r
            assert r["fetches"] == (r["kernel"] == "_linear_kernel")
        else:
            assert r["waits"] == 0 and not r["starts"] and not r["fetches"], r


def test_a_batch_compiles_no_kernel_of_its_own():
    """32 batches with one tile each: a kernel per call and not one more, as no size of a batch is
    specialised (7: class attention is two)."""
    assert compiling("-c", FEW).split() == ["7"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"spills": 3}, "3 spill"),
        ({"shared_bytes": 228 * 1024}, "227 KiB allowed"),
        ({"tensor": {}}, "no tensor-core"),
        ({"tensor": {"HMMA": 8}}, "HGMMA"),
        ({"code": "a"}, "recorded for other code"),
        ({"registers": 120}, "registers 120, recorded 100"),
        ({"shared_bytes": 1200}, "shared_bytes 1200, recorded 1000"),
    ],
    ids=str,
)
def test_what_is_a_regression(change, words):
    found = list(aot.problems({**ROW, **change}, ROW))
    assert found == [] if words is None else any(words in f for f in found), found
    assert list(aot.problems({**ROW, **change}, {**ROW, "triton": "3.7.0"})) == [
        f for f in found if "recorded" not in f
    ]
    assert list(aot.problems(ROW, None)) == ["not recorded: run python -m benchmarks.aot"]
