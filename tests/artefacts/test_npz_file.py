"""Arrays of strangers: what numpy.savez wrote comes back, everything else is one InputError."""

import io
import random
import struct
import zipfile

import numpy as np
import pytest

from stan_infer.artefacts.npz_file import Field, read_npz
from stan_infer.errors import InputError
from tests.hostile.fuzz_torch_file import write_zip
from tests.processes import grown


def packed(save=np.savez, **arrays) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def npy(descr: str, shape: str, data: bytes = b"", order: str = "False") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def test_what_numpy_writes_comes_back():
    rng = np.random.default_rng(0)
    arrays = {
        "floats": rng.standard_normal((3, 4)).astype(np.float32),
        "flipped": np.asfortranarray(rng.integers(0, 9, (2, 5))),
        "scalar": np.array(3, np.int64),
        "empty": np.zeros((0, 7), np.uint8),
        "text": np.array(["a", "é\udcff", ""]),
        "other": np.array([{}], object),
    }
    data = packed(**arrays)
    fields = {
        "floats": Field("float32", ("n", 4)),
        "flipped": Field("int32 int64", (2, "m")),
        "scalar": Field("int64", ()),
        "empty": Field("uint8"),
        "text": Field("str", ("n",)),
    }
    found = read_npz(data, fields)
    assert list(found) == list(fields)  # other arrays are not read
    for name, value in found.items():
        np.testing.assert_array_equal(value, arrays[name])


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (Field("float64"), "it must be float64"),
        (Field("float32", (3, 5)), r"shape \[3, 4\]; it must be \[3, 5\]"),
        (Field("float32", ("n", "n")), r"it must be \[3, 3\]"),
        (Field("float32", (3,)), "shape"),
        (Field("str"), "it must be str"),
    ],
)
def test_another_dtype_or_shape(field, words):
    data = packed(a=np.zeros((3, 4), np.float32))
    with pytest.raises(InputError, match=words):
        read_npz(data, {"a": field})
    with pytest.raises(InputError, match="no array 'b'"):
        read_npz(data, {"b": field})


BAD = {
    "nothing": b"",
    "cut off": packed(a=np.zeros(100, np.float32))[:300],
    "packed": packed(np.savez_compressed, a=np.zeros(100, np.float32)),
    "objects": packed(a=np.array([{}], object)),
    "big endian": packed(a=np.zeros(3, ">f4")),
    "records": packed(a=np.zeros(3, [("x", "f4")])),
    "no magic": write_zip({"a.npy": b"123"}),
    "short": write_zip({"a.npy": b"\x93NUMPY\x01\x00\xff\xff{"}),
    "more than it has": write_zip({"a.npy": npy("'<f4'", "(1000000000,)", bytes(4))}),
    "no such dtype": write_zip({"a.npy": npy("'<q4'", "(1,)", bytes(4))}),
    "wide text": write_zip({"a.npy": npy("'<U0'", "(100000000000,)")}),
    "huge and empty": write_zip({"a.npy": npy("'<f4'", "(0, 100000000000000, 100000000000000)")}),
    "many axes": write_zip({"a.npy": npy("'<f4'", "(" + "1, " * 40 + ")", bytes(4))}),
    "code": write_zip({"a.npy": npy("__import__('os')", "(1,)", bytes(4))}),
    "deep": write_zip({"a.npy": npy("'<f4'", "(" * 3000, bytes(4))}),
    "no such character": write_zip({"a.npy": npy("'<U1'", "(1,)", b"\xff" * 4)}),
    "twice": write_zip({"a.npy": npy("'<f4'", "(1,)", bytes(4))}).replace(b"b.npy", b"a.npy"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_numpy_does_not_write(name, tmp_path):
    path = tmp_path / "x.npz"
    path.write_bytes(BAD[name])
    dtype = "str" if "text" in name or "character" in name else "float32"
    with pytest.raises(InputError) as caught:
        read_npz(path, {"a": Field(dtype)})
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def test_places_that_are_no_files(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match=str(path)):
            read_npz(path, {"a": Field("float32")})


def test_single_bit_flips_change_no_value():
    """A flip is refused, or it lies in bytes that do not matter and the arrays are the same."""
    rng, numbers = random.Random(0), np.random.default_rng(0)
    arrays = {"n": np.array(["one", "two"]), "x": numbers.standard_normal((2, 9), np.float32)}
    data = packed(**arrays)
    fields = {"n": Field("str", ("k",)), "x": Field("float32", ("k", 9))}
    for bit in rng.sample(range(8 * len(data)), 400):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = read_npz(bytes(flipped), fields)
        except InputError:
            continue
        for name, value in arrays.items():
            np.testing.assert_array_equal(found[name], value)


def test_a_bomb_takes_no_memory(tmp_path):
    sound, bomb = tmp_path / "sound.npz", tmp_path / "bomb.npz"
    np.savez(sound, a=np.zeros(3, np.float32))
    header = npy("'<f4'", "(536870912,)")
    with (
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as z,
        z.open("a.npy", "w", force_zip64=True) as f,
    ):
        f.write(header)
        for _ in range(512):
            f.write(bytes(2**22))
    assert bomb.stat().st_size < 3 * 2**20
    reader = (
        "from stan_infer.artefacts.npz_file import Field, read_npz\n"
        "import numpy\n"
        "def read(path): return read_npz(path, {'a': Field('float32')})\n"
    )
    took, error = grown(reader, bomb, sound)
    assert str(bomb) in error and took < 16 * 2**20  # it unpacks to 2 GiB
