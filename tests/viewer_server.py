"""What the viewer's tests share: a server of its own on a free port, and plain requests that nothing tidies up before they are sent."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator, Mapping, Sequence

import uvicorn
from starlette.applications import Starlette

from miudiff.viewer.server import config, listen


@contextlib.contextmanager
def serving(app: Starlette) -> Iterator[int]:
    """The port at which `app` answers while the block runs."""
    with listen(None) as listener:
        server = uvicorn.Server(config(app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def ask(
    port: int, path: str, method: str = "GET", headers: Sequence[tuple[str, str]] | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers (names in lower case) and body of the answer; the path is sent as it stands.

    `headers` replaces the Host header too, so that it can be wrong.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=headers is not None)
        for name, value in headers or ():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()
