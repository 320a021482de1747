"""What a record says of a result, in words for a card or the panel beside a case; what it does not say is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
        ("Marker", marker_of(facts)),
        ("Method", _text(facts.get("method"))),
        ("Model", _text(name)),
        ("Seed", _text(facts.get("seed"))),
        ("Size", f"{width:,} x {height:,} px" if _are_numbers(width, height) else ""),
        ("Scale", _scale(facts)),
        ("Tissue", f"{facts['tissue_share']:.0%}" if _are_numbers(facts.get("tissue_share")) else ""),
        ("Unreadable", _regions(unreadable)),
        ("Made with", f"miudiff {facts['miudiff']}" if _text(facts.get("miudiff")) else ""),
    ]
    return [(label, value) for label, value in rows if value]


def _scale(facts: Mapping[str, Any]) -> str:
    if not _are_numbers(facts.get("mpp")):
        return ""
    source = _text(facts.get("mpp_source"))
    return f"{facts['mpp']:.4g} µm/px" + (f" ({source})" if source else "")


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


def _are_numbers(*values: object) -> bool:
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
