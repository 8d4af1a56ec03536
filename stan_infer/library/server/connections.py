"""Connections with bounds: how many there are, and how long a slow one may take."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_OPEN = 512  # more are closed unheard: a process may often have 1,024 files
REQUEST_S = 10.0  # for a request to arrive
STALL_S = 30.0  # in which a client must take some of an answer
KEEP_S = 15  # an idle connection is kept for the next request
MAX_REQUEST = 16 * 2**10  # bytes of a request with its headers


class Connection(H11Protocol):
    """One connection of a client."""

    _deadline: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        if len(self.connections) > MAX_OPEN:
            transport.abort()
        else:
            self._wait_for_request()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        super().data_received(data)
        self._wait_for_request()

    def on_response_complete(self) -> None:
        """Go on to the next request, of which a part may be here already."""
        super().on_response_complete()
        self._wait_for_request()

    def pause_writing(self) -> None:
        """Wait for a client that does not read what it asked for."""
        super().pause_writing()
        self._stall = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads."""
        self._cancel(self._stall)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """End what waits."""
        self._cancel(self._deadline)
        self._cancel(self._stall)
        super().connection_lost(exc)

    def _wait_for_request(self) -> None:
        """Start the clock where a request is awaited, and stop it where one is being answered."""
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.transport.is_closing():
            self._cancel(self._deadline)
            self._deadline = None
        elif self._deadline is None and (self.cycle is None or self.conn.trailing_data[0]):
            self._deadline = self.loop.call_later(REQUEST_S, self.transport.abort)

    @staticmethod
    def _cancel(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
