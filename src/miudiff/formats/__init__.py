"""What image files show of damage, format by format: `jpeg`, `png`, `webp`, `bmp`, `jpeg2000`, and `tiff` around them.

Decoders go on over damage: they paint what is missing grey or black and drop what is left over. Each file
here looks for what its format can show, before anyone decodes: check sums where there are any, and
otherwise data that end too early or too late for the size that the header states. `damage(data)` says what
is wrong, "" if nothing is seen.
"""


class Unreadable(Exception):
    """Why pixels cannot be read; who reads them adds of which file."""


def one_line(error: BaseException) -> str:
    """The words of an error, on one line and not too long."""
    return " ".join(str(error).split())[:160] or type(error).__name__
