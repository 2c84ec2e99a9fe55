"""A headless Chromium, spoken to over a pipe in its DevTools protocol, by Python alone."""

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from processes import started

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


class Page:
    """A page, and all that it said and asked for."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._left, self._count = b"", 0
        self.events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._call(method, parameters)

    def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            part = os.read(self._receive, 1 << 20)
            assert part, "the browser has gone"
            self._left += part
        whole, _, self._left = self._left.partition(b"\0")
        message: dict[str, Any] = json.loads(whole)
        return message

    def open(self, path: Path, width: int = 1000, height: int = 800, dark: bool = False) -> None:
        """Show a file and wait until it is whole."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        since, url = len(self.events), path.resolve().as_uri()
        self.call("Page.navigate", url=url)
        shown = self._event(
            "Page.frameNavigated", since, lambda detail: detail["frame"]["url"] == url
        )
        self._event("Page.loadEventFired", shown)

    def _event(
        self, method: str, since: int, is_meant: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> int:
        """Wait for an event; returns its place among all since the page began."""
        for place in itertools.count(since):
            if place == len(self.events):
                self.events.append(self._next())
            event = self.events[place]
            if event.get("method") == method and is_meant(event["params"]):
                return place
        raise AssertionError("the browser falls silent")

    def wait_until(self, condition: str) -> None:
        """Wait for the next frame, then for one at which a JavaScript expression is true."""
        self.value(
            "new Promise(done => { const look = () => "
            f"({condition}) ? done() : requestAnimationFrame(look); requestAnimationFrame(look) }})"
        )

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives; a promise, once it is kept."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def move_to(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def shoot(self, path: Path, whole: bool = False) -> None:
        """Write a screenshot as PNG."""
        found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, and exceptions."""
        said = []
        for event in self.events:
            method, detail = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                said.append(str(detail["exceptionDetails"]))
            elif method == "Log.entryAdded" and detail["entry"]["level"] in ("error", "warning"):
                said.append(detail["entry"]["text"])
            elif method == "Runtime.consoleAPICalled" and detail["type"] in ("error", "warning"):
                said.append(str(detail["args"]))
        return said

    def requests(self) -> list[str]:
        """Everything that was asked for besides the page and what it carries itself."""
        urls = [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]
        return [url for url in urls if not url.startswith(("file:", "data:", "about:"))]


def _high_pipe() -> tuple[int, int]:
    """A pipe whose ends are above 9, so that none is 3 or 4, where the browser wants its own."""
    low = os.pipe()
    high = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in low)
    for end in low:
        os.close(end)
    return high[0], high[1]


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A fresh browser with its profile in `folder`."""
    assert CHROMIUM is not None
    to_read, to_write = _high_pipe(), _high_pipe()

    def as_three_and_four() -> None:
        os.dup2(to_read[0], 3)
        os.dup2(to_write[1], 4)

    words = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
        f"--user-data-dir={folder}", "--no-first-run", "--disable-background-networking",
        "--disable-dev-shm-usage", "--hide-scrollbars", "about:blank",
    ]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        with started(words, preexec_fn=as_three_and_four, close_fds=False, **quiet):
            for its_end in (to_read[0], to_write[1]):
                os.close(its_end)  # so that we read the end of it, should it end
            yield Page(to_read[1], to_write[0])
    finally:
        for our_end in (to_read[1], to_write[0]):
            os.close(our_end)
