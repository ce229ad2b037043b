"""A headless Chromium that tests drive through the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

T = TypeVar("T")
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PATIENCE_S = 60.0


def find_chromium() -> str | None:
    """Return the browser's program, if this machine has one."""
    named = os.environ.get("SCENESWEEP_CHROMIUM")
    return named or next((path for name in _NAMES if (path := shutil.which(name))), None)


class Tab:
    """One page of the browser, and every address that it asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.requests: list[str] = []
        self.complaints: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; what happens meanwhile is written down."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=_PATIENCE_S)
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result
            self._note(message.get("method"), message.get("params", {}))

    async def open(self, path: Path, *, fragment: str = "") -> None:
        """Open a file and wait until its script has run."""
        await self.call("Page.navigate", url=path.as_uri() + fragment)
        until = time.monotonic() + _PATIENCE_S
        while not await self.evaluate("document.readyState === 'complete'"):
            assert time.monotonic() < until, f"{path} does not load"
            await asyncio.sleep(0.05)

    async def evaluate(self, script: str) -> Any:
        """Return the value of an expression; promises are awaited."""
        said = await self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    async def resize(self, width: int, height: int, *, density: float = 1) -> None:
        """Give the page a window of this size in CSS pixels."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=density,
            mobile=False,
        )

    async def prefer(self, scheme: str) -> None:
        """Let the system prefer light or dark."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.call("Emulation.setEmulatedMedia", features=[feature])

    async def click(self, x: float, y: float) -> None:
        """Press and release the mouse."""
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    async def move(self, x: float, y: float) -> None:
        """Move the mouse to a point."""
        await self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def press(self, key: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key)

    async def screenshot(self, path: Path, *, kind: str = "png") -> None:
        """Write a picture of the page once it has been drawn."""
        await self.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        said = await self.call("Page.captureScreenshot", format=kind)
        path.write_bytes(base64.b64decode(said["data"]))

    def _note(self, method: str | None, said: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["exceptionDetails"]))
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(said["entry"]["text"])


def in_chromium(act: Callable[[Tab], Coroutine[Any, Any, T]]) -> T:
    """Start a browser without a network, let `act` do what it does in a tab, and end it."""

    async def run() -> T:
        async with _browser() as tab:
            return await act(tab)

    return asyncio.run(run())


@asynccontextmanager
async def _browser() -> AsyncIterator[Tab]:
    program = find_chromium()
    assert program is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        switches += ["--no-first-run", "--disable-extensions", "--disable-background-networking"]
        switches += ["--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars"]
        process = subprocess.Popen(
            [program, *switches, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(profile) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session, _tab(session, port) as tab:
                yield tab
        finally:
            process.terminate()
            process.wait(20)


async def _port(file: Path) -> int:
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        await asyncio.sleep(0.05)
    raise AssertionError("chromium does not start")


@asynccontextmanager
async def _tab(session: aiohttp.ClientSession, port: int) -> AsyncIterator[Tab]:
    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        pages = [target for target in await answer.json() if target["type"] == "page"]
    address = pages[0]["webSocketDebuggerUrl"]
    async with session.ws_connect(address, max_msg_size=0) as socket:
        tab = Tab(socket)
        for domain in ("Page", "Runtime", "Network", "Log"):
            await tab.call(f"{domain}.enable")
        yield tab
