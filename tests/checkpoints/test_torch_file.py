"""Checkpoints of strangers: the right tensors out of sound files, InputError from all others."""

import contextlib
import dataclasses
import datetime
import enum
import functools
import io
import os
import pickle
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from stan_infer.checkpoints.torch_file import TensorInfo, open_torch_file
from stan_infer.errors import InputError
from tests.conftest import GOLDEN_CASES, ROOT, python
from tests.hostile.fuzz_torch_file import fuzz, read_zip, seed_files, write_zip
from tests.processes import grown

MIB = 1 << 20


class Stored:
    """Pickles as a reference to a stored array."""

    def __init__(self, numel, key="0", kind=torch.FloatStorage, place="cpu"):
        self.record = ("storage", kind, key, place, numel)


class Made:
    """Pickles as a call of `function`, whatever that is."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.record if isinstance(obj, Stored) else None


def pickled(value, protocol=2):
    file = io.BytesIO()
    _Pickler(file, protocol).dump(value)
    return file.getvalue()


def view(storage, offset, size, stride):
    return Made(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {})


SOUND = pickled({"w": view(Stored(4), 0, (4,), (1,))})


def checkpoint(path, pickle_bytes, *, data=b"\0" * 16, **records):
    named = {f"archive/{k}": v for k, v in records.items()}
    path.write_bytes(write_zip({"archive/data.pkl": pickle_bytes, "archive/data/0": data, **named}))
    return path


def refused(path, *words):
    with pytest.raises(InputError) as caught:
        open_torch_file(path)
    text = str(caught.value)
    assert str(path) in text and len(text) < 1500 and text.isprintable(), text
    for word in words:
        assert word in text.replace(str(path), ""), text


def same(path, wanted):
    with open_torch_file(path) as file:
        assert list(file.tensors) == list(wanted)
        for name, value in wanted.items():
            assert file.tensors[name] == TensorInfo(
                name, str(value.dtype).removeprefix("torch."), tuple(value.shape)
            )
            got = file.read(name)
            assert got.dtype == value.dtype and got.is_contiguous()
            assert torch.equal(got, value.detach()), name
            assert got.untyped_storage().nbytes() == got.numel() * got.element_size()
        return file.hints


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pth"


# Sound files.


class _Stub:
    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


class _Stubs:
    """Stands for the pickle module in torch.load: resolves what a tensor needs, nothing else."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            known = module in ("collections", "torch._utils") or module.startswith("torch")
            return super().find_class(module, name) if known else _Stub

    load, dump = pickle.load, pickle.dump


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden_files_equal_torch_load(golden, name):
    path = golden / name
    if name[0] in "ef":
        whole = torch.load(path, weights_only=True)
    else:
        whole = torch.load(path, weights_only=False, pickle_module=_Stubs)
    hints = same(path, whole.get("state_dict", whole))
    if name[0] in "abcd":
        assert hints["layout"] == "mmengine" and hints["epoch"] == 1
        assert "clip_len" in hints["cfg"] or "model" in hints["cfg"]
    else:
        assert hints["layout"] == {"e": "mmcv", "f": "flat"}[name[0]]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_kind_of_tensor(path, protocol):
    base = torch.randn(6, 4)
    kinds = (torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32)
    state = OrderedDict(
        base=base,
        transposed=base.t(),
        part=base[2:5, 1:3],
        column=base[:, 1],
        unit=base[:1].t(),
        permuted=torch.randn(2, 3, 4, dtype=torch.float64).permute(2, 0, 1),
        parameter=torch.nn.Parameter(torch.randn(3)),
        scalar=torch.tensor(7),
        empty=torch.zeros(0, 5),
        flags=torch.tensor([True, False, True]),
        complex=torch.randn(2, dtype=torch.complex64),
        **{str(d): torch.arange(5).to(d) for d in (*kinds, torch.bfloat16, torch.float16)},
    )
    torch.save(state, path, pickle_protocol=protocol)
    assert same(path, state)["layout"] == "flat"


def test_a_module_with_metadata_and_buffers(path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save(model.state_dict(), path)
    same(path, model.state_dict())
    model[0].weight.note = "a parameter with a state of its own"
    torch.save({"model": dict(model.named_parameters())}, path)
    same(path, dict(model.named_parameters()))


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "module", "net.params"])
def test_wrappers(path, wrapper):
    state = {"w": torch.randn(3), "b": torch.zeros(1)}
    whole = state
    for name in reversed(wrapper.split(".")):
        whole = {"epoch": 4, name: whole, "optimizer": {"state": {0: torch.ones(9)}, "lr": 0.1}}
    torch.save(whole, path)
    others = ["epoch", "optimizer"]
    told = {"layout": "wrapped", "wrapper": wrapper, "cfg": None, "epoch": 4, "others": others}
    assert same(path, state) == told


def test_trainer_extras_are_inert_and_long_texts_are_found(path):
    cfg = "model = dict(depth=4)  # \u00e9\n" * 3000
    meta = {"cfg": cfg, "epoch": 2, "when": datetime.datetime(2024, 1, 1)}
    extras = {"path": Path("x"), "set": {1}, "array": np.arange(9.0), "scalar": np.float32(3)}
    extras |= {"key": {(1, 2): 3}, "long": "x" * (3 * MIB), "big": 2**200, "n": bytearray(9)}
    state = {"w": torch.randn(3)}
    for protocol in (2, 5):
        whole = {"meta": meta, "state_dict": state, "extras": extras}
        torch.save(whole, path, pickle_protocol=protocol)
        hints = same(path, state)
        assert hints["layout"] == "mmcv" and hints["cfg"] == cfg and hints["others"] == ["extras"]


def test_a_64_bit_directory(path):
    seed = seed_files()[0]
    assert b"PK\x06\x06" in seed  # torch always writes one
    records = read_zip(seed)
    plain = write_zip(records)
    end, n = len(plain) - 22, len(records)
    offset, size = struct.unpack("<2I", plain[end + 16 : end + 20] + plain[end + 12 : end + 16])
    big = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, n, n, size, offset)
    big += struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    small = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, n, n, 2**32 - 1, 2**32 - 1, 0)
    path.write_bytes(plain[:end] + big + small)
    with open_torch_file(path) as file:
        assert "a" in file.tensors
    path.write_bytes(plain[:end] + big.replace(b"PK\x06\x06,", b"PK\x06\x06-") + small)
    refused(path, "64-bit")


def test_a_file_beyond_4_gib(path):
    numel = 5 << 28
    state = {
        "end": view(Stored(numel), numel - 2, (2,), (1,)),
        "after": view(Stored(2, key="1"), 0, (2,), (1,)),
    }
    values, size, wide = struct.pack("<2f", 3, 4), 4 * numel, 2**32 - 1
    start = write_zip({"archive/data.pkl": pickled(state)})
    first, listing = start[: start.index(b"PK\x01\x02")], start[start.index(b"PK\x01\x02") : -22]
    with path.open("wb") as file:  # with a hole: it takes no room on the disk
        file.write(first)
        for name, data, room in (("0", values, size), ("1", values, 8)):
            at, big = file.tell(), room > wide
            raw = f"archive/data/{name}".encode()
            stored = wide if big else room
            sizes = struct.pack("<3I", 0, stored, stored)
            file.write(b"PK\x03\x04" + bytes(10) + sizes + struct.pack("<2H", len(raw), 0) + raw)
            file.seek(room - 8, os.SEEK_CUR)
            file.write(data)
            far = at > wide
            extra = (struct.pack("<2Q", room, room) if big else b"") + struct.pack("<Q", at) * far
            extra = struct.pack("<2H", 1, len(extra)) + extra if extra else b""
            listing += b"PK\x01\x02" + bytes(12) + sizes
            listing += struct.pack("<2H", len(raw), len(extra)) + bytes(10)
            listing += struct.pack("<I", wide if far else at) + raw + extra
        at = file.tell()
        big_end = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 3, 3, len(listing), at)
        locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, at + len(listing), 1)
        end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 3, 3, len(listing), wide, 0)
        file.write(listing + big_end + locator + end)
    same(path, {"end": torch.tensor([3.0, 4.0]), "after": torch.tensor([3.0, 4.0])})


def test_reading_what_is_not_there_and_what_has_gone(path):
    torch.save({"weight": torch.zeros(1000)}, path)
    with open_torch_file(path) as file:
        with pytest.raises(InputError, match="did you mean 'weight'"):
            file.read("wieght")
        os.truncate(path, 500)
        with pytest.raises(InputError, match="shorter"):
            file.read("weight")


# Other files.


def test_other_formats_are_named(path, tmp_path):
    torch.save({"w": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
    refused(path, "before 1.6", "torch.save(torch.load(path)")
    path.write_bytes(b"\0" * 257 + b"ustar\0" + b"\0" * 1000)
    refused(path, "tar archive")
    path.write_bytes(b"")
    refused(path, "empty")
    path.write_text("hello\n")
    refused(path, "this is a text, not a checkpoint")
    path.write_bytes(b"\x08\t\x12\nstan_infer")
    refused(path, "an ONNX graph, not a checkpoint: give its exported folder")
    path.write_bytes(b"\x1f\x8b\x08" + bytes(20))
    refused(path, "an archive, not a checkpoint: unpack it")
    path.write_bytes(b"\x01\x02\x03" * 20)
    refused(path, "not a PyTorch checkpoint")
    path.write_bytes(write_zip({"word/document.xml": b"x"}))
    refused(path, "0 records")
    refused(tmp_path, "not a regular file")
    refused(tmp_path / "none.pth", "No such file")
    with pytest.raises(InputError):
        open_torch_file(Path("a\0b"))


def test_pipes_and_devices_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    refused(tmp_path / "pipe.pth", "not a regular file")
    refused(Path("/dev/zero"), "not a regular file")


def test_truncated_at_any_length(path):
    data = seed_files()[0]
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        refused(path)


def test_big_endian_is_refused(path):
    checkpoint(path, SOUND, byteorder=b"big")
    refused(path, "byte order", "big")


# Hostile containers.


def test_a_compressed_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", SOUND)
        z.writestr("archive/data/0", b"\0" * (64 * MIB))
    assert path.stat().st_size < MIB
    refused(path, "compressed")


def _directory_field(data, name, offset, fmt, value):
    """Change a field of the directory's header of one record."""
    at = data.index(name, data.index(b"PK\x01\x02")) - 46 + offset
    return data[:at] + struct.pack(fmt, value) + data[at + struct.calcsize(fmt) :]


def test_lying_directories(path):
    data = write_zip({"archive/data.pkl": SOUND, "archive/data/0": b"\0" * 16, "archive/x": b"y"})
    for offset, kind, value, word in (
        (42, "<I", 0, "where the directory"),
        (42, "<I", 2**31, "beyond"),
        (20, "<I", 2**31, "packed"),
        (8, "<H", 1, "encrypted"),
        (24, "<I", 2**32 - 1, "64-bit"),
    ):
        path.write_bytes(_directory_field(data, b"archive/data/0", offset, kind, value))
        refused(path, word)
    path.write_bytes(data.replace(b"archive/data/0", b"archive/data/9", 1))
    refused(path, "where the directory")
    path.write_bytes(data.replace(b"archive/x", b"archive/\xff"))
    refused(path, "UTF-8")
    twice = write_zip({"archive/data.pkl": SOUND, "archive/data.pkk": SOUND})
    path.write_bytes(twice.replace(b"archive/data.pkk", b"archive/data.pkl"))
    refused(path, "twice")
    at = len(data) - 22
    for count, size in ((2**16 - 1, None), (2, None), (3, 2**31), (3, 0)):
        end = bytearray(data[at:])
        end[8:12] = struct.pack("<2H", count, count)
        end[12:16] = end[12:16] if size is None else struct.pack("<I", size)
        path.write_bytes(data[:at] + end)
        refused(path, "zip directory")
    path.write_bytes(data[:at] + data[at : at + 20] + b"\x05\0junk")
    refused(path, "no zip directory")


def test_records_within_records(path):
    inner = write_zip({"archive/y": b"z"})[:40]
    data = write_zip({"archive/data.pkl": inner * 2, "archive/y": b"z"})
    path.write_bytes(_directory_field(data, b"archive/y", 42, "<I", data.index(inner)))
    refused(path, "overlaps")


def test_a_directory_too_large_is_not_read(path):
    records = write_zip({"archive/data.pkl": b"\x80\x02N."})
    at, n = len(records) - 22, 2**40
    big = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, n, n, n, 0)
    big += struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)
    path.write_bytes(records[:at] + big + b"PK\x05\x06\0\0\0\0" + b"\xff" * 12 + b"\0\0")
    refused(path, "at most 100000")


# Hostile tensors.


@pytest.mark.parametrize(
    ("numel", "offset", "size", "stride", "word"),
    [
        (4, 1, (4,), (1,), "more than the 4"),
        (4, 5, (), (), "more than the 4"),
        (4, -1, (4,), (1,), "sizes"),
        (4, 3, (4,), (-1,), "sizes"),
        (4, 0, (-4,), (1,), "sizes"),
        (4, 0, (True,), (1,), "sizes"),
        (4, True, (1,), (1,), "sizes"),
        (4, 0, [4], [1], "sizes"),
        (4, 0, (4.0,), (1,), "sizes"),
        (4, 0, (2, 2), (1,), "2 axes and 1 strides"),
        (4, 0, (1,) * 17, (1,) * 17, "sizes"),
        (4, 0, (10**12,), (0,), "repeats"),
        (4, 0, (2, 2), (1, 1), "repeats"),
        (4, 0, (3, 2), (2, 1), "more than the 4"),
        (4, 0, (2**62, 2**62), (1, 2**62), "more than the 4"),
        (4, 0, (0, 2**62, 2**62), (1, 1, 1), "more than the 4"),
        (4, 0, (10**100,), (1,), "more than the 4"),
        (10**12, 0, (10**12,), (1,), "has 16 bytes"),
        (-4, 0, (4,), (1,), "sizes"),
        (8, 0, (4,), (1,), "has 16 bytes"),
    ],
)
def test_tensors_that_their_bytes_do_not_back(path, numel, offset, size, stride, word):
    checkpoint(path, pickled({"w": view(Stored(numel), offset, size, stride)}))
    refused(path, "tensor w", word)


def test_storages_that_do_not_fit(path):
    rebuild = torch._utils._rebuild_tensor_v2
    for made, word in (
        *(
            (view(storage, 0, (4,), (1,)), word)
            for storage, word in (
                (Stored(4, key="../../etc/passwd"), "key"),
                (Stored(4, key="1"), "missing"),
                (Stored(4, key=""), "key"),
                (Stored(4, key=[]), "key"),
                (Stored(4, kind="FloatStorage"), "text"),
                (Stored(4, kind=OrderedDict), "collections.OrderedDict"),
                (Stored(4, kind=torch.DoubleStorage), "has 16 bytes"),
                (Stored(4, kind=torch.storage.UntypedStorage), "UntypedStorage"),
                ("storage", "text instead of a storage"),
            )
        ),
        (Made(rebuild, Stored(4), 0, (4,), (1,), False, {}, {"neg": True}), "negated"),
        (Made(rebuild, Stored(4)), "1 arguments"),
        (Made(torch._utils._rebuild_parameter, {}), "parameter"),
    ):
        refused(checkpoint(path, pickled({"w": made})), word)


def test_strange_strides_along_axes_of_one_element(path):
    huge = view(Stored(4), 0, (1, 4, 1), (2**70, 1, 0))
    checkpoint(path, pickled({"w": huge}), data=np.arange(4, dtype="<f4").tobytes())
    same(path, {"w": torch.arange(4.0).reshape(1, 4, 1)})


def test_many_tensors_on_one_storage(path):
    numel = MIB
    state = {f"w{i}": view(Stored(numel), 0, (numel,), (1,)) for i in range(3)}
    refused(checkpoint(path, pickled(state), data=b"\0" * (4 * numel)), "share storages")
    wide = {f"w{i}": view(Stored(numel), 0, (2,), (numel - 1,)) for i in range(30)}
    refused(checkpoint(path, pickled(wide), data=b"\0" * (4 * numel)), "share storages")
    tied = torch.randn(300)
    torch.save({"a": tied, "b": tied, "c": tied[:10]}, path)
    same(path, {"a": tied, "b": tied, "c": tied[:10]})


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({"n": 3}, {"n": "a value of type int"}),
        ({"inner": {}, "e": None}, {"inner": "a value of type dict", "e": "None"}),
        ({3: "x", "t": "y"}, {"3": "text", "t": "text"}),
        ({"x\x1b[31m": 1}, {r"'x\x1b[31m'": "a value of type int"}),
    ],
)
def test_what_is_no_tensor_among_the_weights_is_left_and_told(path, value, what):
    checkpoint(path, pickled({"state_dict": {"w": view(Stored(4), 0, (4,), (1,)), **value}}))
    with open_torch_file(path) as file:
        assert list(file.tensors) == ["w"] and file.hints["left"] == what


def test_state_dicts_of_other_things(path):
    good = view(Stored(4), 0, (4,), (1,))
    for state, word in (
        ({"epoch": 3}, "keys: epoch"),
        ({}, "none"),
        ([good], "type list"),
        (Stored(4), "a storage"),
        ({f"w{i}": good for i in range(20_001)}, "more than 20000"),
    ):
        refused(checkpoint(path, pickled(state)), word)


# Hostile pickles.


class _SetState:
    def __setstate__(self, state):
        os.system(state["command"])


class _WithState:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return object.__new__, (_SetState,), {"command": self.command}


def _text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def _attacks(marker):
    command, code = f"touch {marker}", f"__import__('os').system('touch {marker}')"
    nested, saved = pickle.dumps(Made(os.system, command), 2), io.BytesIO()
    torch.save(Made(os.system, command), saved)
    return {
        "system": pickled(Made(os.system, command)),
        "system, protocol 4": pickled(Made(os.system, command), 4),
        "eval": pickled(Made(eval, code)),
        "exec": pickled({"state_dict": {"w": Made(exec, code)}}),
        "within tensors": pickled(
            {"state_dict": {"w": view(Stored(4), 0, (4,), (1,)), "x": Made(os.system, command)}}
        ),
        "subprocess": pickled(Made(subprocess.call, ["touch", str(marker)])),
        "setstate": pickled(_WithState(command)),
        "pickle in a pickle": pickled(Made(torch.storage._load_from_bytes, saved.getvalue())),
        "pickle.loads": pickled(Made(pickle.loads, nested)),
        "inst": b"\x80\x02(" + _text(command) + b"ios\nsystem\n.",
        "obj": b"\x80\x02(cos\nsystem\n" + _text(command) + b"o.",
        "stack_global": (
            b"\x80\x04" + _text("os") + _text("system") + b"\x93" + _text(command) + b"\x85R."
        ),
        "newobj_ex": b"\x80\x04cos\nsystem\n" + _text(command) + b"\x85}\x92.",
    }


@pytest.mark.parametrize("name", _attacks("x"))
def test_nothing_is_executed(path, tmp_path, name):
    marker = tmp_path / "marker"
    payload = _attacks(marker)[name]
    # First see that it is a real attack. Some need an object that Python itself cannot make.
    may_fail = name in ("within tensors", "newobj_ex", "setstate")
    with contextlib.suppress(*(pickle.UnpicklingError, TypeError) if may_fail else ()):
        pickle.loads(payload)
    assert may_fail or marker.exists()
    marker.unlink(missing_ok=True)
    refused(checkpoint(path, payload), "its pickle", "byte")
    assert not marker.exists()


_GETATTR = b"\x80\x02c__builtin__\ngetattr\n"
_OBJECT = b"c__builtin__\nobject\n"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (_GETATTR + _OBJECT + _text("__subclasses__") + b"\x86R)R.", "subclasses"),
        (_GETATTR + b"cnumpy\nndarray\n" + _text("tofile") + b"\x86R)R.", "calls"),
        (_GETATTR + b"ctorch\nSize\n" + _text("count") + b"\x86R.", "getattr on torch.Size"),
        (_GETATTR + b"K\x01" + _text("real") + b"\x86R.", "getattr on"),
        (_GETATTR + b")R.", "getattr on"),
        (b"\x80\x02ctorch.hub\nload\n)R.", "torch.hub.load"),
        (b"\x80\x02ctorch\nhub.load_Storage\n)R.", "hub.load"),
        (b"\x80\x02cnumpy.testing._private.utils\nrunstring\n)R.", "runstring"),
        (b"\x80\x02cnumpy\nload\n)R.", "numpy.load"),
        (b"\x80\x02cnumpy.core.multiarray\nfromfile\n)R.", "fromfile"),
        (b"\x80\x02cposix\nsystem\n0ccopy_reg\n_reconstructor\n.", "posix.system"),
        (b"\x80\x02ccopyreg\n__newobj__\n.", "copyreg.__newobj__"),
        (b"\x80\x02cmmengine.x\n__import__\n.", "__import__"),
        (b"\x80\x02cmmengine.x\x1b[31m\ny\n.", "x1b"),
        (b"\x80\x02c" + b"a" * 300 + b"\nx\n.", "does not end"),
        (b"\x80\x04N" + _text("x") + b"\x93.", "instead of a class"),
        (b"\x80\x04" + _text("os" * 2000) * 2 + b"\x93.", "names"),
        (b"\x80\x02Pabc\n.", "PERSID"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x02I1\n.", "INT"),
        (b"\x80\x02\xff.", "unknown"),
        (b"(dp0\n.", "PROTO"),
        (b"", "PROTO"),
        (b"\x80", "asks for 1 bytes"),
        (b"\x80\x02", "asks for 1 bytes"),
        (b"\x80\x01N.", "protocol 1"),
        (b"\x80\x06N.", "protocol 6"),
        (b"\x80\x02N\x80\x02.", "protocol"),
        (b"\x80\x02.", "empty stack"),
        (b"\x80\x02(.", "empty stack"),
        (b"\x80\x02NN.", "left over"),
        (b"\x80\x02N.N", "left over"),
        (b"\x80\x02t.", "not opened"),
        (b"\x80\x02(N0000.", "empty stack"),
        (b"\x80\x02NNa.", "appends to None"),
        (b"\x80\x02)Na.", "appends to"),
        (b"\x80\x02NNNs.", "sets an item of None"),
        (b"\x80\x02}(Nu.", "without a value"),
        (b"\x80\x02h\x07.", "recalls"),
        (b"\x80\x02Nr" + struct.pack("<I", 2**31) + b".", "stores value"),
        (b"\x80\x02X\xff\xff\xff\xff.", "asks for 4294967295"),
        (b"\x80\x04\x8d" + b"\xff" * 8 + b".", "asks for"),
        (b"\x80\x04\x8e" + b"\xff" * 8 + b".", "asks for"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "integer of"),
        (b"\x80\x02\x8b\0\0\x10\0" + b"\1" * MIB + b".", "integer of"),
        (b"\x80\x02X\x02\0\0\0\xff\xfe.", "UTF-8"),
        (b"\x80\x02G\0.", "asks for 8"),
        (b"\x80\x02NQ.", "refer to a storage"),
        (b"\x80\x02NNR.", "calls None"),
        (b"\x80\x02ccollections\nOrderedDict\nNR.", "calls"),
        (b"\x80\x02ccollections\nOrderedDict\nN\x85R.", "pairs"),
        (b"\x80\x02" + b"(" * 5_000_000, "groups"),
        (b"\x80\x02" + b"(" * 999 + b"N" + b"t" * 999 + b".", "instead of a state dict"),
        (b"\x80\x02N" + b"\x85" * 5_000_000 + b".", "1000000 steps"),
        (b"\x80\x02N" + b"\x85" * 300_000 + b".", "instead of a state dict"),
        (b"\x80\x02" + b"]" * 150_000 + b"a" * 149_999 + b".", "instead of a state dict"),
        (b"\x80\x02" + b"]" * 5_000_000 + b".", "1000000 steps"),
        (b"\x80\x02" + b"N2" * 10 + b"0" * 19 + b".", "instead of"),
        (
            b"\x80\x02ccollections\nOrderedDict\nq\0](" + b"NN\x86" * 9000 + b"e\x85q\x01R"
            + b"h\0h\x01R0" * 20_000 + b".",
            "1000000 steps",
        ),
    ],
)  # fmt: skip
def test_malformed_and_oversized_pickles(path, body, word):
    refused(checkpoint(path, body), word)


def test_labels_of_trainers_stay_labels(path, tmp_path):
    marker = tmp_path / "marker"
    call = b"cmmengine.fileio\nput_text\n" + _text("x") + _text(str(marker)) + b"\x86R"
    checkpoint(path, b"\x80\x02" + call + b"0" + SOUND[2:])
    with open_torch_file(path) as file:
        assert list(file.tensors) == ["w"]
    assert not marker.exists()


class Attributes(dict):
    """As Lightning's AttributeDict: a dict of its own class."""


class Kind(enum.Enum):
    LARGE = "large"


@dataclasses.dataclass
class Config:
    """As a trainer's own config: an object with others in it."""

    kind: Kind
    more: object = None


def test_classes_of_trainers_stay_labels(path, monkeypatch):
    """Of a module that is there only while the file is written."""
    module = types.ModuleType("strange_trainer")
    for made in (Attributes, Kind, Config):
        setattr(module, made.__name__, made)
        monkeypatch.setattr(made, "__module__", "strange_trainer")
    state = {"w": torch.ones(4), "kind": Kind.LARGE}
    extras = {
        "hyper_parameters": Attributes(lr=0.1, kind=Kind.LARGE),
        "config": Config(Kind.LARGE, Attributes(a=[Config(Kind.LARGE)])),
        "scaler": torch.amp.GradScaler("cpu"),
        "schedule": functools.partial(Config, kind=Kind.LARGE),
        "optimizer": torch.optim.AdamW([torch.ones(3, requires_grad=True)]),
    }
    for protocol in (2, 3, 4, 5):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "strange_trainer", module)
            torch.save({"state_dict": state, **extras}, path, pickle_protocol=protocol)
        with open_torch_file(path) as file:
            assert list(file.tensors) == ["w"] and torch.equal(file.read("w"), torch.ones(4))
            assert file.hints["left"] == {"kind": "strange_trainer.Kind"}
            assert file.hints["others"] == list(extras)


def test_no_import_and_no_torch(golden):
    code = (
        "import sys; from pathlib import Path\n"
        "from stan_infer.checkpoints.torch_file import open_torch_file\n"
        "file = open_torch_file(Path(sys.argv[1])); assert len(file.tensors) == 150\n"
        "bad = {'torch', 'numpy', 'pickle', 'mmengine'} & set(sys.modules); assert not bad, bad"
    )
    assert python("-c", code, golden / "a_hd32.pth", cwd=ROOT).stderr == ""


def check_memory(path):
    took, error = grown(
        "from stan_infer.checkpoints.torch_file import open_torch_file as read", path
    )
    assert str(path) in error and took <= 2 * path.stat().st_size + 128 * MIB, (took, error)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc on this system")
@pytest.mark.parametrize(
    "body",
    [
        b"}" * 999_000,
        b"}\x94" * 499_000,
        b"}" + b"\x94" * 999_000,
        b"]Na" * 330_000,
        b"}K\x01Ns" * 199_000,
        b"J\xff\xff\xff\x7f" * 999_000,
        b"N" + b"\x85" * 999_000 + b".",
        b"".join(b"cmmengine.%d\n" % i + b"x" * 200 + b"\n" for i in range(200_000)),
        (b"X" + struct.pack("<I", 4000) + "\N{GRINNING FACE}".encode() * 1000) * 8000,
        (b"X" + struct.pack("<I", MIB) + "\N{GRINNING FACE}".encode() * (MIB // 4)) * 40,
        b"(" + b"K\x01N" * 330_000 + b"}",
    ],
    ids=range(11),
)
def test_memory_stays_bounded(path, body):
    check_memory(checkpoint(path, b"\x80\x04" + body))


def test_memory_of_a_large_directory(path):
    records = {f"archive/{i:06d}{'x' * 400}": b"" for i in range(50_000)}
    path.write_bytes(write_zip(records))
    check_memory(path)


def test_damaged_copies_give_input_errors_only(tmp_path):
    found = fuzz(tmp_path, range(500), 1)
    assert not found.failed, found.reasons
    accepted = sum(n for name, n in found.split.items() if name.endswith("accepted"))
    assert found.split.total() == 500 and accepted < 250
