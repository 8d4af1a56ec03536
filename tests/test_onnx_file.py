"""The names in an .onnx file: the onnx package is the oracle, hostile files give InputError."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from stan_infer import onnx_file
from stan_infer.errors import InputError
from stan_infer.onnx_file import MESSAGES, check_external, external_locations, metadata_props


def tensor(location: str, name: str = "w") -> TensorProto:
    t = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
    t.data_location = TensorProto.EXTERNAL
    t.external_data.add(key="offset", value="0")
    t.external_data.add(key="location", value=location)
    return t


def model(*tensors: TensorProto, nodes=()) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    nodes = [helper.make_node("Identity", ["x"], ["y"]), *nodes]
    graph = helper.make_graph(nodes, "g", [x], [x], initializer=list(tensors))
    return helper.make_model(graph)


def constant(**attributes) -> onnx.NodeProto:
    return helper.make_node("Constant", [], ["c"], **attributes)


def sparse(location: str) -> onnx.SparseTensorProto:
    return onnx.SparseTensorProto(values=tensor(location), indices=tensor(f"{location}.i"))


def everywhere() -> onnx.ModelProto:
    """A model with an external tensor in every place that the format has."""
    inner = helper.make_graph([constant(value=tensor("t"))], "inner", [], [], [tensor("sub")])
    m = model(tensor("init"), nodes=[helper.make_node("If", ["x"], ["z"], then_branch=inner)])
    for name, field, value in (
        ("ts", "tensors", tensor("ts")),
        ("gs", "graphs", helper.make_graph([], "n", [], [], [tensor("gs")])),
        ("sts", "sparse_tensors", sparse("sts")),
    ):
        attribute = onnx.AttributeProto(name=name)
        getattr(attribute, field).append(value)
        m.graph.node[0].attribute.append(attribute)
    m.graph.node.append(constant(sparse_value=sparse("st")))
    m.graph.sparse_initializer.append(sparse("sparse"))
    m.training_info.add().algorithm.initializer.append(tensor("algorithm"))
    m.training_info[0].initialization.initializer.append(tensor("initialization"))
    function = m.functions.add(name="f", domain="d")
    function.node.append(constant(value=tensor("function")))
    function.attribute_proto.append(helper.make_attribute("a", tensor("default")))
    return m


def oracle(message) -> set[str]:
    """Locations that protobuf itself finds, in whatever field they lie."""
    found = set()
    if isinstance(message, TensorProto):
        found = {e.value for e in message.external_data if e.key == "location"}
    for field, value in message.ListFields():
        if field.message_type is not None:
            for below in value if field.is_repeated else [value]:
                found |= oracle(below)
    return found


def written(m: onnx.ModelProto | bytes, folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(m if isinstance(m, bytes) else m.SerializeToString())
    return path


def test_the_table_is_onnx_proto():
    """Every field of the installed onnx that leads to a tensor is in MESSAGES."""

    def leads(descriptor, seen=()) -> bool:
        if descriptor.name == "TensorProto":
            return True
        return any(
            f.message_type and f.message_type.name not in seen
            and leads(f.message_type, (*seen, descriptor.name))
            for f in descriptor.fields
        )  # fmt: skip

    for name, fields in MESSAGES.items():
        descriptor = getattr(onnx, name).DESCRIPTOR
        wanted = {
            f.number: f.message_type.name
            for f in descriptor.fields
            if f.message_type is not None and leads(f.message_type)
        }
        if name == "TensorProto":
            wanted = {descriptor.fields_by_name["external_data"].number: "StringStringEntryProto"}
        assert fields == wanted, name


def test_every_place_of_a_tensor_is_seen(tmp_path):
    m = everywhere()
    locations = external_locations(written(m, tmp_path))
    assert locations == sorted(oracle(m))
    assert len(locations) == 15


def test_a_model_without_external_data(tmp_path):
    path = written(model(helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])), tmp_path)
    assert external_locations(path) == []
    check_external(path, [])


@pytest.mark.parametrize(
    "location",
    [
        "../x",
        "/etc/passwd",
        "a/../../x",
        "C:\\x",
        "a\\b",
        "",
        "*/_ORT_MEM_ADDR_/*",
        "file:///etc/passwd",
        "m.onnx.data ",
        "./m.onnx.data",
    ],
)
def test_names_outside_the_folder_are_refused_even_when_listed(tmp_path, location):
    path = written(model(tensor(location)), tmp_path)
    for allowed in ([], ["m.onnx.data"], [location]):
        # "./" of a listed file is the file itself; it is refused when it is not listed so.
        if location.startswith("./") and location in allowed:
            continue
        with pytest.raises(InputError, match=r"reads weights from .* nothing was opened"):
            check_external(path, allowed)


def test_only_listed_names_are_allowed(tmp_path):
    path = written(model(tensor("m.onnx.data"), tensor("w/2.data", "v")), tmp_path)
    check_external(path, ["m.onnx.data", "w/2.data"])
    with pytest.raises(InputError, match=r"'w/2.data', which manifest.json does not list"):
        check_external(path, ["m.onnx.data"])


def test_a_field_given_twice_hides_nothing(tmp_path):
    """Parsers take the last of a field's values; all of them must be seen."""
    entry = onnx.StringStringEntryProto
    first, second = (entry(key="location", value=v).SerializeToString() for v in ("a", "b"))
    both = first + entry(value="c").SerializeToString()
    hidden = entry(key="offset").SerializeToString() + second
    raw = b"".join(bytes([13 << 3 | 2, len(e)]) + e for e in (both, hidden))
    graph = bytes([5 << 3 | 2, len(raw)]) + raw
    data = bytes([7 << 3 | 2, len(graph)]) + graph
    assert oracle(onnx.ModelProto.FromString(data)) == {"b", "c"}
    assert external_locations(written(data, tmp_path)) == ["a", "b", "c"]


def test_a_location_without_a_value_is_an_empty_one(tmp_path):
    """Found by changing bytes at random."""
    t = tensor("x")
    t.external_data[1].ClearField("value")
    path = written(model(t), tmp_path)
    assert external_locations(path) == [""]
    with pytest.raises(InputError, match="reads weights from ''"):
        check_external(path, ["x"])


def nested(depth: int) -> bytes:
    """`depth` graphs, each in an attribute of a node of the one around it."""
    body = b""
    for _ in range(depth):
        for number in (6, 5, 1):
            body = bytes([number << 3 | 2]) + varint(len(body)) + body
    return b"\x3a" + varint(len(body)) + body


def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x3a",
        b"<net></net>",
        b"PK\x03\x04" + bytes(40),
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\xff" * 100,
        b"\x00\x00",
        b"\x38\x01",
        b"\x3b\x3c",
        nested(100),
        nested(20_000),
    ],
)
def test_hostile_bytes(tmp_path, data):
    with pytest.raises(InputError, match=r"m\.onnx"):
        external_locations(written(data, tmp_path))


def test_truncated_anywhere(tmp_path):
    whole = everywhere().SerializeToString()
    for n in range(0, len(whole), 7):
        try:
            external_locations(written(whole[:n], tmp_path))
        except InputError:
            continue
        # A cut between two fields of the model leaves a model, which must still parse elsewhere.
        onnx.ModelProto.FromString(whole[:n])


def test_too_many_fields(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_file, "MAX_FIELDS", 1000)
    with pytest.raises(InputError, match="more than 1000 protobuf fields"):
        external_locations(written(b"\x08\x01" * 2000, tmp_path))


def test_a_missing_file(tmp_path):
    for call in (external_locations, metadata_props):
        with pytest.raises(InputError, match="cannot be read"):
            call(tmp_path / "none.onnx")


def test_metadata(tmp_path):
    m = model()
    assert metadata_props(written(m, tmp_path)) == {}
    helper.set_model_props(m, {"config_sha256": "ab", "ключ": ""})
    assert metadata_props(written(m, tmp_path)) == {"config_sha256": "ab", "ключ": ""}
    m.metadata_props.add(key="config_sha256", value="other")
    with pytest.raises(InputError, match="appears twice"):
        metadata_props(written(m, tmp_path))
    m = model()
    m.metadata_props.add(key="k", value="v" * (onnx_file.MAX_TEXT + 1))
    with pytest.raises(InputError, match="well-formed"):
        metadata_props(written(m, tmp_path))


def never_another_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(data, Path(folder))
        try:
            seen = set(external_locations(path))
        except InputError:
            return
        finally:
            try:
                metadata_props(path)
            except InputError:
                pass
        try:
            parsed = onnx.ModelProto.FromString(data)
        except Exception:
            return  # protobuf's own class; the runtimes refuse such a file as well
        assert oracle(parsed) <= seen, "a parser sees a location that the reader does not"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@example(b"\x3a\x00")
def test_random_bytes(data):
    never_another_error(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_random_changes_hide_nothing(data):
    """What protobuf finds in a damaged file, the reader finds too, or it refuses the file."""
    whole = bytearray(everywhere().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        kind = data.draw(st.sampled_from(["set", "insert", "delete"]))
        if kind == "set":
            whole[at] = data.draw(st.integers(0, 255))
        elif kind == "insert":
            whole[at:at] = data.draw(st.binary(min_size=1, max_size=6))
        else:
            del whole[at : at + data.draw(st.integers(1, 6))]
    never_another_error(bytes(whole))
