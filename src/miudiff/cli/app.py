"""What every command shares: the application, types of options, and how a line is said."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

from cyclopts import App, Parameter

from miudiff import __version__

app = App(
    name="miudiff",
    version=__version__,
    help="Virtual histology staining: H&E to IHC by mutual-information guided diffusion. For research use only, not for diagnosis.",
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
data = App(name="data", help="Look at, check and make datasets.")
model_app = App(name="model", help="Make model folders, and look into them.")
app.command(data)
app.command(model_app)

Preset = Literal["fast", "thorough", "paper"]
Words = Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=False)]
Method = Literal["miu-diff", "one-step", "sdedit", "ilvr", "egsde", "cut", "fastcut", "asp"]
Change = Annotated[tuple[str, ...], Parameter(name="--set", negative=(), consume_multiple=False)]


def say(line: str) -> None:
    print(one_line(line), flush=True)


def complain(line: str) -> None:
    sys.stderr.write(f"miudiff: {one_line(line)}\n")  # in one piece: several processes may write at once


def one_line(line: str) -> str:
    """A file's name may hold a line break."""
    return line.replace("\r", "\\r").replace("\n", "\\n")
