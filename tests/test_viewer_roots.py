"""What the viewer serves and what it keeps to itself: links, sources elsewhere, bad records, connections that bring nothing."""

from __future__ import annotations

import http.client
import json
import logging
import os
import socket
import time

import numpy as np
import pytest

from miudiff.images import write_image
from miudiff.viewer import Case, create_app, find_cases, server
from miudiff.viewer.roots import Roots
from viewer_server import ask, serving

SECRET = b"the secret of somebody else"


@pytest.fixture
def shelf(tmp_path):
    """A folder of results with one result, and beside the folder what nobody named."""
    results = tmp_path / "results"
    pixels = np.random.default_rng(0).integers(60, 220, (40, 60, 3), np.uint8)
    write_image(results / "a.ome.tif", pixels, 0.5)
    write_image(results / "he.tif", pixels[::-1], 0.5)
    write_image(tmp_path / "private" / "he.tif", pixels[:, ::-1], 0.5)
    (tmp_path / "private" / "secret.json").write_bytes(b'{"miudiff":\n"' + SECRET + b'"}')
    record(results, source="he.tif")
    return results


def record(results, **values):
    content = {"miudiff": "0.1.0", "mpp": 0.5, "method": "sdedit", "width": 60, "height": 40}
    (results / "a.json").write_text(json.dumps(content | values))


def answers(results, he=None):
    """Every answer about the first result, by its address."""
    pages = ["", "data", "record", "report", "tile/he/0/0_0", "tile/ihc/0/0_0", "tile/uncertainty/0/0_0"]
    with serving(create_app(find_cases(he, results), results)) as port:
        found = {page: ask(port, f"/case/0/{page}")[::2] for page in pages}
        return found | {"gallery": ask(port, "/")[::2]}


LINKS = ["a.report.html", "a.json", "a.unreadable.geojson", "failures.csv", "translation.json"]


@pytest.mark.parametrize("name", LINKS)
def test_a_link_that_leads_out_of_the_results_is_not_served(shelf, name):
    (shelf / name).unlink(missing_ok=True)
    (shelf / name).symlink_to(shelf.parent / "private" / "secret.json")
    found = answers(shelf)
    assert not any(SECRET in body for _, body in found.values())
    assert found["gallery"][0] == 200


@pytest.mark.parametrize("name", ["a.uncertainty.ome.tif", "a.uncertainty.png", "a.ome.tif", "he.tif"])
def test_an_image_behind_a_link_that_leads_out_of_the_results_is_not_served(shelf, name):
    (shelf / name).unlink(missing_ok=True)
    (shelf / name).symlink_to(shelf.parent / "private" / "he.tif")
    role = {"a.ome.tif": "ihc", "he.tif": "he"}.get(name, "uncertainty")
    status, body = answers(shelf)[f"tile/{role}/0/0_0"]
    assert status in (404, 500)
    assert not body.startswith((b"\xff\xd8", b"\x89PNG"))


def test_a_folder_on_the_way_that_becomes_a_link_is_noticed(shelf):
    inner = shelf / "sources"
    inner.mkdir()
    (shelf / "he.tif").rename(inner / "he.tif")
    record(shelf, source=str(inner / "he.tif"))
    with serving(create_app(find_cases(None, shelf), shelf)) as port:
        assert ask(port, "/case/0/tile/he/0/0_0")[0] == 200
        inner.rename(shelf / "before")
        inner.symlink_to(shelf.parent / "private")
        status, _, body = ask(port, "/case/0/tile/he/0/0_0")
        assert (status, b"lies outside" in body) == (500, True)


def test_a_link_within_the_results_is_served(shelf):
    (shelf / "page.html").write_text("a page")
    (shelf / "a.report.html").symlink_to("page.html")
    assert answers(shelf)["report"] == (200, b"a page")


def test_results_that_are_named_by_a_link_are_served(shelf, tmp_path):
    (tmp_path / "link").symlink_to(shelf)
    found = answers(tmp_path / "link")
    assert [found[page][0] for page in ("tile/he/0/0_0", "tile/ihc/0/0_0", "record")] == [200, 200, 200]


def test_a_source_that_only_the_record_names_is_not_shown_and_the_page_says_how_to_give_it(shelf):
    elsewhere = shelf.parent / "private" / "he.tif"
    record(shelf, source=str(elsewhere))
    (shelf / "he.tif").unlink()
    found = answers(shelf)
    assert found["tile/he/0/0_0"][0] == 404
    said = json.loads(found["data"][1])["sheets"]["he"]["error"]
    assert f"the record names {elsewhere}, which lies outside" in said
    assert f"miudiff view {elsewhere} {shelf / 'a.ome.tif'}" in said
    assert b"lies outside" in found["gallery"][1]


def test_a_source_that_the_user_gives_is_shown_wherever_it_lies(shelf):
    elsewhere = shelf.parent / "private"
    record(shelf, source=str(elsewhere / "he.tif"))
    assert answers(shelf, elsewhere)["tile/he/0/0_0"][0] == 200
    (case,) = find_cases(elsewhere / "he.tif", shelf / "a.ome.tif")
    with serving(create_app([case])) as port:
        assert ask(port, "/case/0/tile/he/0/0_0")[0] == 200


def test_a_slide_that_names_other_files_is_shown_only_where_it_is_given(shelf):
    vms = shelf / "he.vms"  # Hamamatsu's text file of the names of its images
    vms.write_text("[Virtual Microscope Specimen]\nImageFile=../private/he.jpg\n")
    roots = Roots.of(shelf)

    class Open:
        path, format = vms, "hamamatsu"

    with pytest.raises(Exception, match="several files"):
        roots.check(Open())
    Roots.of(shelf, vms).check(Open())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(shelf):
    for name in ("a.report.html", "a.uncertainty.png", "failures.csv", "translation.json"):
        os.mkfifo(shelf / name)
    found = answers(shelf)
    assert [found[page][0] for page in ("report", "tile/uncertainty/0/0_0", "gallery")] == [404, 404, 200]


DEEP = "[" * 100_000 + "]" * 100_000
BAD = [
    '{"miudiff": "0", "source": "he.tif", "mpp": 1' + "0" * 400 + "}",
    '{"miudiff": "0", "source": "he.tif", "mpp": 1e999}',
    '{"miudiff": "0", "source": "he.tif", "mpp": 1e-300}',
    '{"miudiff": "0", "source": "he.tif", "mpp": NaN}',
    '{"miudiff": "0", "source": "he.tif", "mpp": true}',
    '{"miudiff": "0", "source": "he.tif", "mpp": 0.5, "width": 1' + "0" * 5000 + "}",
    '{"miudiff": "0", "source": "he.tif", "config": ' + DEEP + "}",
    '{"miudiff": "0", "source": "he.tif", "config": ' + DEEP[99_500:100_500] + "}",
    '{"miudiff": "0", "source": "\\ud800.tif"}',
    '{"miudiff": "0", "source": "\\u0000"}',
    '{"miudiff": "0", "source": "' + "x" * 10_000 + '"}',
    '{"miudiff": "0", "source": {"a": [1, 2]}, "model": [1], "seed": {}, "width": "w", "height": [], "unreadable": 3}',
    '{"miudiff": 0, "source": 7, "mpp": [], "method": {}, "tissue_share": 1e300, "regions": 5, "model": {"mpp": "x"}}',
]


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_one_bad_record_leaves_the_gallery_to_the_others(shelf, text):
    write_image(shelf / "b.ome.tif", np.full((8, 8, 3), 90, np.uint8), 0.5)
    (shelf / "b.json").write_text(text)
    cases = find_cases(None, shelf)
    assert [case.name for case in cases] == ["a", "b"]
    with serving(create_app(cases, shelf)) as port:
        statuses = {page: ask(port, page)[0] for page in ("/", "/case/0/data", "/case/1/", "/case/1/data")}
        assert set(statuses.values()) == {200}, statuses
        assert ask(port, "/case/1/tile/ihc/0/0_0")[0] == 200


def test_a_scale_that_no_slide_has_is_left_out_and_said(shelf):
    record(shelf, source="he.tif", mpp=1e-300)
    data = json.loads(answers(shelf)["data"][1])
    assert data["field"]["mpp"] == 0.5
    assert "The record's scale is none of a slide" in data["notes"][0]


@pytest.mark.parametrize("run", [0.0, "0", None, [], 10**30, {"a": 1}, 5])
def test_an_image_of_a_run_that_is_none_has_no_record(tmp_path, run):
    for name in ("x.png", "y.png"):
        write_image(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
    images = {"x.png": {"source": "x.tif", "run": 0}, "y.png": {"source": "y.tif", "run": run}}
    (tmp_path / "translation.json").write_text(json.dumps({"runs": [{"method": "cut"}], "images": images}))
    assert [case.name for case in find_cases(None, tmp_path)] == ["x"]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(server, "PATIENCE", 0.6)


def closed(connection):
    """Whether the other side has ended a connection."""
    connection.settimeout(5)
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


HALVES = [
    b"",
    b"GET / HT",
    b"GET /case/0/data HTTP/1.1\r\nHost: localhost\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET /",
]


def test_connections_that_bring_no_request_are_closed_and_keep_nobody_out(shelf, impatient):
    with serving(create_app(find_cases(None, shelf), shelf)) as port:
        waiting = []
        for number in range(200):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(HALVES[number % len(HALVES)])
            waiting.append(connection)
        began = time.monotonic()
        assert ask(port, "/case/0/tile/ihc/0/0_0")[0] == 200
        assert time.monotonic() - began < 2
        assert all(closed(connection) for connection in waiting)
        for connection in waiting:
            connection.close()
        assert ask(port, "/")[0] == 200


def test_a_request_that_comes_byte_by_byte_is_not_waited_for(shelf, impatient):
    with serving(create_app(find_cases(None, shelf), shelf)) as port:
        connection = socket.create_connection(("127.0.0.1", port))
        began = time.monotonic()
        ended = False
        while not ended and time.monotonic() - began < 5:
            try:
                connection.sendall(b"G")
            except OSError:
                ended = True
            time.sleep(0.05)
        assert ended
        assert time.monotonic() - began < 3


def test_a_reader_who_takes_nothing_is_let_go_and_a_slow_one_is_not(shelf, impatient):
    (shelf / "a.report.html").write_bytes(b"x" * 30_000_000)
    request = b"GET /case/0/report HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with serving(create_app(find_cases(None, shelf), shelf)) as port:
        idle, slow = (socket.create_connection(("127.0.0.1", port)) for _ in range(2))
        idle.sendall(request)
        slow.sendall(request)
        taken = 0
        for _ in range(8):
            time.sleep(0.3)
            taken += len(slow.recv(2_000_000))
        slow.settimeout(5)
        while taken < 30_000_000 and (part := slow.recv(1_000_000)):
            taken += len(part)
        assert taken > 30_000_000 - 1
        rest = 0
        idle.settimeout(5)
        try:
            while part := idle.recv(1_000_000):
                rest += len(part)
        except ConnectionError:
            pass
        assert rest < 30_000_000
        for connection in (idle, slow):
            connection.close()


def test_nonsense_after_a_request_is_no_fault_of_the_application(shelf, caplog):
    request = b"POST /case/0/data HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    logger = logging.getLogger("uvicorn.error")
    with serving(create_app(find_cases(None, shelf), shelf)) as port:
        logger.addHandler(caplog.handler)
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(request)
                assert closed(connection)
        assert ask(port, "/")[0] == 200
        logger.removeHandler(caplog.handler)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_browser_that_keeps_its_connection_asks_again(shelf, impatient):
    with serving(create_app(find_cases(None, shelf), shelf)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for _ in range(4):
            connection.request("GET", "/case/0/data")
            assert connection.getresponse().read()
            time.sleep(0.25)
        connection.close()


def test_a_case_made_in_python_shows_its_own_files_alone(shelf):
    private = shelf.parent / "private"
    (shelf / "a.report.html").symlink_to(private / "secret.json")
    case = Case("a", private / "he.tif", shelf / "a.ome.tif", shelf / "a.json")
    with serving(create_app([case])) as port:
        pages = ("tile/he/0/0_0", "tile/ihc/0/0_0", "record", "report")
        assert [ask(port, f"/case/0/{page}")[0] for page in pages] == [200, 200, 200, 404]
