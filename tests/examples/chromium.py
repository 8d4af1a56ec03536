"""Headless Chromium, driven over a pipe by its DevTools protocol, without any package."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(
    not PROGRAM and not os.environ.get("STAN_INFER_REQUIRE_BROWSER"),
    reason="needs a headless browser: apt install chromium",
)
_QUIET = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
--disable-background-networking --disable-component-update --disable-default-apps
--disable-dev-shm-usage --hide-scrollbars --disable-features=Translate,OptimizationHints,MediaRouter
--remote-debugging-pipe""".split()
# The browser reads from descriptor 3 and writes to 4.
_START = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, to in zip(ends, (3, 4)):
    os.dup2(end, to)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """One page. events: what the browser told of it, in order. Use as a context manager."""

    def __init__(self, profile: Path, *options: str) -> None:
        """Start a browser of its own, with an empty profile."""
        assert PROGRAM
        mine, theirs = os.pipe(), os.pipe()
        self._to, self._from = mine[1], theirs[0]
        ends = mine[0], theirs[1]
        start = [sys.executable, "-c", _START, *map(str, ends), PROGRAM, *_QUIET]
        self._process = subprocess.Popen(
            [*start, f"--user-data-dir={profile}", *options, "about:blank"],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(mine[0])
        os.close(theirs[1])
        self._numbers, self._rest, self._session = itertools.count(1), b"", ""
        self.events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def open(self, url: str, width: int = 1000) -> None:
        """Load a page in a window of this width."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            **dict(width=width, height=900, deviceScaleFactor=1, mobile=False),
        )
        self._call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def js(self, code: str) -> Any:
        """The value of an expression; a promise is awaited. AssertionError for what it throws."""
        options = dict(returnByValue=True, awaitPromise=True, userGesture=True)
        found = self._call("Runtime.evaluate", expression=code, **options)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, condition: str) -> Any:
        """Wait for a true value and return it; the browser must go on answering meanwhile."""
        while not (value := self.js(condition)):
            time.sleep(0.05)
        return value

    def give_files(self, selector: str, *paths: Path) -> None:
        """Choose files in an <input type=file>."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(p) for p in paths])

    def dark(self, *, dark: bool) -> None:
        """Prefer dark colours, or light ones."""
        value = "dark" if dark else "light"
        features = [{"name": "prefers-color-scheme", "value": value}]
        self._call("Emulation.setEmulatedMedia", features=features)

    def press(self, key: str, text: str = "") -> None:
        """Press a key of the keyboard."""
        codes = {"Tab": 9, "Enter": 13, " ": 32}
        more = {"windowsVirtualKeyCode": codes.get(key, 0)} | ({"text": text} if text else {})
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, **more)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, **more)

    def picture(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        data = self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def addresses(self) -> list[str]:
        """Every address that was asked for, by the page or by its workers."""
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [e["params"]["request"]["url"] for e in sent]

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            if "method" in answer:
                self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            while not select.select([self._from], [], [], 1)[0]:
                assert self._process.poll() is None, "the browser ended"
            chunk = os.read(self._from, 2**20)
            assert chunk, "the browser ended"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer
