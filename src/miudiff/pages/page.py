"""A page that needs nothing else: an HTML file with its look and images inside, for any browser, offline.

Everything that comes from outside is escaped, images are data URIs, and the page forbids the browser to fetch
anything, and to run any script but `curtain.js`, known by its hash. Every page says that a virtual stain is no
diagnosis; no argument turns that off.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from jinja2 import DictLoader, Environment, StrictUndefined

from miudiff.images import write_text
from miudiff.pages.parts import Part, Rows
from miudiff.pages.pictures import data_uri

BANNER = "Virtual stain: for research use only, not for diagnosis."

HERE = resources.files("miudiff.pages")
STYLE = HERE.joinpath("style.css").read_text(encoding="utf-8")
CURTAIN = HERE.joinpath("curtain.js").read_text(encoding="utf-8")
CURTAIN_HASH = base64.b64encode(hashlib.sha256(CURTAIN.encode()).digest()).decode("ascii")
PAGE, PARTS = "page.html.j2", "parts.html.j2"


def write_page(path: str | Path, title: str, lead: str, parts: Sequence[Part] = ()) -> None:
    """Write one self-contained HTML page; it appears whole or not at all.

    Args:
        lead: What was measured and what came out, in a sentence or two below the title.
        parts: What it shows, in this order.

    Raises:
        DataError: A figure's file cannot be read, or the page cannot be written.
        ValueError: A table's row is not as long as its header.
    """
    curtains = any(isinstance(part, Rows) and part.curtain for part in parts)
    values = {"title": title, "lead": lead, "parts": parts, "curtains": curtains}
    write_text(path, render(PAGE, {}, values))


def render(template: str, more: Mapping[str, str], values: Mapping[str, object]) -> str:
    """A page of one of the templates here, or of `more`, which may extend `PAGE` and so share its look.

    Args:
        template: Its name.
        more: Further templates by their names.
        values: What it shows; all of it is escaped.
    """
    sources = {name: HERE.joinpath(name).read_text(encoding="utf-8") for name in (PAGE, PARTS)}
    # A path with the ending .j2 says nothing to Jinja, so escaping is asked for and not guessed.
    pages = Environment(
        loader=DictLoader({**sources, **more}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.globals |= {
        "banner": BANNER,
        "style": STYLE,
        "curtain": CURTAIN,
        "curtain_hash": CURTAIN_HASH,
        "data_uri": data_uri,
    }
    return pages.get_template(template).render(values)
