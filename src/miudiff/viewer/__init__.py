"""Virtual IHC beside its H&E in a browser: a page on loopback, and a gallery of a folder of results.

`cases` finds what belongs together, `sheets` places the slides of a case on one field, `tiles` draws them, `app` serves them and
`server` runs it. The page in `static` is drawn by OpenSeadragon, which lies beside it: nothing is fetched from the internet.
"""

from miudiff.viewer.app import create_app
from miudiff.viewer.cases import Case, find_cases
from miudiff.viewer.server import serve

__all__ = ["Case", "create_app", "find_cases", "serve"]
