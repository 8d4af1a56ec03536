"""The names in an .onnx file: the onnx package is the oracle, hostile files give InputError."""

import tempfile
from pathlib import Path

import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from stan_infer.artefacts import protobuf
from stan_infer.artefacts.onnx_file import check_external, read_graph
from stan_infer.errors import InputError


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


def places() -> dict[str, onnx.ModelProto]:
    """A model for every place, apart from weights and a node's value, where a tensor may lie."""
    inner = helper.make_graph([], "inner", [], [], [tensor("sub")])
    sparse = onnx.SparseTensorProto(values=tensor("v"), indices=tensor("i"))
    found = {"a subgraph": model(nodes=[helper.make_node("If", ["x"], ["z"], then_branch=inner)])}
    for name, field, value in (
        ("a list of tensors", "tensors", tensor("ts")),
        ("a list of graphs", "graphs", inner),
        ("a list of sparse tensors", "sparse_tensors", sparse),
    ):
        attribute = onnx.AttributeProto(name="a")
        getattr(attribute, field).append(value)
        found[name] = model()
        found[name].graph.node[0].attribute.append(attribute)
    found["a sparse tensor"] = model(nodes=[constant(sparse_value=sparse)])
    found["a sparse weight"] = model()
    found["a sparse weight"].graph.sparse_initializer.append(sparse)
    found["training"] = model()
    found["training"].training_info.add().algorithm.initializer.append(tensor("algorithm"))
    found["a function"] = model()
    found["a function"].functions.add(name="f", domain="d").node.append(constant(value=tensor("f")))
    return found


def oracle(message) -> tuple[set[str], set[tuple]]:
    """Locations and operations that protobuf itself finds, in whatever field they lie."""
    locations, operations = set(), set()
    if isinstance(message, TensorProto):
        locations = {e.value for e in message.external_data if e.key == "location"}
    if isinstance(message, onnx.NodeProto):
        operations = {(message.op_type, tuple(message.input), tuple(message.output))}
    for field, value in message.ListFields():
        if field.message_type is not None:
            for below in value if field.is_repeated else [value]:
                more = oracle(below)
                locations, operations = locations | more[0], operations | more[1]
    return locations, operations


def written(m: onnx.ModelProto | bytes, folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(m if isinstance(m, bytes) else m.SerializeToString())
    return path


@pytest.mark.parametrize("place", places())
def test_tensors_lie_in_weights_and_values_alone(tmp_path, place):
    """A tensor anywhere else is refused, so that none is overlooked."""
    with pytest.raises(InputError, match="which no graph written by stan_infer has"):
        read_graph(written(places()[place], tmp_path))


def test_locations_of_weights(tmp_path):
    form = read_graph(written(model(tensor("b", "w"), tensor("a", "v")), tmp_path))
    assert form.external == ["a", "b"] and form.external_bytes("a") == 4
    m = model(nodes=[constant(value=tensor("inside"))])
    with pytest.raises(InputError, match="reads a value of a node Constant from a file"):
        read_graph(written(m, tmp_path))


def test_a_model_without_external_data(tmp_path):
    path = written(model(helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])), tmp_path)
    assert read_graph(path).external == []
    check_external(read_graph(path), [])


OUTSIDE = (
    "../x", "/etc/passwd", "a/../../x", "C:\\x", "a\\b", "", "*/_ORT_MEM_ADDR_/*", "file:///etc/passwd",
    "m.onnx.data ", "./m.onnx.data",
)  # fmt: skip


@pytest.mark.parametrize("location", OUTSIDE)
def test_names_outside_the_folder_are_refused_even_when_listed(tmp_path, location):
    path = written(model(tensor(location)), tmp_path)
    for allowed in ([], ["m.onnx.data"], [location]):
        # "./" of a listed file is the file itself; it is refused when it is not listed so.
        if location.startswith("./") and location in allowed:
            continue
        with pytest.raises(InputError, match=r"reads weights from .* nothing was opened"):
            check_external(read_graph(path), allowed)


def test_only_listed_names_are_allowed(tmp_path):
    path = written(model(tensor("m.onnx.data"), tensor("w/2.data", "v")), tmp_path)
    check_external(read_graph(path), ["m.onnx.data", "w/2.data"])
    with pytest.raises(InputError, match=r"'w/2.data', which manifest.json does not list"):
        check_external(read_graph(path), ["m.onnx.data"])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def test_a_field_given_twice_hides_nothing(tmp_path):
    """Parsers take the last of a field's values, or merge them, each in its own way: refused."""
    entry = onnx.StringStringEntryProto
    first, second = (entry(key="location", value=v).SerializeToString() for v in ("a", "b"))
    weight = TensorProto(name="w", data_type=1, dims=[1], data_location=1).SerializeToString()
    whole = model().graph.SerializeToString()
    opset = field(8, onnx.OperatorSetIdProto(version=20).SerializeToString())
    for hidden in (
        field(5, weight + field(13, first + entry(value="c").SerializeToString())),
        field(5, weight + field(13, first) + field(13, second)),
        field(1, field(4, b"Identity") + field(4, b"Loop")),
        field(1, field(4, b"Identity") + field(5, field(1, b"a") + field(1, b"b"))),
    ):
        data = opset + field(7, whole + hidden)
        onnx.ModelProto.FromString(data)
        with pytest.raises(InputError, match=r"m\.onnx.*(well-formed|twice)"):
            read_graph(written(data, tmp_path))
    for twice in (opset + opset + field(7, whole), opset + field(7, whole) + field(7, whole)):
        onnx.ModelProto.FromString(twice)
        with pytest.raises(InputError, match="well-formed|operator sets"):
            read_graph(written(twice, tmp_path))


def test_a_location_without_a_value_is_an_empty_one(tmp_path):
    """Found by changing bytes at random."""
    t = tensor("x")
    t.external_data[1].ClearField("value")
    path = written(model(t), tmp_path)
    assert read_graph(path).external == [""]
    with pytest.raises(InputError, match="reads weights from ''"):
        check_external(read_graph(path), ["x"])


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


NO_GRAPHS = (
    b"", b"\x3a", b"<net></net>", b"PK\x03\x04" + bytes(40), b"\x3a\xff\xff\xff\xff\x0f",
    b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\xff" * 100, b"\x00\x00", b"\x38\x01",
    b"\x3b\x3c", nested(100), nested(20_000),
)  # fmt: skip


@pytest.mark.parametrize("data", NO_GRAPHS)
def test_hostile_bytes(tmp_path, data):
    with pytest.raises(InputError, match=r"m\.onnx"):
        read_graph(written(data, tmp_path))


def test_truncated_anywhere(tmp_path):
    whole = model(tensor("a"), nodes=[constant(value=tensor("b"))]).SerializeToString()
    for n in range(0, len(whole), 7):
        try:
            read_graph(written(whole[:n], tmp_path))
        except InputError:
            continue
        # A cut between two fields of the model leaves a model, which must still parse elsewhere.
        onnx.ModelProto.FromString(whole[:n])


def test_too_many_fields(tmp_path, monkeypatch):
    monkeypatch.setattr(protobuf, "MAX_FIELDS", 1000)
    with pytest.raises(InputError, match="more than 1000 protobuf fields"):
        read_graph(written(b"\x08\x01" * 2000, tmp_path))


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_graph(tmp_path / "none.onnx")


def test_metadata(tmp_path):
    m = model()
    assert read_graph(written(m, tmp_path)).metadata == {}
    helper.set_model_props(m, {"config_sha256": "ab", "ключ": ""})
    assert read_graph(written(m, tmp_path)).metadata == {"config_sha256": "ab", "ключ": ""}
    m.metadata_props.add(key="config_sha256", value="other")
    with pytest.raises(InputError, match="twice in the metadata"):
        read_graph(written(m, tmp_path))
    m = model()
    m.metadata_props.add(key="k", value="v" * (protobuf.MAX_TEXT + 1))
    with pytest.raises(InputError, match="well-formed"):
        read_graph(written(m, tmp_path))


def never_another_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = written(data, Path(folder))
        try:
            form = read_graph(path)
        except InputError:
            return
        try:
            parsed = onnx.ModelProto.FromString(data)
        except Exception:
            return  # protobuf's own class; the runtimes refuse such a file as well
        locations, operations = oracle(parsed)
        assert locations <= {*form.external}, "a parser sees a location that the reader does not"
        assert operations == {(n.op, n.inputs, n.outputs) for n in form.nodes}


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@example(b"\x3a\x00")
def test_random_bytes(data):
    never_another_error(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_random_changes_hide_nothing(data):
    """What protobuf finds in a damaged file, the reader finds too, or it refuses the file."""
    m = model(tensor("init"), nodes=[helper.make_node("Split", ["x"], ["a", "b"], axis=0)])
    whole = bytearray(m.SerializeToString())
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
