"""Who may ask: only a page that this server gave, under a name of this machine itself.

A page of another site could reach a server on loopback by letting its own name point to 127.0.0.1. The browser then still says
the name it was asked for, so every other name is turned away. What is sent tells the browser to fetch nothing from elsewhere.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NAMES = ("127.0.0.1", "localhost", "[::1]")
# The one style that OpenSeadragon puts into the page: a rule for focus on touch screens.
DRAWER_STYLE = "'sha256-9xTiqzfwFaL2SGb1rmr8gysEwVVjIvqWAgmZgqFqpEE='"
PAGE = (
    f"default-src 'none'; script-src 'self'; style-src 'self' {DRAWER_STYLE}; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# A report is one file with everything inside and no scripts; `sandbox` keeps it so, whoever wrote it.
REPORT = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"

HEADERS = {
    "Content-Security-Policy": PAGE,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """Turns other names than loopback's away and adds `HEADERS` to each answer that does not set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        app = self.app
        if not is_loopback(Headers(scope=scope).getlist("host")):
            app = PlainTextResponse(f"This server answers to {', '.join(NAMES)} only.\n", status_code=403)
        await app(scope, receive, send_with_headers)


def is_loopback(hosts: list[str]) -> bool:
    """Whether a request's Host headers are one, and name this machine itself; any port, since a tunnel may change it."""
    if len(hosts) != 1:
        return False
    host = hosts[0].lower()
    name, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host, "0"
    return name in NAMES and port.isascii() and port.isdigit()
