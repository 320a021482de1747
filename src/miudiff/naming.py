"""What names say, whoever asks: markers in any spelling, and slides by a user's pattern."""

from __future__ import annotations

import re
import warnings

from miudiff.errors import DataError

MARKERS = {"her2": "HER2", "erbb2": "HER2", "ki67": "Ki67", "er": "ER", "pr": "PR", "pdl1": "PD-L1"}
MARKERS |= {
    "p53": "p53",
    "p16": "p16",
    "p40": "p40",
    "p63": "p63",
    "ttf1": "TTF1",
    "fhl2": "FHL2",
    "panck": "PanCK",
}

SHIPPED = "ihc-small"  # the model in the package
NUCLEAR = ("ki67", "er", "pr", "ar", "p53", "p63", "p40", "ttf1", "pcna", "phh3", "gata3", "foxp3", "sox10")


def squeeze(word: str) -> str:
    """A word without its case, spaces and hyphens."""
    return re.sub(r"[^a-z0-9&]", "", word.lower())


def words_of(name: str) -> set[str]:
    """Lower-case words of a name; "Ki-67" counts whole as well as in parts."""
    return {squeeze(word) for by in (r"[\s_.]+", r"[^A-Za-z0-9&]+") for word in re.split(by, name)}


def markers_in(name: str) -> set[str]:
    """The markers that a name states, in their usual spelling."""
    words = words_of(name)
    found = {MARKERS[word] for word in words if word in MARKERS}
    return found | {word.upper() for word in words if re.fullmatch(r"cd\d{1,3}", word)}


def usual_marker(marker: str) -> str:
    """A marker in its usual spelling, "Ki67" for "KI-67"; one that is not known as it is."""
    return MARKERS.get(squeeze(marker), marker.strip())


def is_nuclear(marker: str) -> bool:
    """Whether a marker is one of nuclei, so that a share of positive nuclei means something; of several ("ER/PR"), whether each is."""
    return all(squeeze(one) in NUCLEAR for one in re.split(r"[/+]", marker))


def compile_pattern(pattern: str, what: str = "slide pattern") -> re.Pattern[str]:
    """A user's regular expression that finds the slide in a name.

    Args:
        what: What to call it in a message.

    Raises:
        DataError: No regular expression, or one without a group `slide`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "[[" may mean a set of sets one day
            compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise DataError(f"{what} '{pattern[:80]}': is not a regular expression ({error})") from error
    if "slide" not in compiled.groupindex:
        raise DataError(f"{what} '{pattern[:80]}': has no group 'slide', expected as in ^(?P<slide>[^_]+)_")
    return compiled
