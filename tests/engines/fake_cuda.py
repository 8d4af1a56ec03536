"""A stand-in for torch.cuda, for engines whose logic is tested without a GPU."""

from contextlib import contextmanager


class FakeCuda:
    """torch.cuda's graphs and streams on a machine without a GPU.

    `log` has the events in order; memory grows by 1 MiB per capture. A graph replays the `work`
    that was added to it while it was `capturing`; what torch itself computed is not in it.
    """

    def __init__(self) -> None:
        self.log: list[str] = []
        self.pools: list[object] = []
        self.modes: list[str] = []
        self._current = FakeStream(self, "main")
        self._reserved = 0
        self.capturing: FakeGraph | None = None

    def Stream(self):  # noqa: N802
        return FakeStream(self, f"stream{len(self.log)}")

    def CUDAGraph(self):  # noqa: N802
        return FakeGraph(self)

    def current_stream(self):
        return self._current

    @contextmanager
    def stream(self, stream):
        before, self._current = self._current, stream
        self.log.append(f"enter {stream.name}")
        yield
        self.log.append(f"leave {stream.name}")
        self._current = before

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode="global"):
        self.modes.append(capture_error_mode)
        self.pools.append(pool)
        self._reserved += 2**20
        self.log.append("capture")
        self.capturing = graph
        yield
        self.capturing = None
        self.log.append("captured")

    def graph_pool_handle(self):
        return object()

    def synchronize(self):
        self.log.append("synchronize")

    def memory_reserved(self, device):
        return self._reserved

    def is_available(self):
        return False

    @contextmanager
    def device(self, device):
        yield


class FakeStream:
    def __init__(self, cuda, name) -> None:
        self.cuda, self.name, self.cuda_stream = cuda, name, 0

    def wait_stream(self, other) -> None:
        self.cuda.log.append(f"{self.name} waits for {other.name}")


class FakeGraph:
    def __init__(self, cuda) -> None:
        self.cuda, self.work = cuda, []

    def replay(self) -> None:
        self.cuda.log.append("replay")
        for run in self.work:
            run()
