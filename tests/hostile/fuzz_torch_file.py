"""Fuzz the checkpoint reader: `python -m tests.hostile.fuzz_torch_file --inputs 100000 --seed 0`.

Every input is a damaged copy of a small valid checkpoint; only InputError may come out, and every
tensor of every set of weights that is offered must be readable. Input i of a seed is always the
same: `--only i` runs it.
"""

import io
import random
import struct
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from stan_infer.checkpoints.torch_file import TorchFile, open_torch_file
from stan_infer.checkpoints.weight_sets import choose, find_sets
from stan_infer.errors import InputError
from stan_infer.system.stored_zip import read_directory
from tests.hostile.fuzzer import Found, command_line, run_inputs

NUMBERS = (0, 1, 2, 3, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
WIDE = (*NUMBERS, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
SNIPPETS = (
    *(bytes([i]) for i in range(256)),
    b"\x80\x02", b"cos\nsystem\n", b"ctorch\nFloatStorage\n", b"K\x00", b"K\x05", b"\x8a\x01\xff",
    b"X\x04\x00\x00\x00meta", b"r\xff\xff\xff\xff", b"))R", b"h\x00", b"h\x01", b"h\x05",
    b"((((", b"]]]]", b"\x85" * 40, b"}(", b"u",
)  # fmt: skip


def write_zip(records: Mapping[str, bytes]) -> bytes:
    """Return a zip archive of stored records, as torch.save would write it, unaligned."""
    body, directory = bytearray(), bytearray()
    for name, data in records.items():
        raw = name.encode()
        sizes = struct.pack("<3I2H", 0, len(data), len(data), len(raw), 0)
        directory += b"PK\x01\x02" + struct.pack("<6H", 0, 0, 0, 0, 0, 0) + sizes
        directory += struct.pack("<3H2I", 0, 0, 0, 0, len(body)) + raw
        body += b"PK\x03\x04" + struct.pack("<5H", 0, 0, 0, 0, 0) + sizes + raw + data
    n = len(records)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, n, n, len(directory), len(body), 0)
    return bytes(body + directory + end)


def read_zip(data: bytes) -> dict[str, bytes]:
    """Return the records of a valid archive, without those of a TorchScript's compressed code."""
    entries = read_directory(io.BytesIO(data), len(data), leave_packed=lambda name: True)
    return {k: data[e.offset : e.offset + e.size] for k, e in entries.items()}


def seed_files() -> list[bytes]:
    """Return small valid checkpoints that use every kind of tensor and two pickle protocols."""
    torch.manual_seed(0)
    base = torch.randn(6, 4)
    state = OrderedDict(
        a=base,
        b=base.t(),
        c=base[2:4, 1:3],
        d=torch.nn.Parameter(torch.ones(3).bfloat16()),
        e=torch.zeros(()).long(),
        f=torch.zeros(0, 5),
        g=torch.tensor([True, False]),
        h=torch.ones(2, dtype=torch.uint16),
    )
    state._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    meta = {"epoch": 3, "cfg": "depth = 4\n" * 20, "seed": None, "score": 0.5, "t": (1, 2, [3])}
    out = []
    for protocol in (2, 4):
        for whole in (state, {"meta": meta, "state_dict": state, "message_hub": {"x": {1, 2}}}):
            file = io.BytesIO()
            torch.save(whole, file, pickle_protocol=protocol)
            out.append(file.getvalue())
    out.append(write_zip(read_zip(out[1])))
    return [*out, *_files_of_modules(state)]


def _files_of_modules(state: OrderedDict[str, torch.Tensor]) -> list[bytes]:
    """A TorchScript archive, a whole module, averages beside weights, tensors with attributes."""
    inner = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    scripted, whole, averages, typed = (io.BytesIO() for _ in range(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(inner), scripted)
    torch.save({"model": inner, "ema": {"module": inner}}, whole)
    counted = OrderedDict({f"module.{k}": v for k, v in state.items()}, n_averaged=torch.tensor(3))
    torch.save({"state_dict": state, "ema_state_dict": counted}, averages)
    tagged = torch.ones(4)
    tagged.tag = "x"  # type: ignore[attr-defined]
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.tag = "y"  # type: ignore[attr-defined]
    torch.save({"model.a": tagged, "ema_model.a": parameter}, typed)
    return [scripted.getvalue(), whole.getvalue(), averages.getvalue(), typed.getvalue()]


def mutate(seeds: list[bytes], rng: random.Random) -> bytes:
    """Return a damaged copy of one seed: its bytes, its directory or its pickle is changed."""
    data = rng.choice(seeds)
    kind = rng.randrange(10)
    if kind < 5:  # the pickle, within an archive that stays sound
        records = read_zip(data)
        name = next(n for n in records if n.endswith("data.pkl"))
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            records[name] = _damage_pickle(records[name], rng)
        return write_zip(records)
    if kind == 5:  # records renamed, resized, dropped, doubled
        records = read_zip(data)
        name = rng.choice(list(records))
        content = records.pop(name)
        changed = rng.choice((content[:-1], content + b"\0", content * 3, b"", b"big"))
        records[rng.choice((name, name + "x", "archive/constants.pkl"))] = changed
        return write_zip(records)
    if kind == 6:
        return data[: rng.randrange(len(data))]
    out = bytearray(data)
    tail = data.index(b"PK\x01\x02")
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        low, high = (tail, len(data)) if kind == 7 else (0, len(data))
        at = rng.randrange(low, high)
        if kind == 8:  # a number of a header
            headers = (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07")
            found = data.find(rng.choice(headers), rng.randrange(len(data)))
            at = max(found, 0) + rng.randrange(4, 56)
            width = rng.choice((2, 4, 8))
            out[at : at + width] = (rng.choice(WIDE) % 256**width).to_bytes(width, "little")
        elif rng.random() < 0.2:
            out[at:at] = _chunk(data, rng)
        else:
            out[min(at, len(out) - 1)] = rng.randrange(256)
    return bytes(out)


def _damage_pickle(pickle: bytes, rng: random.Random) -> bytes:
    if not pickle:
        return b"\x80\x02N."
    at, kind = rng.randrange(len(pickle)), rng.randrange(8)
    if kind == 0:
        return pickle[:at] + bytes([rng.randrange(256)]) + pickle[at + 1 :]
    if kind == 1:
        return pickle[:at] + rng.choice(SNIPPETS) + pickle[at:]
    if kind == 2:
        return pickle[:at] + pickle[at + rng.randrange(1, 12) :]
    if kind == 3:
        return pickle[:at] + _chunk(pickle, rng) + pickle[at:]
    if kind == 4:
        chunk = _chunk(pickle, rng)
        return pickle[:at] + chunk + pickle[at + len(chunk) :]
    if kind == 5:
        return pickle[:at] + rng.choice(SNIPPETS) * rng.randrange(1, 300) + b"."
    # An integer: shapes, strides, offsets, sizes, memo indices.
    places = [i for i, c in enumerate(pickle) if c in b"KMJhqjrX\x8a\x8c"]
    at = rng.choice(places) if places else at
    width = {b"K": 1, b"M": 2, b"J": 4}.get(pickle[at : at + 1], rng.choice((1, 4)))
    if kind == 6:
        number = (rng.choice(NUMBERS) % 256**width).to_bytes(width, "little")
        return pickle[: at + 1] + number + pickle[at + 1 + width :]
    long = b"\x8a\x09" + rng.choice((*WIDE, 2**71 - 1)).to_bytes(9, "little")
    return pickle[:at] + long + pickle[at + 1 + width :]


def _chunk(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[start : start + rng.choice((1, 2, 4, 8, 16, 64, 256))]


def outcome(path: Path, data: bytes) -> str:
    """Write one input, open it, read every tensor; return what came of it.

    Any exception but InputError goes through, as does a tensor that is not what was promised.
    """
    path.write_bytes(data)
    try:
        with open_torch_file(path) as file:
            _read_all(file)
            sets = find_sets(file.sets, file.ordinary, file.hints)
            for one in sets:
                choose(sets, one.name)
                one.keys()
                file.select(one.place)
                _read_all(file)
            choose(sets, None)
    except InputError as e:
        text = str(e).removeprefix(f"checkpoint {path}: ")
        return next((k for k in ("its pickle", "tensor", "zip") if k in text[:40]), "other")
    return "accepted"


def _read_all(file: TorchFile) -> None:
    """Read every tensor of the set that is selected; it must be what was promised."""
    for name, info in file.tensors.items():
        tensor = file.read(name)
        same = (str(tensor.dtype), tuple(tensor.shape)) == (f"torch.{info.dtype}", info.shape)
        if not same or not tensor.is_contiguous():
            raise AssertionError(f"{name}: {tensor.dtype} {tensor.shape}, said {info}")


def fuzz(folder: Path, inputs: range, seed: int, kind: str | None = None) -> Found:
    seeds, path = seed_files(), folder / "input.pth"

    def one(rng: random.Random) -> tuple[str, Callable[[], str]]:
        data = mutate(seeds, rng)
        return "checkpoint", lambda: outcome(path, data)

    return run_inputs(inputs, seed, one)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(command_line(__doc__, fuzz))
