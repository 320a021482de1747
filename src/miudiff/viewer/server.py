"""Running the viewer: on this machine's loopback only, at a free port, until Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path

import uvicorn

from miudiff.errors import ConfigError
from miudiff.viewer.app import create_app
from miudiff.viewer.cases import find_cases

HOST = "127.0.0.1"


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
