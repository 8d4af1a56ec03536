"""TensorRT as this project calls it, for a version whose names were recorded.

Objects have the names of that version and no others: a call that a version does not have fails as
it would there. A "plan" carries its ONNX graph, and running it runs ONNX Runtime from and to the
addresses given, so that a whole session is tested, numbers and all.
"""

import ctypes
import dataclasses
import json
import struct
import types
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

API = Path(__file__).parent / "api"
VERSIONS = ("tensorrt-10.16", "tensorrt-11.4", "tensorrt_rtx-1.7")
_TYPES = {1: "FLOAT", 2: "UINT8", 6: "INT32", 7: "INT64", 10: "HALF", 16: "BF16"}
_NUMPY = {"FLOAT": np.float32, "UINT8": np.uint8, "INT32": np.int32, "INT64": np.int64}


class World:
    """What the machine does: set `fault` to have something fail, `cuda` to have graphs captured."""

    def __init__(self, cuda=None) -> None:
        self.fault = ""  # none, warn, oom, hardware, refused, deserialise, run, context
        self.cuda, self.flags, self.calls = cuda, {}, []
        self.touched: set[tuple[str, str]] = set()
        self.memory: list[tuple[int, int]] = []  # address and size, by context


def names(version: str) -> dict:
    """What was recorded of a version."""
    return json.loads((API / f"{version}.json").read_text())


def fake_tensorrt(version: str, world: World):
    """A module that stands for that version's package."""
    recorded = names(version)
    table = {name: set(members) for name, members in recorded["classes"].items()}
    module = types.ModuleType(version.split("-")[0])
    module.__version__ = recorded["version"]
    is_rtx = "rtx" in version

    def touch(kind, name):
        if name not in table.get(kind, ()):
            raise AttributeError(f"{kind} of {version} has no {name}")
        world.touched.add((kind, name))

    class Meta(type):
        def __getattribute__(cls, name):
            if not name.startswith("_") and name != "mro":
                owner = next((c for c in cls.__mro__ if c.__name__ in table), None)
                if owner is not None:
                    touch(owner.__name__, name)
            return super().__getattribute__(name)

    class Strict(metaclass=Meta):
        def __getattribute__(self, name):
            if not name.startswith("_"):
                touch(type(self).__name__, name)
            return object.__getattribute__(self, name)

        def __setattr__(self, name, value):
            if not name.startswith("_"):
                touch(type(self).__name__, name)
                world.flags[name] = value
            object.__setattr__(self, name, value)

    @dataclasses.dataclass(frozen=True)
    class Member:
        _kind: str
        _name: str
        _value: int

        def __int__(self):
            return self._value

        def __str__(self):
            return f"{self._kind}.{self._name}"

    def enumeration(name):
        found = Meta(name, (), {})
        for i, member in enumerate(sorted(table.get(name, ()))):
            type.__setattr__(found, member, Member(name, member, i))
        return found

    kinds = ("BuilderFlag", "DataType", "HardwareCompatibilityLevel", "MemoryPoolType")
    kinds += ("NetworkDefinitionCreationFlag", "TensorIOMode", "ComputeCapability")
    kinds += ("CudaGraphStrategy", "ExecutionContextAllocationStrategy")
    for kind in kinds:
        if kind in table:
            setattr(module, kind, enumeration(kind))

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING, INFO, VERBOSE = (
            f"Severity.{n}" for n in ("ERROR", "INTERNAL_ERROR", "WARNING", "INFO", "VERBOSE")
        )

    class IProgressMonitor:
        phase_start = phase_finish = step_complete = None

    class IHostMemory(bytes):
        nbytes = property(len)

    class ITensor(Strict):
        def __init__(self, value) -> None:
            kind = value.type.tensor_type
            self._name = value.name
            self._dtype = getattr(module.DataType, _TYPES[kind.elem_type])
            self._dims = [d.dim_param or d.dim_value for d in kind.shape.dim]

        name = property(lambda self: self._name)
        dtype = property(lambda self: self._dtype)
        shape = property(lambda self: tuple(-1 if isinstance(d, str) else d for d in self._dims))

    class INetworkDefinition(Strict):
        def __init__(self) -> None:
            self._model = None

        def _tensors(self, which):
            return [ITensor(v) for v in getattr(self._model.graph, which)]

        num_inputs = property(lambda self: len(self._model.graph.input))
        num_outputs = property(lambda self: len(self._model.graph.output))
        num_layers = property(lambda self: len(self._model.graph.node))

        def get_input(self, i):
            return self._tensors("input")[i]

        def get_output(self, i):
            return self._tensors("output")[i]

    class ParserError(Strict):
        def desc(self):
            return "Assertion failed: no plugin found"

        def node_name(self):
            return "video/trunk/layer0/attention/MatMul"

        def node_operator(self):
            return "MatMul"

    class OnnxParser(Strict):
        def __init__(self, network, log) -> None:
            self._network, self._errors, self._log = network, [], log

        num_errors = property(lambda self: len(self._errors))

        def get_error(self, i):
            return self._errors[i]

        def parse(self, data):
            if world.fault == "refused":
                self._errors = [ParserError(), ParserError()]
                return False
            self._network._model = onnx.load_from_string(data)
            return True

        def parse_from_file(self, path):
            return self.parse(onnx.load(path).SerializeToString())

    class IOptimizationProfile(Strict):
        def __init__(self) -> None:
            self._shapes = {}

        def set_shape(self, name, low, best, high):
            self._shapes[name] = [list(low), list(best), list(high)]

    class ITimingCache(Strict):
        def __init__(self, data) -> None:
            self._data = data

        def serialize(self):
            return IHostMemory(self._data + b"+timed")

    class IBuilderConfig(Strict):
        def __init__(self) -> None:
            self._flags, self._profiles, self._cache, self._targets = {"TF32"}, [], None, {}
            world.flags |= {"flags": self._flags, "targets": self._targets}

        def set_flag(self, flag):
            self._flags.add(flag._name)

        def clear_flag(self, flag):
            self._flags.discard(flag._name)

        def get_flag(self, flag):
            return flag._name in self._flags

        def set_memory_pool_limit(self, pool, size):
            world.flags[str(pool)] = size

        def add_optimization_profile(self, profile):
            if world.fault == "profile":
                return -1
            self._profiles.append(profile._shapes)
            return len(self._profiles) - 1

        def create_timing_cache(self, data):
            return ITimingCache(data)

        def set_timing_cache(self, cache, ignore_mismatch):
            self._cache = cache
            return world.fault != "timing cache"

        def get_timing_cache(self):
            return self._cache

        def set_compute_capability(self, kind, i):
            self._targets[i] = str(kind)

        progress_monitor = None
        builder_optimization_level = 3
        hardware_compatibility_level = None
        num_compute_capabilities = 0

    class Builder(Strict):
        def __init__(self, log) -> None:
            self._log = log

        def create_network(self, flags=0):
            if not flags & (1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)):
                raise AssertionError("the network is not strongly typed")
            return INetworkDefinition()

        def create_builder_config(self):
            return IBuilderConfig()

        def create_optimization_profile(self):
            return IOptimizationProfile()

        def build_serialized_network(self, network, config):
            say = self._log.log
            monitor = config.progress_monitor
            monitor.phase_start("Building engine", None, 2)
            monitor.phase_start("Timing graph nodes", "Building engine", 4)
            for i in range(4):
                if not monitor.step_complete("Timing graph nodes", i):
                    say(ILogger.ERROR, "Error Code 7: BuildCanceled (Build canceled by user)")
                    return None
            monitor.phase_finish("Timing graph nodes")
            monitor.step_complete("Building engine", 0)
            told = {
                "none": "Error Code 4: API Usage Error (something is wrong)",
                "oom": "Error Code 2: OutOfMemory (Requested size was 123)",
                "hardware": "Cannot compile: the model contains HW-specific datatypes: bf16",
            }
            if world.fault in told:
                say(ILogger.ERROR, "cudaError 35: CUDA driver version is insufficient")
                say(ILogger.ERROR, told[world.fault])
                return None
            if world.fault == "warn":
                say(ILogger.WARNING, "Profile kMAX values are not self-consistent: out of bounds")
            say(ILogger.INFO, "Engine generation completed")
            head = json.dumps({"version": module.__version__, "profiles": config._profiles})
            body = struct.pack("<I", len(head)) + head.encode()
            body += network._model.SerializeToString()
            if not is_rtx:
                return IHostMemory(b"ftrt" + bytes(60) + body)
            first = b"vtrt" + bytes(12) + struct.pack("<Q", 64 + len(body)) + b"\x01\x07\x01\x74"
            return IHostMemory(first + b"vtrt" + struct.pack("<I", 8) + bytes(28) + body)

    class IRuntimeCache(Strict):
        def __init__(self) -> None:
            self._data = b"compiled"

        def deserialize(self, data):
            world.calls.append("cache read")
            return True

        def serialize(self):
            return IHostMemory(self._data)

    class IRuntimeConfig(Strict):
        cuda_graph_strategy = None
        _strategy = "STATIC"

        def set_execution_context_allocation_strategy(self, strategy):
            self._strategy = strategy._name

        def create_runtime_cache(self):
            return IRuntimeCache()

        def set_runtime_cache(self, cache):
            return True

    class ICudaEngine(Strict):
        def __init__(self, head, data) -> None:
            self._profiles, self._model = head["profiles"], onnx.load_from_string(data)
            self._session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
            graph = self._model.graph
            self._io = {v.name: ITensor(v) for v in (*graph.input, *graph.output)}
            self._count = len(graph.input)

        num_io_tensors = property(lambda self: len(self._io))
        num_optimization_profiles = property(lambda self: len(self._profiles))

        def get_tensor_name(self, i):
            return list(self._io)[i]

        def get_tensor_mode(self, name):
            is_input = list(self._io).index(name) < self._count
            return module.TensorIOMode.INPUT if is_input else module.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name):
            return self._io[name].dtype

        def get_tensor_shape(self, name):
            return self._io[name].shape

        def create_runtime_config(self):
            return IRuntimeConfig()

        def create_execution_context(self, given):
            world.calls.append("context")
            strategy = given._strategy if is_rtx else given._name
            assert strategy == "USER_MANAGED"
            return None if world.fault == "context" else IExecutionContext(self, self._log)

    class IExecutionContext(Strict):
        def __init__(self, engine, log) -> None:
            self._engine, self._profile, self._log = engine, 0, log
            self._shapes, self._addresses = {}, {}
            self._needs, self._memory = 0, 0

        def update_device_memory_size_for_shapes(self):
            self._needs = 256 * int(np.prod([n for s in self._shapes.values() for n in s]))
            return self._needs

        def set_device_memory(self, address, size):
            assert address and size >= self._needs
            self._memory = address
            world.memory.append((address, size))

        def set_optimization_profile_async(self, i, stream):
            self._profile = i
            world.calls.append(f"profile {i}")
            return 0 <= i < len(self._engine._profiles)

        def set_input_shape(self, name, shape):
            low, _, high = self._engine._profiles[self._profile][name]
            self._shapes[name] = tuple(shape)
            return all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))

        def infer_shapes(self):
            return []

        def get_tensor_shape(self, name):
            sizes = {}
            for given, shape in self._shapes.items():
                sizes |= dict(zip(self._engine._io[given]._dims, shape, strict=True))
            dims = self._engine._io[name]._dims
            return tuple(sizes[d] if isinstance(d, str) else d for d in dims)

        def set_tensor_address(self, name, address):
            self._addresses[name] = address
            return True

        def execute_async_v3(self, stream):
            if world.fault == "run":
                self._log.log(ILogger.ERROR, "an illegal memory access was encountered")
                return False
            assert self._memory, "the context has no memory to work in"
            addresses = dict(self._addresses)
            world.calls.append("run")
            if world.cuda is not None and world.cuda.capturing is not None:
                world.cuda.capturing.work.append(lambda: self._compute(addresses))
            self._compute(addresses)
            return True

        def _compute(self, addresses):
            engine = self._engine
            feeds, views = {}, {}
            for name, tensor in engine._io.items():
                shape = IExecutionContext.get_tensor_shape(self, name)
                dtype = _NUMPY[tensor.dtype._name]
                size = int(np.prod(shape)) * np.dtype(dtype).itemsize
                raw = (ctypes.c_byte * size).from_address(addresses[name])
                views[name] = np.frombuffer(raw, dtype).reshape(shape)
            inputs = list(engine._io)[: engine._count]
            feeds = {name: views[name].copy() for name in inputs}
            outputs = [n for n in engine._io if n not in inputs]
            for name, value in zip(outputs, engine._session.run(outputs, feeds), strict=True):
                views[name][...] = value

    class Runtime(Strict):
        def __init__(self, log) -> None:
            self._log = log

        def deserialize_cuda_engine(self, data):
            if world.fault == "deserialise":
                self._log.log(ILogger.ERROR, "Serialization assertion failed: version tag")
                return None
            (size,) = struct.unpack_from("<I", data, 64)
            engine = ICudaEngine(json.loads(data[68 : 68 + size]), bytes(data[68 + size :]))
            engine._log = self._log
            return engine

    for kind in (
        ILogger, IProgressMonitor, IHostMemory, ITensor, INetworkDefinition, ParserError,
        OnnxParser, IOptimizationProfile, ITimingCache, IBuilderConfig, Builder, IRuntimeCache,
        IRuntimeConfig, ICudaEngine, IExecutionContext, Runtime,
    ):  # fmt: skip
        if kind.__name__ in table or kind is IHostMemory:
            setattr(module, kind.__name__, kind)
    return module
