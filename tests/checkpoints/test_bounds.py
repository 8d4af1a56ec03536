"""Strangers' checkpoints are inspected within bounds of memory and of sizes."""

import json
import struct

import pytest

from stan_infer.checkpoints.load import inspect_checkpoint
from stan_infer.checkpoints.torch_pickle import MAX_PICKLE_BYTES, MAX_STEPS
from stan_infer.errors import InputError
from tests.hostile.fuzz_torch_file import write_zip
from tests.processes import grown

LIMIT = 512 * 2**20  # bytes above a sound file's
SOUND = ("examples/motion/motion.safetensors", "tests/golden/tiny.pth")


def safetensors(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def tensors(count: int) -> bytes:
    one = b'"a%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return b"{" + b",".join(one % i for i in range(count)) + b"}"


def pth(pickle: bytes) -> bytes:
    return write_zip({"archive/data.pkl": pickle})


def items() -> bytes:
    """A dict of as many numbers and dicts as the limit of steps lets pass."""
    count = MAX_STEPS // 2 - 10
    pairs = b"".join(b"J" + struct.pack("<i", i) + b"}" for i in range(count))
    return b"\x80\x02}(" + pairs + b"u."


def numbers() -> bytes:
    """Integers of 64 bytes that fill the largest pickle."""
    start = b"\x80\x02](" + (b"\x8a\x40" + b"\x7f" * 64) * (MAX_STEPS - 20)
    rest = MAX_PICKLE_BYTES - len(start) - 7
    return start + b"T" + struct.pack("<I", rest) + bytes(rest) + b"e."


HOSTILE = {
    "a million empty tensors": lambda: safetensors(tensors(1_000_000)),
    "a hundred thousand": lambda: safetensors(tensors(100_000)),
    "four million axes": lambda: safetensors(
        b'{"a":{"dtype":"F32","shape":[' + b"1," * 4_000_000 + b'0],"data_offsets":[0,0]}}'
    ),
    "a config of objects": lambda: safetensors(
        json.dumps({"__metadata__": {"stan_infer.config": "[" * 8_000_000}}).encode()
    ),
    "a dict": lambda: pth(items()),
    "numbers": lambda: pth(numbers()),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_memory_is_bounded(name, tmp_path):
    path = tmp_path / "hostile"
    path.write_bytes(HOSTILE[name]())
    reader = "from stan_infer.checkpoints.load import inspect_checkpoint as read"
    took, error = grown(reader, path, *SOUND)
    assert took < LIMIT and str(path) in error, (took, error)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (tensors(20_001), "20001 tensors"),
        (b'{"a\\nb":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', "not the name of a weight"),
        (b'{"":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', "not the name of a weight"),
        (b'{"' + b"a" * 513 + b'":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', "the name"),
        (b'{"a":{"dtype":"F8_E8M0","shape":[0],"data_offsets":[0,0]}}', "not supported"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "damaged"),
        (b'{"a":' * 100_000, "objects in its header"),
    ],
)
def test_a_header_is_bounded(header, words, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors(header))
    with pytest.raises(InputError, match=words) as caught:
        inspect_checkpoint(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def test_a_header_longer_than_the_limit_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(InputError, match="at most 8388608 are read"):
        inspect_checkpoint(path)
