"""What a record says of a result, in words for a card or the panel beside a case; what it does not say is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from miudiff.formats.scale import is_optical
from miudiff.slides.result import previewed
from miudiff.viewer.cases import Case


def marker_of(facts: Mapping[str, Any]) -> str:
    """The marker that was stained for, "" if the record does not say."""
    model = facts.get("model")
    marker = facts.get("marker", model.get("marker") if isinstance(model, Mapping) else None)
    return marker if isinstance(marker, str) else ""


def told(case: Case) -> list[tuple[str, str]]:
    """(what, value) pairs of a case's record, in the order to be read."""
    facts = case.facts
    model = facts.get("model")
    name = model.get("name") if isinstance(model, Mapping) else model
    width, height, unreadable = facts.get("width"), facts.get("height"), facts.get("unreadable")
    rows = [
        ("Preview", previewed(facts)),
        ("Marker", marker_of(facts)),
        ("Method", _text(facts.get("method"))),
        ("Model", _text(name)),
        ("Seed", _text(facts.get("seed"))),
        ("Size", f"{width:,} x {height:,} px" if is_size(width) and is_size(height) else ""),
        ("Scale", _scale(facts)),
        ("Tissue", _share(facts.get("tissue_share"))),
        ("Unreadable", _regions(unreadable)),
        ("Made with", f"miudiff {facts['miudiff']}" if _text(facts.get("miudiff")) else ""),
    ]
    return [(label, value) for label, value in rows if value]


def _scale(facts: Mapping[str, Any]) -> str:
    mpp, source = facts.get("mpp"), _text(facts.get("mpp_source"))
    if not is_optical(mpp):
        return ""
    return f"{mpp:.4g} µm/px" + (f" ({source})" if source else "")


def _share(value: object) -> str:
    return f"{value:.0%}" if isinstance(value, int | float) and 0 <= value <= 1 else ""


def _regions(unreadable: object) -> str:
    if not isinstance(unreadable, list) or not unreadable:
        return ""
    return f"{len(unreadable)} region{'s' if len(unreadable) > 1 else ''} of the slide"


def _text(value: object) -> str:
    """A word of a record; an identity of many digits is cut, since the record has it whole."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        return ""
    text = str(value)
    return text[:24] + "…" if len(text) > 25 else text


def is_size(value: object) -> TypeGuard[int]:
    """Whether a value is the width or the height of a slide."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**9
