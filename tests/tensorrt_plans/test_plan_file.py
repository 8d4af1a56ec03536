"""Plans and their sidecars from strangers, read without TensorRT."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stan_infer.artefacts.folder import is_engine_file
from stan_infer.errors import InputError
from stan_infer.tensorrt_plans.plan_file import (
    Plan,
    check_device,
    check_version,
    new_plan,
    read_header,
    read_plan,
    sidecar_path,
)
from tests.conftest import flip, python
from tests.tensorrt_plans.conftest import edit

SIDECAR = {
    "flavor": "tensorrt_rtx",
    "role": "video",
    "precision": "fp16",
    "trt_version": [1, 7, 1, 116],
    "profiles": [
        {"video": [[1, 8, 4, 4, 3]] * 3},
        {"video": [[1, 1, 4, 4, 3], [1, 8, 4, 4, 3], [8, 64, 4, 4, 3]]},
    ],
    "io": [{"name": "video", "mode": "input", "dtype": "uint8", "shape": [-1, -1, 4, 4, 3]}],
    "targets": ["sm_80", "sm_89"],
    "flags": [],
}


def header(total, version=b"\x01\x07\x01\x74", targets=8):
    first = b"vtrt" + bytes(12) + struct.pack("<Q", total) + version
    return first + b"vtrt" + struct.pack("<I", targets) + bytes(20) + struct.pack("<Q", 7)


def write(folder, body=b"code" * 50, **changes):
    path = folder / "engines" / "video.fp16.trt-rtx.plan"
    path.parent.mkdir(exist_ok=True)
    return put(path, header(64 + len(body)) + body, **changes)


def put(path, content, **changes):
    with new_plan(path) as (temporary, sidecar):
        temporary.write_bytes(content)
        sidecar |= SIDECAR | changes
    return path


def test_what_is_written_is_read(tmp_path):
    path = write(tmp_path)
    plan = read_plan(path)
    assert (plan.engine, plan.flavor, plan.role) == ("trt-rtx", "tensorrt_rtx", "video")
    assert plan.version == (1, 7, 1, 116)
    assert plan.load() == path.read_bytes()
    assert read_header(path) == {
        "bytes": 264, "version": [1, 7, 1, 116], "targets": ["sm_89"], "weight_bytes": 7,
    }  # fmt: skip


def test_it_needs_no_tensorrt_and_no_torch(tmp_path):
    path = write(tmp_path)
    code = (
        "import sys; sys.modules.update(tensorrt=None, tensorrt_rtx=None, torch=None)\n"
        f"sys.argv = ['stan-infer', 'inspect', {str(path)!r}, '--json']\n"
        "from stan_infer.cli.main import main; main()"
    )
    shown = json.loads(python("-c", code).stdout)
    assert shown["engine"] == "trt-rtx" and shown["header"]["version"] == [1, 7, 1, 116]


def test_a_failed_write_leaves_the_earlier_pair(tmp_path):
    path = write(tmp_path)
    before = path.read_bytes(), sidecar_path(path).read_bytes()
    with pytest.raises(KeyboardInterrupt), new_plan(path) as (temporary, _):
        temporary.write_bytes(b"half")
        assert is_engine_file(f"engines/{temporary.name}")  # a reader of the folder passes over it
        raise KeyboardInterrupt
    assert (path.read_bytes(), sidecar_path(path).read_bytes()) == before
    assert len(list(path.parent.iterdir())) == 2


def test_one_byte_changed(tmp_path):
    path = write(tmp_path)
    flip(path, 100)
    for read in (lambda: read_plan(path), lambda: read_plan(path, check_hash=False).load()):
        with pytest.raises(
            InputError, match="was changed after it was built.*--format tensorrt-rt"
        ):
            read()


def test_truncated_and_foreign(tmp_path):
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="has 100 bytes, its sidecar says 264: an incomplete copy"):
        read_plan(path)
    put(path, b"\x08\x0a" + bytes(300))
    with pytest.raises(InputError, match="is not a plan of TensorRT-RTX although"):
        read_plan(path)
    sidecar_path(path).unlink()
    with pytest.raises(InputError, match="looks like a plan, but .*.plan.json is not beside it"):
        read_plan(path)
    path.write_bytes(header(64))
    with pytest.raises(InputError, match="looks like a plan of TensorRT-RTX 1.7.1.116, but"):
        read_plan(path)
    with pytest.raises(InputError, match="no such file"):
        read_plan(tmp_path / "none.plan")


MALFORMED = (
    *({"trt_version": v} for v in ([10**30] * 3, [True] * 3, ["1", "7", "1"], [], "new")),
    {"targets": "sm_89"},
    {"targets": [89]},
    {"built_on": "sm_89"},
    {"flags": 5},
    {"options": [1]},
    {"options": {"level": "9"}},
    {"plan_sha256": "../../x"},
    {"flavor": "tensorflow"},
    {"profiles": [{"video": [[1], [1, 2], [1]]}]},
    {"profiles": 3},
    {"io": [{}]},
    {"role": 1},
)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *((changes, "is malformed") for changes in MALFORMED),
        ({"plan_bytes": None}, "is malformed: plan_bytes: Expected `int`, got `null`"),
        ({"plan_bytes": 2**40}, "is malformed: plan_bytes"),
        ({"schema": "2.0"}, "has schema '2.0'; this version reads 1.0"),
        ({"schema": None}, "has schema"),
    ],
    ids=str,
)
def test_malformed_sidecars(tmp_path, changes, words):
    path = write(tmp_path)
    edit(path, **changes)
    with pytest.raises(InputError, match=words):
        read_plan(path)


TEXTS = ["", "{", "[]", "3", '"a"', "[" * 10_000, "\udcff"]


@pytest.mark.parametrize(
    ("text", "words"), [*((t, "is not") for t in TEXTS), (" " * (2**20 + 1), "at most 1048576")]
)
def test_sidecars_that_are_no_json_objects_or_too_long(tmp_path, text, words):
    path = write(tmp_path)
    sidecar_path(path).write_text(text, errors="surrogateescape")
    with pytest.raises(InputError, match=words):
        read_plan(path)


@given(st.binary(max_size=80))
def test_any_header(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.plan"
    path.write_bytes(data)
    found = read_header(path)
    assert found is None or data[:4] == b"vtrt"


def plan_of(path, **changes) -> Plan:
    edit(path, **changes)
    return read_plan(path, check_hash=False)


def test_other_versions_are_refused_with_both_and_the_command(tmp_path):
    path = write(tmp_path)
    plan = read_plan(path)
    check_version(plan, (1, 7, 1, 200))
    for installed in ((1, 7, 2, 1), (1, 8, 1, 1), (2, 7, 1, 116)):
        with pytest.raises(
            InputError, match=r"built by tensorrt_rtx 1.7.1.116; installed is .*exp"
        ):
            check_version(plan, installed)
    lasting = plan_of(path, flags=["VERSION_COMPATIBLE"])
    for installed in ((1, 7, 1, 116), (1, 9, 0, 0)):
        with pytest.raises(InputError, match="which is host code, and this program loads none"):
            check_version(lasting, installed)


def test_other_gpus_are_refused_with_both_and_the_command(tmp_path):
    path = write(tmp_path)
    check_device(read_plan(path), "sm_89", "RTX 4090")
    with pytest.raises(InputError, match="built for sm_80, sm_89; this GPU is RTX 5090, sm_120:"):
        check_device(read_plan(path), "sm_120", "RTX 5090")
    one = plan_of(path, targets=[], built_on={"sm": "sm_90"})
    check_device(one, "sm_90", "H100")
    with pytest.raises(InputError, match="built for sm_90; this GPU is A100, sm_80"):
        check_device(one, "sm_80", "A100")
    wide = plan_of(path, targets=[], built_on={"sm": "sm_90"}, hardware_compatibility="AMPERE_PLUS")
    check_device(wide, "sm_120", "RTX 5090")
    with pytest.raises(InputError, match="sm_90 and newer; this GPU is T4"):
        check_device(wide, "sm_75", "T4")


def test_the_narrowest_profile_that_takes_a_shape(tmp_path):
    plan = read_plan(write(tmp_path))
    assert plan.profile_of({"video": (1, 8, 4, 4, 3)}) == 0
    assert plan.profile_of({"video": (1, 9, 4, 4, 3)}) == 1
    assert plan.profile_of({"video": (8, 64, 4, 4, 3)}) == 1
    for shape in ((9, 1, 4, 4, 3), (1, 65, 4, 4, 3), (1, 8, 4, 4), (1, 8, 5, 4, 3)):
        with pytest.raises(InputError, match="takes video 1x8x4x4x3 to 1x8x4x4x3; video 1x1x4x4"):
            plan.profile_of({"video": shape})
    with pytest.raises(InputError, match="no profile for vidoe"):
        plan.profile_of({"vidoe": (1, 8, 4, 4, 3)})


def test_the_command_names_the_folder(tmp_path, monkeypatch):
    path = write(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert read_plan(path).rebuild() == "stan-infer export . --format tensorrt-rtx"
    monkeypatch.chdir(tmp_path / "engines")
    assert read_plan(path.name).rebuild() == "stan-infer export .. --format tensorrt-rtx"
