"""What may be served: real files in the folders that the user named, and the files that the user named.

Other users of the machine can reach the port, others may have put links into a folder of results, and a record may name any
file as its source. So a path is resolved anew for each request, and what is opened is where it leads to.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from miudiff.errors import SlideError
from miudiff.formats.reading import TIFF
from miudiff.slides.reader import Slide

OUTSIDE = "lies outside of the files and folders that were given"
LARGEST = 256 * 2**20  # bytes of a record or a report


@dataclass(frozen=True)
class Roots:
    """The files and folders that may be served from, resolved.

    Attributes:
        folders: Of results.
        given: Images, or folders of sources, that the user named as such. They alone may be slides of several files, since
            such a slide names its other files, wherever they lie.
    """

    folders: tuple[Path, ...] = ()
    given: tuple[Path, ...] = ()

    @classmethod
    def of(cls, results: Path, *images: Path | None) -> Roots:
        """Those of a result or a folder of results, and of the other images that the user named."""
        given = [path.resolve() for path in images if path is not None]
        if results.is_dir():
            return cls((results.resolve(),), tuple(given))
        return cls((results.parent.resolve(),), (*given, results.resolve()))

    def real(self, path: Path) -> Path | None:
        """The regular file that a path leads to; None if it may not be served, or there is none."""
        try:
            real = path.resolve(strict=True)
            regular = stat.S_ISREG(real.stat().st_mode)
        except (OSError, ValueError, RuntimeError):  # a loop of links is a RuntimeError in Python 3.11
            return None
        return real if regular and _is_in(real, (*self.folders, *self.given)) else None

    def there(self, path: Path) -> bool:
        """Whether a path leads to a file that may be served."""
        return self.real(path) is not None

    def read(self, path: Path) -> bytes:
        """What a file holds.

        Raises:
            OSError: It may not be served, cannot be read, or is too large.
        """
        real = self.real(path)
        if real is None:
            raise FileNotFoundError(0, OUTSIDE)
        # What has become a link or a pipe since it was resolved is not followed, and not waited for.
        flags = (
            os.O_RDONLY
            | getattr(os, "O_NOFOLLOW", 0)
            | getattr(os, "O_NONBLOCK", 0)
            | getattr(os, "O_BINARY", 0)
        )
        with os.fdopen(os.open(real, flags), "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise OSError(0, f"larger than {LARGEST:,} bytes")
        return content

    def check(self, slide: Slide) -> None:
        """Refuse an open slide of several files that the user did not name.

        Raises:
            SlideError: It is one.
        """
        if slide.format == "image" or _is_in(slide.path, self.given):
            return
        with slide.path.open("rb") as file:
            if file.read(4) not in TIFF:
                raise SlideError(
                    f"{slide.path}: a slide of several files is shown only where it is given: miudiff view HE IHC"
                )


def _is_in(real: Path, roots: tuple[Path, ...]) -> bool:
    return any(real.is_relative_to(root) for root in roots)
