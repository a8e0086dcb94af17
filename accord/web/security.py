"""What every request and answer must pass before a route sees it, whoever sends it.

Implements the Host check (DNS rebinding), the same-origin check of requests that change something, the limit on a
body's size, the security headers, the token against forged forms, and the limit on guesses of a password. Leaves out
who may do what (`callers`) and password hashing (`feedback`).
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from threading import Lock
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_BODY_BYTES = 2_000_000

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; font-src 'self'; "
    "frame-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; frame-ancestors 'self'"
)
"""Of report.html alone: a document of its own origin, cut off from the app's cookies, whose own policy lets run
exactly the scripts that are in it."""

HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer, a browser would send its own forms with Origin: null
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
    "cache-control": "no-store",
}


class Guard:
    """ASGI middleware: refuses a foreign Host, a foreign Origin and a huge body, and signs every answer with HEADERS.

    names: the host names that the app answers to; empty: any (a server that demands accounts anyway).
    """

    def __init__(self, app: ASGIApp, *, names: Iterable[str] = (), max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self.app = app
        self.names = frozenset(name.lower() for name in names)
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass `scope` on, or answer it here."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self.refuse(scope)
        if refusal:
            status, reason = refusal
            await PlainTextResponse(reason, status)(scope, receive, send_signed)
            return
        await self.app(scope, _Counted(receive, self.max_body_bytes), send_signed)

    def refuse(self, scope: Scope) -> tuple[int, str] | None:
        """(status, reason) where the request must not reach a route, else None."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self.names and _host_name(host) not in self.names:
            return 421, "This address does not belong to this server."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.max_body_bytes:
            return 413, "That is more than this server takes in one request."
        if scope["method"] in SAFE_METHODS:
            return None
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "This request comes from another site."
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "This request comes from another site."
        return None


class _Counted:
    """`receive` that ends a body which grows beyond what it announced."""

    def __init__(self, receive: Receive, limit_bytes: int) -> None:
        self.receive, self.left_bytes = receive, limit_bytes

    async def __call__(self) -> Message:
        """The next part; a body that is too large reads as a client that hung up."""
        message = await self.receive()
        if message["type"] == "http.request":
            self.left_bytes -= len(message.get("body", b""))
            if self.left_bytes < 0:
                return {"type": "http.disconnect"}
        return message


def _host_name(host: str) -> str:
    """`localhost` of `localhost:8400`, `::1` of `[::1]:8400`."""
    return (urlsplit(f"//{host}").hostname or "").lower() if host.count("@") == 0 else ""


def compute_csrf_token(session: str) -> str:
    """What a page must send back with each change: a one-way hash of the session, which only this page's reader knows.

    It needs no table, and holds when the server is started again: answers that wait in a browser are still taken.
    """
    return hashlib.sha256(b"accord csrf\0" + session.encode()).hexdigest()


def is_csrf_token(session: str, token: str) -> bool:
    """Whether `token` belongs to `session`; takes the same time whatever the answer."""
    return hmac.compare_digest(compute_csrf_token(session).encode(), token.encode())


class SignInLimiter:
    """At most `attempts` wrong passwords in `window_seconds` for one key (a name, an address). In memory."""

    def __init__(
        self, attempts: int = 5, window_seconds: float = 300.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.attempts, self.window_seconds, self.clock = attempts, window_seconds, clock
        self._failures: defaultdict[str, deque[float]] = defaultdict(deque)
        self._lock = Lock()

    def seconds_to_wait(self, *keys: str) -> float:
        """0 where another attempt is allowed for all `keys`."""
        with self._lock:
            return max(self._wait(key) for key in keys)

    def record_failure(self, *keys: str) -> None:
        """A wrong password was given for `keys`."""
        with self._lock:
            now = self.clock()
            for key in keys:
                self._failures[key].append(now)
            for key in [k for k, times in self._failures.items() if not times or now - times[-1] > self.window_seconds]:
                del self._failures[key]

    def forget(self, key: str) -> None:
        """The right password was given for `key`."""
        with self._lock:
            self._failures.pop(key, None)

    def _wait(self, key: str) -> float:
        times = self._failures.get(key)
        if not times:
            return 0.0
        now = self.clock()
        while times and now - times[0] > self.window_seconds:
            times.popleft()
        return times[-self.attempts] + self.window_seconds - now if len(times) >= self.attempts else 0.0
