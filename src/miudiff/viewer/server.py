"""Running the viewer: on this machine's loopback only, at a free port, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from miudiff.errors import ConfigError
from miudiff.viewer.app import create_app
from miudiff.viewer.cases import find_cases

HOST = "127.0.0.1"
PATIENCE = 10.0  # seconds that a request may take to arrive


class Impatient(H11Protocol):
    """Closes a connection that brings no whole request, or takes none of its answer, for `PATIENCE` seconds.

    Without it each would stay for ever, and many of them would keep others out.
    """

    _deadline: asyncio.TimerHandle | None = None
    _untaken = 0  # bytes of answers at the last look

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._wait()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state is h11.IDLE:
            super().send_400_response(msg)
        else:  # nonsense after a request: its answer has nowhere to go now
            self.cycle.disconnected = True
            self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    def _wait(self) -> None:
        """Count from the first moment without a request to be answered; what arrives of one does not count anew."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(PATIENCE, self._look)

    def _look(self) -> None:
        self._deadline = None
        before, self._untaken = self._untaken, self.transport.get_write_buffer_size()
        if self._untaken and self._untaken != before:
            self._wait()  # a slow reader, but one that reads
        else:
            self.transport.abort()

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def serve(
    he: Path | None,
    ihc: Path,
    port: int | None = None,
    open_browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Show an H&E slide and its virtual IHC, or a folder of results, in a browser. Returns after Ctrl-C.

    Args:
        he: The H&E image, or a folder of sources; None takes what the records name.
        ihc: A virtual IHC image, or a folder of results.
        port: Where to listen; None takes a free one.
        open_browser: Also open the page.
        say: Takes what is told, a line at a time.

    Raises:
        ConfigError: The port cannot be had.
        DataError: There is nothing to show.
    """
    cases = find_cases(he, ihc)
    app = create_app(cases, ihc if ihc.is_dir() else None)
    with listen(port) as listener:
        url = f"http://{HOST}:{listener.getsockname()[1]}/"
        say(f"{_what(len(cases), ihc)} at {url}  (for this machine only; Ctrl-C ends it)")
        if open_browser and _has_screen():
            webbrowser.open(url)  # the port is open already: the browser waits for the first answer
        server = uvicorn.Server(config(app))
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn ends well and then passes it on
            server.run(sockets=[listener])
    say("closed")


def config(app: object) -> uvicorn.Config:
    """How uvicorn runs the application: quiet, and trusting no headers of a proxy."""
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=2,
        http=Impatient,
        h11_max_incomplete_event_size=16 * 2**10,
    )


def listen(port: int | None) -> socket.socket:
    """A socket that listens on loopback.

    Raises:
        ConfigError: The port is taken, not allowed, or none.
    """
    try:
        return socket.create_server((HOST, port or 0))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"--port {port}: cannot be had ({reason}); give another, or none to take a free one"
        ) from error


def _what(count: int, ihc: Path) -> str:
    if not ihc.is_dir():
        return ihc.name
    return f"{count} result{'s' if count > 1 else ''} of {ihc}"


def _has_screen() -> bool:
    """Whether a browser would open a window; on a bare terminal it would take the terminal over."""
    if sys.platform.startswith("linux"):
        return any(name in os.environ for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))
    return True
