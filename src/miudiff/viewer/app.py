"""The pages and what they ask for.

    /                       the gallery, or the only case
    /case/I/                a case              /case/I/data      where its slides lie, as JSON
    /case/I/tile/LAYER/K/X_Y                    a tile of a layer, halved K times
    /case/I/thumbnail/LAYER                     a layer in one tile
    /case/I/closeup/LAYER                       what was stained of it, and where that lies
    /case/I/record, /case/I/report              its files
    /static/NAME                                scripts and styles of this package

A case is asked for by its number and a layer by its name in a table: no part of a URL ever becomes a path.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from miudiff import __version__
from miudiff.errors import DataError, SlideError
from miudiff.pages.page import BANNER, STYLE
from miudiff.slides.reader import Slide
from miudiff.viewer.cases import FOLDER_RECORD, Case, read_failures
from miudiff.viewer.closeup import CLOSEUPS, closeup
from miudiff.viewer.facts import told
from miudiff.viewer.guard import REPORT, Guard
from miudiff.viewer.sheets import LABELS, open_role, page_data, path_of, regions_of, version_of
from miudiff.viewer.tiles import LAYERS, Place, Slides, encode, halvings, inside, read_tile

FRESH = {"Cache-Control": "no-store"}
CHECKED = {"Cache-Control": "private, no-cache"}
# A tile's address holds its file's version, so a browser may keep it.
KEPT = {"Cache-Control": "private, max-age=86400"}
STATIC = {
    "icon.svg": "image/svg+xml",
    "stage.css": "text/css",
    "gallery.js": "text/javascript",
    "viewer.js": "text/javascript",
    "controls.js": "text/javascript",
    "panes.js": "text/javascript",
    "scale.js": "text/javascript",
    "openseadragon/openseadragon.min.js": "text/javascript",
    "openseadragon/LICENSE.txt": "text/plain",
}


def create_app(cases: Sequence[Case], folder: Path | None = None) -> Starlette:
    """The application for these cases.

    Args:
        cases: What to show, at least one.
        folder: The folder they are the results of: a gallery with its table of failures. None goes to a lone case at once.
    """
    pages = Pages(cases, folder)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        pages.slides.close()

    routes = [
        Route("/", pages.gallery),
        Route("/case/{case}/", pages.case),
        Route("/case/{case}/data", pages.data),
        Route("/case/{case}/tile/{layer}/{halvings}/{place}", pages.tile),
        Route("/case/{case}/thumbnail/{layer}", pages.thumbnail),
        Route("/case/{case}/closeup/{layer}", pages.closeup),
        Route("/case/{case}/record", pages.record),
        Route("/case/{case}/report", pages.report),
        Route("/static/{name:path}", pages.static),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard)], lifespan=lifespan)


class Pages:
    """Answers to each address. They are plain functions, which starlette runs in threads."""

    def __init__(self, cases: Sequence[Case], folder: Path | None) -> None:
        if not cases:
            raise ValueError("no cases")
        self.cases, self.folder = list(cases), folder
        self.slides = Slides()
        files = resources.files("miudiff.viewer")
        self._static = {name: (files / "static" / name).read_bytes() for name in STATIC}
        self._static["style.css"] = STYLE.encode()
        self._tags = {name: _tag(content) for name, content in self._static.items()}
        # A path with the ending .j2 says nothing to Jinja, so escaping is asked for and not guessed.
        environment = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self._templates = {
            name: environment.from_string((files / f"{name}.html.j2").read_text(encoding="utf-8"))
            for name in ("gallery", "case")
        }

    def gallery(self, request: Request) -> Response:
        if self.folder is None and len(self.cases) == 1:
            return RedirectResponse("case/0/")
        try:
            failures, note = (read_failures(self.folder) if self.folder else []), ""
        except DataError as error:
            failures, note = [], str(error)
        cards = [(number, case, told(case)) for number, case in enumerate(self.cases)]
        title = self.folder.absolute().name if self.folder else f"{len(self.cases)} results"
        return self._page("gallery", title=title, cards=cards, failures=failures, note=note)

    def case(self, request: Request) -> Response:
        number, case = self._case(request)
        several = self.folder is not None or len(self.cases) > 1
        return self._page(
            "case",
            case=case,
            facts=told(case),
            several=several,
            previous=number - 1 if number else None,
            following=number + 1 if number + 1 < len(self.cases) else None,
        )

    def data(self, request: Request) -> Response:
        _, case = self._case(request)
        return _json(page_data(case, self.slides))

    def tile(self, request: Request) -> Response:
        _, case = self._case(request)
        column, _, row = request.path_params["place"].partition("_")
        place = Place(_number(request.path_params["halvings"]), _number(column), _number(row))
        return self._tile(request, case, request.path_params["layer"], place)

    def thumbnail(self, request: Request) -> Response:
        _, case = self._case(request)
        return self._tile(request, case, request.path_params["layer"], None)

    def closeup(self, request: Request) -> Response:
        _, case = self._case(request)
        layer = request.path_params["layer"]
        if layer not in CLOSEUPS:
            raise HTTPException(404)

        def draw(slide: Slide) -> tuple[bytes, str]:
            return encode(closeup(case, layer, slide, self.slides))

        return self._picture(request, case, (layer, "ihc"), "closeup", CHECKED, draw)

    def record(self, request: Request) -> Response:
        _, case = self._case(request)
        if case.record is None or not case.allowed.there(case.record):
            raise HTTPException(404)
        if case.record.name == FOLDER_RECORD and case.facts:  # it holds every other image's, too
            return _json({"image": case.ihc.name, **case.facts})
        return Response(_read(case, case.record), media_type="application/json", headers=FRESH)

    def report(self, request: Request) -> Response:
        _, case = self._case(request)
        report = case.report  # asked for once: what lies beside a result may come and go
        if report is None:
            raise HTTPException(404)
        return HTMLResponse(_read(case, report), headers={**FRESH, "Content-Security-Policy": REPORT})

    def static(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._static:
            raise HTTPException(404)
        headers = {"ETag": self._tags[name], **CHECKED}
        return _unchanged(request, headers) or Response(
            self._static[name], media_type=STATIC.get(name, "text/css"), headers=headers
        )

    def _case(self, request: Request) -> tuple[int, Case]:
        number = _number(request.path_params["case"])
        if number >= len(self.cases):
            raise HTTPException(404)
        return number, self.cases[number]

    def _tile(self, request: Request, case: Case, layer: str, place: Place | None) -> Response:
        if layer not in LAYERS:
            raise HTTPException(404)
        role, paint = LAYERS[layer]

        def draw(slide: Slide) -> tuple[bytes, str]:
            at = place or Place(halvings(slide.width, slide.height), 0, 0)
            pixels, regions = read_tile(slide, at), regions_of(case, role, slide)
            return encode(paint(pixels), inside(regions, at, pixels) if regions else None)

        return self._picture(request, case, (role,), f"{layer} {place}", KEPT if place else CHECKED, draw)

    def _picture(
        self,
        request: Request,
        case: Case,
        roles: Sequence[str],
        name: str,
        keep: Mapping[str, str],
        draw: Callable[[Slide], tuple[bytes, str]],
    ) -> Response:
        """What `draw` makes of the slide of the first role; it depends on those of all, and on `name`."""
        paths = {role: path for role in roles if (path := path_of(case, role)) is not None}
        path = paths.get(roles[0])
        if path is None:
            raise HTTPException(404)
        try:
            versions = " ".join(version_of(case, role, of) for role, of in paths.items())
            headers = {"ETag": _tag(f"{versions} {name}".encode()), **keep}
            if (unchanged := _unchanged(request, headers)) is not None:
                return unchanged
            content, kind = draw(open_role(case, path, self.slides))
        except ValueError as error:
            raise HTTPException(404) from error
        except (SlideError, OSError) as error:
            # What follows is advice for translating; here the reason is wanted.
            reason = str(error).partition("; ")[0] + "\n"
            return PlainTextResponse(_encoded(reason), status_code=500, headers=FRESH)
        return Response(content, media_type=kind, headers=headers)

    def _page(self, name: str, **values: Any) -> Response:
        page = self._templates[name].render(banner=BANNER, labels=LABELS, version=__version__, **values)
        return HTMLResponse(_encoded(page), headers=FRESH)


def _number(text: str) -> int:
    """A number of an address; what is none is no address."""
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise HTTPException(404)
    return int(text)


def _encoded(text: str) -> bytes:
    """UTF-8; a file's name need not be text, and what is none is shown by its bytes."""
    return text.encode(errors="backslashreplace")


def _json(content: Mapping[str, Any]) -> Response:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    return Response(_encoded(text), media_type="application/json", headers=FRESH)


def _tag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:24]}"'


def _unchanged(request: Request, headers: dict[str, str]) -> Response | None:
    """The answer to a browser that has the content already."""
    asked = request.headers.get("if-none-match", "")
    return Response(status_code=304, headers=headers) if headers["ETag"] in asked else None


def _read(case: Case, path: Path) -> bytes:
    try:
        return case.allowed.read(path)
    except OSError as error:
        raise HTTPException(500, f"{path}: cannot be read ({error.strerror})") from error
