"""The trial of the viewer: hostile requests, links, records and connections, and files that change under it.

Whatever is asked, no byte of a file that the user did not name is sent, no answer is a traceback, and the server goes on.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from command import CommandLine, Tally
from miudiff.images import write_image
from miudiff.viewer import create_app, find_cases, server
from viewer_server import ask, serving

SECRET = b"nobody-may-read-this"
MAGENTA, GREY = (250, 5, 250), (128, 120, 130)
ENDINGS = (
    ".json",
    ".report.html",
    ".unreadable.geojson",
    ".roi.geojson",
    ".uncertainty.png",
    ".uncertainty.ome.tif",
)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """Two results with all that lies beside one, and a folder beside them that nobody named."""
    results, private = tmp_path / "results", tmp_path / "private"
    for name in ("a", "b"):
        write_image(results / f"{name}.ome.tif", flat(GREY), 0.5)
        write_image(results / f"{name}.uncertainty.png", flat(GREY))
        content = {"miudiff": "0.1.0", "source": f"{name}.he.tif", "mpp": 0.5, "width": 300, "height": 200}
        write_image(results / f"{name}.he.tif", flat(GREY), 0.5)
        (results / f"{name}.json").write_text(json.dumps(content))
        (results / f"{name}.report.html").write_text("<p>a report</p>")
    (results / "failures.csv").write_text("slide,error\nx.svs,damaged\n")
    write_image(private / "secret.tif", flat(MAGENTA), 0.5)
    (private / "secret.json").write_bytes(b'{"miudiff":\n"' + SECRET + b'"}\n')
    return results


def flat(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((200, 300, 3), colour, np.uint8)


@contextlib.contextmanager
def complaints(tally: Tally) -> Iterator[None]:
    """Count what the server logs as an error, a traceback that its user would see; begun once it runs."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = records.append  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
    yield
    for logger in loggers:
        logger.removeHandler(handler)
    for record in records:
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else ""
        tally.add("the server's log", f"{record.getMessage()} {trace[-600:]}")


def wrong(body: bytes) -> str:
    """What no answer may hold, "" if this one doesn't."""
    if SECRET in body:
        return "holds the secret"
    if b"Traceback" in body or b"Internal Server Error" in body:
        return f"a traceback: {body[-200:]!r}"
    at = max(body.find(b"\xff\xd8\xff"), body.find(b"\x89PNG"))
    if at >= 0:
        with contextlib.suppress(OSError, SyntaxError):
            pixels = np.asarray(Image.open(io.BytesIO(body[at:])).convert("RGBA")).astype(int)
            shown = pixels[pixels[..., 3] > 0][:, :3]
            if len(shown) and (np.abs(shown - MAGENTA).max(-1) < 60).any():
                return "holds the secret picture"
    return ""


def raw(port: int, request: bytes, patience: float = 3.0) -> bytes:
    """What comes back for bytes as they are, until the server ends it or nothing more comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as connection:
        parts = []
        with contextlib.suppress(OSError):
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                parts.append(part)
        return b"".join(parts)


PAGES = [
    "/",
    "/case/0/",
    "/case/0/data",
    "/case/1/record",
    "/case/0/report",
    "/case/0/tile/he/0/0_0",
    "/case/1/thumbnail/ihc",
]
PAGES += ["/case/0/tile/uncertainty/0/0_0", "/static/viewer.js", "/static/openseadragon/LICENSE.txt"]
NUMBERS = [
    "-1",
    "1e9",
    "0x1",
    "9" * 400,
    "9" * 20_000,
    "٣",
    "1_0",
    "+1",
    " 1",
    "0.0",
    "NaN",
    "00000000000",
    "2147483648",
    "",
]
ODD = [
    "..",
    "%2e%2e",
    "..%2f",
    "%2f",
    "%5c",
    "\\",
    "%00",
    "%0d%0aX:1",
    "//",
    ";",
    "?",
    "#",
    "%",
    "%zz",
    "%ff%fe",
    "~",
    "*",
    "{case}",
]
METHODS = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "PATCH",
    "get",
    "FOO",
    "G" * 3000,
    "PRI",
    "\x00",
]
HOSTS = [
    "localhost",
    "127.0.0.1:1",
    "[::1]",
    "evil.example",
    "",
    "localhost\x00",
    "local host",
    "@localhost",
    "localhost:" + "9" * 900,
]
HEADERS = [
    "X: " + "a" * 60_000,
    "If-None-Match: *",
    "If-None-Match: " + '"x",' * 5000,
    "Range: bytes=0-1",
    "Range: bytes=-9,9-",
]
HEADERS += [
    "Content-Length: -1",
    "Content-Length: 99999999999999",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: x, chunked",
]
HEADERS += [
    "Expect: 100-continue",
    "Upgrade: websocket\r\nConnection: Upgrade",
    "Connection: close",
    ": none",
    "no colon",
    " folded",
]
HEADERS += [
    "Accept-Encoding: gzip",
    "Host: localhost",
    "X-Forwarded-Host: localhost",
    "Content-Length: 5\r\nContent-Length: 6",
]
BODIES = [
    b"",
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"ffffffffffffffffffff\r\n",
    b"zz\r\n",
    b"\x00" * 70_000,
    b"GET / HTTP/1.1\r\n\r\n",
]


def hostile_path(rng: random.Random, shelf: Path) -> str:
    page = rng.choice(PAGES)
    parts = page.split("/")
    how = rng.randrange(7)
    if how == 0:  # a number that is none
        digits = [i for i, part in enumerate(parts) if part[:1].isdigit()] or [len(parts) - 1]
        parts[rng.choice(digits)] = rng.choice(NUMBERS)
        return "/".join(parts)
    if how == 1:  # somewhere up and down again
        target = rng.choice([shelf / "a.json", shelf.parent / "private" / "secret.json", Path("/etc/passwd")])
        up = rng.choice(["../", "..%2f", "%2e%2e/", "%252e%252e%252f", "..\\", "....//"]) * rng.randint(1, 12)
        return page.rstrip("/") + "/" + up + rng.choice([str, quote])(str(target).lstrip("/"))
    if how == 2:  # the path itself
        target = shelf.parent / "private" / rng.choice(["secret.json", "secret.tif"])
        return rng.choice(["/", "/static/", "/case/0/", "//", "/case/", "file://"]) + quote(
            str(target), safe=rng.choice(["/", ""])
        )
    if how == 3:  # very long
        return page + rng.choice(["/x", "%41", "?x=", "a"]) * rng.choice([300, 3000, 30_000])
    if how == 4:  # another layer, another place
        layer = rng.choice(["he", "ihc", "ihc-dab", "real", "uncertainty", "record", "..", "he/..", "*"])
        numbers = [rng.choice([*NUMBERS, "0", "1", "3", "30"]) for _ in range(4)]
        return f"/case/{numbers[0]}/tile/{layer}/{numbers[1]}/{numbers[2]}_{numbers[3]}"
    for _ in range(rng.randint(1, 4)):  # odd things anywhere
        parts.insert(rng.randint(1, len(parts)), rng.choice(ODD))
    return "/".join(parts) or "/"


def hostile_request(rng: random.Random, shelf: Path) -> bytes:
    """A request as bytes, with something wrong in one or several of its parts, or no request at all."""
    if rng.random() < 0.1:
        some = rng.randbytes(rng.choice([1, 40, 5000]))
        return rng.choice(
            [
                some,
                b"\r\n" * 500 + some,
                b"\x16\x03\x01" + some,
                b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + some,
            ]
        )
    path = hostile_path(rng, shelf) if rng.random() < 0.75 else rng.choice(PAGES)
    method = rng.choice(METHODS) if rng.random() < 0.2 else "GET"
    version = (
        rng.choice(["HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/9", "", "http/1.1"])
        if rng.random() < 0.1
        else "HTTP/1.1"
    )
    lines = [f"{method} {path} {version}"]
    if rng.random() < 0.95:
        lines.append(f"Host: {rng.choice(HOSTS) if rng.random() < 0.2 else 'localhost'}")
    lines += rng.sample(HEADERS, rng.choice([0, 0, 1, 1, 3]))
    if rng.random() < 0.03:
        lines += [f"X-{number}: {number}" for number in range(2000)]
    head = "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n"
    request = head + (rng.choice(BODIES) if rng.random() < 0.3 else b"")
    return request[: rng.randrange(len(request))] if rng.random() < 0.08 else request


def try_requests(shelf: Path, tally: Tally, count: int) -> None:
    rng = random.Random(tally.seed)
    with serving(create_app(find_cases(None, shelf), shelf)) as port, complaints(tally):
        for number in range(count):
            request = hostile_request(rng, shelf)
            body = raw(port, request)
            told = wrong(body)
            if b"root:" in body or str(shelf.parent / "private").encode() in body.partition(b"\r\n\r\n")[2]:
                told = told or "tells of what was not named"
            tally.add(f"request {number} {request[:120]!r}", told)
        status, _, body = ask(port, "/case/0/tile/he/0/0_0")
        tally.add("afterwards", wrong(body) or ("" if status == 200 else f"status {status}"))


def test_hostile_requests_get_nothing(shelf: Path, tally: Tally):
    try_requests(shelf, tally, 80)
    tally.check()


@pytest.mark.robustness
def test_five_hundred_hostile_requests_get_nothing(shelf: Path, tally: Tally):
    try_requests(shelf, tally, 500)
    tally.check()


def ask_all(port: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Each address of `count` cases with its answer."""
    pages = ["", "data", "record", "report", "thumbnail/he", "thumbnail/ihc"]
    pages += [f"tile/{layer}/0/0_0" for layer in ("he", "ihc", "ihc-dab", "uncertainty")]
    for path in ["/", *(f"/case/{number}/{page}" for number in range(count) for page in pages)]:
        yield path, ask(port, path)[2]


def plant(rng: random.Random, shelf: Path) -> str:
    """A link in place of a file of the results, which leads out of them by one way or another."""
    name = rng.choice(
        [f"{rng.choice('ab')}{ending}" for ending in (*ENDINGS, ".he.tif", ".ome.tif")]
        + ["failures.csv", "translation.json"]
    )
    secret = shelf.parent / "private" / ("secret.tif" if name.endswith((".tif", ".png")) else "secret.json")
    place, way = shelf / name, rng.randrange(4)
    place.unlink(missing_ok=True)
    if way == 0:
        place.symlink_to(secret)
    elif way == 1:  # with dots
        place.symlink_to(Path("..") / ".." / shelf.parent.name / "private" / secret.name)
    elif way == 2:  # by another link
        (shelf / f"link-{name}").unlink(missing_ok=True)
        (shelf / f"link-{name}").symlink_to(secret)
        place.symlink_to(f"link-{name}")
    else:  # by a folder
        (shelf / "folder").unlink(missing_ok=True)
        (shelf / "folder").symlink_to(secret.parent)
        if name.endswith(".json") and len(name) == 6:
            record = {
                "miudiff": "0",
                "source": f"folder/{secret.stem}.tif",
                "regions": f"folder/{secret.name}",
            }
            place.write_text(json.dumps(record))
        else:
            place.symlink_to(Path("folder") / secret.name)
    return f"{name}, way {way}"


def try_links(shelf: Path, tally: Tally, count: int) -> None:
    rng = random.Random(tally.seed)
    for _ in range(count):
        early = plant(rng, shelf)
        with serving(create_app(find_cases(None, shelf), shelf)) as port, complaints(tally):
            late = plant(rng, shelf)
            for path, body in ask_all(port, 2):
                tally.add(f"{early}; {late}; {path}", wrong(body))


def test_links_lead_nowhere(shelf: Path, tally: Tally):
    try_links(shelf, tally, 4)
    tally.check()


@pytest.mark.robustness
def test_many_links_lead_nowhere(shelf: Path, tally: Tally):
    try_links(shelf, tally, 60)
    tally.check()


def meddle(rng: random.Random, shelf: Path, until: threading.Event) -> None:
    """Replace, remove, damage and redirect the files of the results, over and over."""
    whole = {path.name: path.read_bytes() for path in shelf.iterdir()}
    secrets = {True: shelf.parent / "private" / "secret.tif", False: shelf.parent / "private" / "secret.json"}
    part = shelf / ".part"
    while not until.is_set():
        name, how = rng.choice(sorted(whole)), rng.randrange(6)
        part.unlink(missing_ok=True)
        if how == 0:
            (shelf / name).unlink(missing_ok=True)
        elif how in (1, 2):
            part.symlink_to(secrets[name.endswith((".tif", ".png"))])
            os.replace(part, shelf / name)
        else:
            part.write_bytes(whole[name][: len(whole[name]) // 2 if how == 3 else None])
            os.replace(part, shelf / name)
        time.sleep(rng.choice([0, 0, 0.001, 0.01]))


def try_load(shelf: Path, tally: Tally, seconds: float) -> None:
    until, rng, lock = threading.Event(), random.Random(tally.seed), threading.Lock()
    statuses: set[int] = set()

    def look(port: int, rng: random.Random) -> None:
        while not until.is_set():
            layer = rng.choice(["he", "ihc", "ihc-dab", "uncertainty"])
            page = rng.choice([f"tile/{layer}/0/0_0", f"tile/{layer}/0/0_0", "data", "record", "report", ""])
            path = f"/case/{rng.randrange(2)}/{page}"
            status, _, body = ask(port, path)
            with lock:
                statuses.add(status)
                tally.add(path, wrong(body) or ("" if status in (200, 404, 500) else f"status {status}"))

    with serving(create_app(find_cases(None, shelf), shelf)) as port, complaints(tally):
        work = [threading.Thread(target=look, args=(port, random.Random(rng.random()))) for _ in range(6)]
        work.append(threading.Thread(target=meddle, args=(random.Random(rng.random()), shelf, until)))
        for thread in work:
            thread.start()
        time.sleep(seconds)
        until.set()
        for thread in work:
            thread.join(20)
        tally.add("threads", "one is stuck" if any(thread.is_alive() for thread in work) else "")
        tally.add("afterwards", "" if ask(port, "/static/viewer.js")[0] == 200 else "no answer")
    assert 200 in statuses


def test_files_that_change_under_load_are_shown_or_refused(shelf: Path, tally: Tally):
    try_load(shelf, tally, 2.0)
    tally.check()


@pytest.mark.robustness
def test_files_that_change_under_load_for_long_are_shown_or_refused(shelf: Path, tally: Tally):
    try_load(shelf, tally, 30.0)
    tally.check()


@pytest.mark.robustness
def test_half_open_connections_end_and_keep_nobody_out(shelf: Path, tally: Tally, monkeypatch):
    monkeypatch.setattr(server, "PATIENCE", 2.0)
    rng = random.Random(tally.seed)
    whole = b"GET /case/0/data HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\nbody"
    with serving(create_app(find_cases(None, shelf), shelf)) as port, complaints(tally):
        waiting = []
        for _ in range(400):
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
            connection.sendall(whole[: rng.randrange(len(whole) + 1)])
            waiting.append(connection)
        tally.add("an answer meanwhile", "" if ask(port, "/case/0/tile/ihc/0/0_0")[0] == 200 else "none")
        for connection in waiting:
            told = ""
            try:
                while connection.recv(1 << 16):
                    pass
            except TimeoutError:
                told = "still open"
            except OSError:
                pass
            connection.close()
            tally.add("half-open", told)
        tally.add("afterwards", "" if ask(port, "/")[0] == 200 else "no answer")
    tally.check()


def hostile_value(rng: random.Random, depth: int = 0) -> str:
    """JSON of whatever kind, some of it none."""
    if depth < 3 and rng.random() < 0.3:
        inner = ", ".join(hostile_value(rng, depth + 1) for _ in range(rng.randrange(4)))
        return (
            f"[{inner}]"
            if rng.random() < 0.5
            else f'{{"a": {hostile_value(rng, depth + 1)}, "mpp": {inner or 0} }}'
        )
    deep = rng.choice([50, 70, 900, 100_000])
    return rng.choice([
        "0.0", "-1", "1" + "0" * 400, "1e999", "-1e308", "1e-300", "NaN", "Infinity", "true", "null", '""', '"\\ud800"', '"\\u0000"',
        '"\\udce9"', '"' + "x" * 5000 + '"', "[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep, "9" * 5000, '"../../../etc/passwd"',
        '"<script>"', '"a\\nb"', "[[1, 2, 3, 4]]", "[[1e300, 0, -5, 1e18]]", "[1, 2", "0.5", '"he.tif"',
    ])  # fmt: skip


KEYS = (
    "miudiff",
    "source",
    "mpp",
    "mpp_source",
    "width",
    "height",
    "model",
    "method",
    "seed",
    "config",
    "unreadable",
)
KEYS += ("regions", "regions_sha256", "samples", "tissue_share", "marker", "mode", "glass", "seams", "run")


def hostile_record(rng: random.Random) -> str:
    values = {"miudiff": '"0.1.0"', "source": '"a.he.tif"', "width": "300", "height": "200", "mpp": "0.5"}
    values |= {key: hostile_value(rng) for key in rng.sample(KEYS, rng.randint(1, 4))}
    return "{" + ", ".join(f'"{key}": {value}' for key, value in values.items()) + "}"


def try_records(shelf: Path, tally: Tally, miudiff: CommandLine, count: int) -> None:
    rng = random.Random(tally.seed)
    for number in range(count):
        text = hostile_record(rng)
        told = f"record {number} {text[:200]}"
        (shelf / "a.json").write_text(text)
        (shelf / "translation.json").write_text(f'{{"runs": [{text}], "images": {{"a.ome.tif": {text}}}}}')
        with serving(create_app(find_cases(None, shelf), shelf)) as port, complaints(tally):
            status, _, body = ask(port, "/")
            listed = status == 200 and b'aria-label="Open b"' in body
            tally.add(told, "" if listed else f"gallery {status}")
            for path, body in ask_all(port, 2):
                tally.add(f"{told} {path}", wrong(body))
        ended = miudiff("report", shelf / "a.ome.tif")
        tally.add(
            f"report of {told}", ended.wrong() or ("" if ended.code in (0, 2) else f"code {ended.code}")
        )


def test_hostile_records_leave_the_gallery_and_give_one_line(shelf: Path, tally: Tally, miudiff: CommandLine):
    try_records(shelf, tally, miudiff, 12)
    tally.check()


@pytest.mark.robustness
def test_many_hostile_records_leave_the_gallery_and_give_one_line(
    shelf: Path, tally: Tally, miudiff: CommandLine
):
    try_records(shelf, tally, miudiff, 150)
    tally.check()
