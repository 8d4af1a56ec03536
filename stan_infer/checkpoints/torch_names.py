"""The classes and functions that a checkpoint may name; all of them stay labels."""

from __future__ import annotations

_NUMPY = (
    "ndarray dtype bool bool_ byte ubyte short ushort intc uintc intp uintp int8 int16 int32 int64 "
    "uint8 uint16 uint32 uint64 longlong ulonglong float16 float32 float64 half single double "
    "longdouble complex64 complex128 str_ bytes_ void object_ datetime64 timedelta64"
)
_TORCH = (
    "Size device dtype float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 complex64 "
    "complex128 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool double float half long int "
    "short"
)
_BUILTINS = (
    "getattr set frozenset list dict tuple int long float bool str unicode bytes bytearray complex "
    "slice range xrange object"
)
_PATHS = "Path PurePath PosixPath WindowsPath PurePosixPath PureWindowsPath"
_NAMES = {
    "collections": "OrderedDict defaultdict Counter deque",
    "torch": _TORCH,
    "torch._utils": "_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter "
    "_rebuild_parameter_with_state",
    "numpy": _NUMPY,
    **dict.fromkeys(("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct scalar"),
    **dict.fromkeys(("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer"),
    **dict.fromkeys(("__builtin__", "builtins"), _BUILTINS),
    **dict.fromkeys(("pathlib", "pathlib._local"), _PATHS),
    **dict.fromkeys(("copyreg", "copy_reg"), "_reconstructor"),
    "_codecs": "encode",
    "argparse": "Namespace",
    "functools": "partial",
    "datetime": "date datetime time timedelta timezone",
    "types": "SimpleNamespace",
    "numpy.random._pickle": "__randomstate_ctor __generator_ctor __bit_generator_ctor",
    "numpy.random.bit_generator": "__pyx_unpickle_SeedSequence",
    "torch.jit._pickle": "build_intlist build_doublelist build_boollist build_tensorlist "
    "restore_type_tag",
    "torch.serialization": "_get_layout",
    "torch._tensor": "_rebuild_from_type_v2",
    "re": "_compile",
}
_KNOWN = frozenset((module, name) for module, names in _NAMES.items() for name in names.split())
# Modules whose functions make tensors.
_MAKERS = ("torch._utils", "torch._tensor")
STORAGE_MODULES = ("torch", "torch.storage", "torch.cuda")
# Modules that run or open things.
_ATTACKED = frozenset(
    "os posix nt subprocess sys builtins __builtin__ importlib imp runpy code codeop types marshal "
    "ctypes socket socketserver shutil pty pickle _pickle cPickle dill cloudpickle multiprocessing "
    "signal webbrowser commands platform timeit cProfile profile pdb bdb trace asyncio pip "
    "setuptools distutils urllib http ftplib smtplib telnetlib requests tempfile io _io threading "
    "concurrent ssl xmlrpc operator".split()
)


def may_name(module: str, name: str) -> bool:
    """Whether a checkpoint may name this class or function, which stays a label.

    Trainers keep configs, enums, optimizers and loss scalers beside the weights, with names of
    their own. A name in a module that runs or opens things shows a file that was made to attack: it
    is refused and not read.
    """
    if (module, name) in _KNOWN:
        return True
    words, parts = module.split("."), name.split(".")
    # Names from outside may stand in a message, so they hold no control characters.
    if not f"{module}.{name}".isascii() or not all(w.isidentifier() for w in words + parts):
        return False
    return not any(p.startswith("__") for p in parts) and words[0] not in _ATTACKED


def is_maker(module: str, name: str) -> bool:
    """Whether this is one of torch's functions that make a tensor of a storage."""
    return module in _MAKERS and name.startswith("_rebuild_")


def may_call(module: str, name: str) -> bool:
    """Whether a checkpoint may want this called: what state dicts need, and any class.

    The call is not made either. One of another function shows an attack.
    """
    # What a script itself defines, __main__, names nothing on another machine.
    if (module, name) in _KNOWN or module.split(".")[0] in ("mmengine", "mmcv", "__main__"):
        return True
    if is_maker(module, name):
        return True
    return name.rpartition(".")[2][:1].isupper()  # a class, as Python's style guide has it
