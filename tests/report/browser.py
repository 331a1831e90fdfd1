"""A real browser without a window: headless Chromium, spoken to over two pipes in the DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/: messages are JSON, each ended by a NUL.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@dataclass
class Seen:
    """A page as the browser had it.

    Attributes:
      requests: URLs it asked for, itself and what is in it (`data:`) left out.
      complaints: of its console, uncaught errors among them.
      overflow: pixels that the page is wider than its window.
      broken: pictures that could not be shown.
      pictures: those that were.
      headings: of the sections that can be seen.
      text: all that can be read on it.
      png: a picture of all of it.
    """

    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    overflow: int = 0
    broken: int = 0
    pictures: int = 0
    headings: list[str] = field(default_factory=list)
    text: str = ""
    png: bytes = b""


class Browser:
    """A context manager; each look is a new tab."""

    def __enter__(self) -> "Browser":
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Chromium reads from 3 and writes to 4; a shell puts the pipes there.
        arguments = [
            "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--disable-background-networking", "--disable-dev-shm-usage", "--no-first-run",
            f"--user-data-dir={self._profile.name}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{theirs_out}', "browser", str(CHROMIUM), *arguments],
            pass_fds=(theirs, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": self._profile.name},
        )
        os.close(theirs)
        os.close(theirs_out)
        self._rest, self._sent = b"", 0
        self._events: list[dict[str, Any]] = []
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._out)  # it ends when nobody speaks to it any more
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        self._profile.cleanup()

    def look(self, page: Path, width: int, height: int = 900) -> Seen:
        """Opens a page in a window of this size, in CSS pixels; at most 600 wide, it is a phone's."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Page", "Runtime", "Log"):
            self._call(f"{domain}.enable", session)
        phone = width <= 600
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self._call("Emulation.setDeviceMetricsOverride", session, **metrics)
        self._events.clear()
        self._call("Page.navigate", session, url=page.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())
        self._evaluate(session, "Promise.all([...document.images].map(i => i.decode().catch(() => 0)))")
        # What is folded has to fit too.
        self._evaluate(session, "document.querySelectorAll('details').forEach(d => d.open = true)")
        seen = Seen(
            # Not against window.innerWidth: a phone zooms out until the page fits.
            overflow=self._evaluate(session, "document.documentElement.scrollWidth") - width,
            broken=self._evaluate(session, "[...document.images].filter(i => !i.naturalWidth).length"),
            pictures=self._evaluate(session, "[...document.images].filter(i => i.naturalWidth && i.width).length"),
            headings=self._evaluate(
                session,
                "[...document.querySelectorAll('h2')].filter(h => h.checkVisibility() && h.offsetHeight)"
                ".map(h => h.innerText)",
            ),
            text=self._evaluate(session, "document.body.innerText"),
        )
        picture = self._call("Page.captureScreenshot", session, captureBeyondViewport=True)
        seen.png = base64.b64decode(picture["data"])
        for event in self._events:
            said = event["params"]
            match event["method"]:
                case "Network.requestWillBeSent":
                    seen.requests.append(said["request"]["url"])
                case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown":
                    seen.complaints.append(json.dumps(said))
                case "Log.entryAdded":
                    seen.complaints.append(said["entry"]["text"])
        seen.requests = [url for url in seen.requests if url != page.resolve().as_uri() and not url.startswith("data:")]
        self._call("Target.closeTarget", targetId=target)
        return seen

    def _evaluate(self, session: str, expression: str) -> Any:
        found = self._call("Runtime.evaluate", session, expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def _call(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._sent:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            if "method" in answer:
                self._events.append(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._in, 1 << 20)
            assert more, "the browser has ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)
