"""What is in a data root and what is wrong with it, file by file, before a training run finds out.

`examine` reads each file; what is looked at here is how they go together. One bad file never stops the check. What is certainly wrong is an error; what a user must know, such as a slide in
train and in test, a warning; what may well be right, such as a tile that looks empty, a note.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from miudiff.data.examine import FileFacts, Finding, Level, examine, finding_of
from miudiff.data.layouts import Dataset, Field, Layout, open_dataset, why_special
from miudiff.data.names import BCI_NAME
from miudiff.data.splits import PARTS, Leak, leaks
from miudiff.errors import DataError
from miudiff.images import SLIDE_SUFFIXES, SUFFIXES

Progress = Callable[[int, int], None]

SHOWN = 20  # notes in the plain text; the JSON holds all

ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
ENDINGS |= {".bmp": "BMP", ".webp": "WEBP"}


@dataclass(frozen=True)
class CheckReport:
    """The result of `check_dataset`: counts of what is there, and the findings, the gravest first."""

    root: Path
    layout: Layout | None
    findings: tuple[Finding, ...]
    images: tuple[dict[str, str | int | None], ...] = ()
    pairs: int = 0
    unpaired: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    modes: Mapping[str, int] = field(default_factory=dict)
    scales: Mapping[str, int] = field(default_factory=dict)
    slides: Mapping[str, int] = field(default_factory=dict)
    shared_slides: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 nothing wrong, 3 some files are wrong, 2 nothing that could be checked."""
        if self.layout is None:
            return 2
        return 3 if self.of("error") else 0

    def of(self, level: Level) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self.findings if finding.level == level]

    def lines(self) -> list[str]:
        """The report as plain text; every error and warning is a line."""
        if self.layout is None:
            return [str(finding) for finding in self.findings]
        summary = [f"{self.root}: layout {self.layout}, {self.pairs} pairs"]
        for image in self.images:
            words = [str(image[key]) for key in ("stain", "marker", "split") if image[key] is not None]
            summary.append(f"  {' '.join(words)}: {image['count']} images")
        for title, counted in (("size", self.sizes), ("pixels", self.modes), ("scale", self.scales)):
            summary += [f"  {title}: {what} ({_files(count)})" for what, count in counted.items()]
        if self.slides:
            summary.append("  slides: " + ", ".join(f"{part} {count}" for part, count in self.slides.items()))
        notes = self.of("note")
        told = [*self.of("error"), *self.of("warning"), *notes[:SHOWN]]
        rest = [f"note: and {len(notes) - SHOWN} more notes"] if len(notes) > SHOWN else []
        return summary + [str(finding) for finding in told] + rest + [self._verdict()]

    def to_json(self) -> str:
        """The whole report as JSON."""
        values = {
            "root": str(self.root),
            "layout": self.layout,
            "exit_code": self.exit_code,
            "images": list(self.images),
            "pairs": self.pairs,
            "unpaired": list(self.unpaired),
            "sizes": dict(self.sizes),
            "modes": dict(self.modes),
            "scales": dict(self.scales),
            "slides": dict(self.slides),
            "shared_slides": list(self.shared_slides),
            "findings": [
                {"level": f.level, "path": str(f.path), "message": f.message} for f in self.findings
            ],
        }
        return json.dumps(values, indent=2, ensure_ascii=False)

    def _verdict(self) -> str:
        wrong = len({finding.path for finding in self.of("error")})
        warnings = len(self.of("warning"))
        return f"wrong: {_files(wrong)}; warnings: {warnings}"


def check_dataset(
    root: str | Path,
    layout: Layout | Literal["auto"] = "auto",
    slide_pattern: str | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Read every image below `root` and say what is there and what is wrong; no file, nor the root, raises.

    Args:
        layout: See `layouts.open_dataset`, as for `slide_pattern`.
        threads: Files read at a time; None takes as many as there are cores, at most 16.
        progress: Called in this thread with (files done, all files).
    """
    root = Path(root)
    try:
        dataset = open_dataset(root, layout, slide_pattern)
    except DataError as error:
        return CheckReport(root, None, (finding_of(root, error),))
    facts = _examine_all([image.path for image in dataset.fields], threads, progress)
    digests = {path: fact.digest for path, fact in facts.items() if fact.digest is not None}
    shared = leaks(dataset, digests={})
    findings = [finding for fact in facts.values() for finding in fact.findings]
    findings += _about_endings(facts) + _about_pairs(dataset, facts) + _about_slides(dataset, shared)
    findings += _about_contents(dataset, digests) + _about_scales(facts) + _about_the_rest(dataset)
    order = ("error", "warning", "note")
    return CheckReport(
        root=root,
        layout=dataset.layout,
        findings=tuple(sorted(findings, key=lambda f: (order.index(f.level), f.path, f.message))),
        images=tuple(
            {"stain": stain, "marker": marker, "split": split, "count": count}
            for (stain, marker, split), count in dataset.counts().items()
        ),
        pairs=len(dataset.pairs()),
        unpaired=tuple(str(image.path.relative_to(root)) for image in dataset.unpaired()),
        sizes=_counted(f"{f.size[0]} x {f.size[1]}" for f in facts.values() if f.size),
        modes=_counted(f"{f.content}, {f.mode}" for f in facts.values() if f.mode),
        scales=_counted(_scale(f) for f in facts.values() if f.digest),
        slides=_slides_of_parts(dataset),
        shared_slides=tuple(leak.name for leak in shared),
    )


def _examine_all(paths: list[Path], threads: int | None, progress: Progress | None) -> dict[Path, FileFacts]:
    found: dict[Path, FileFacts] = {}
    pool = ThreadPoolExecutor(threads or min(16, os.cpu_count() or 1))
    try:
        # Decoders release the interpreter, so threads are enough.
        for path, facts in zip(paths, pool.map(examine, paths), strict=True):
            found[path] = facts
            if progress is not None:
                progress(len(found), len(paths))
    finally:
        pool.shutdown(cancel_futures=True)
    return found


def _about_endings(facts: Mapping[Path, FileFacts]) -> list[Finding]:
    """One note for each kind of ending that says another format than the files hold; the content decides."""
    other: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path, fact in facts.items():
        ending = path.suffix.lower()
        if fact.content != "unknown" and fact.content != ENDINGS[ending]:
            other[ending, fact.content].append(path)
    return [
        Finding("note", paths[0], f"holds {content}, ends in {ending}: read by its content{_more(paths)}")
        for (ending, content), paths in other.items()
    ]


def _about_pairs(dataset: Dataset, facts: Mapping[Path, FileFacts]) -> list[Finding]:
    """Missing partners where others have one, and partners of another size."""
    pairs = dataset.pairs()
    if not pairs:
        both = len({image.stain for image in dataset.fields}) == 2
        return [Finding("note", dataset.root, "H&E and IHC share no names: an unpaired set")] if both else []
    found: list[Finding] = []
    paired_parts = {(image.split, image.marker) for pair in pairs for image in (pair.he, pair.ihc)}
    names = Counter(_key(image) for image in dataset.fields)
    alone: Counter[str] = Counter()
    for image in dataset.unpaired():
        partner = "IHC" if image.stain == "HE" else "H&E"
        if (image.split, image.marker) not in paired_parts:
            alone[" ".join(word for word in (image.stain, image.marker, image.split) if word)] += 1
        elif names[_key(image)] > 1:
            found.append(Finding("error", image.path, "another image of its stain has its name as well"))
        else:
            found.append(Finding("error", image.path, f"no partner, expected an {partner} image of its name"))
    for what, count in alone.items():
        found.append(Finding("note", dataset.root, f"{what}: {_files(count)}, none with a partner"))
    for pair in pairs:
        he, ihc = facts[pair.he.path].size, facts[pair.ihc.path].size
        if he and ihc and he != ihc:
            message = f"{ihc[0]} x {ihc[1]} pixels, expected {he[0]} x {he[1]} as its H&E partner"
            found.append(Finding("error", pair.ihc.path, message))
    return found


def _key(image: Field) -> tuple[str, str | None, str | None, str, str]:
    return image.stain, image.split, image.marker, image.group, image.name


def _about_slides(dataset: Dataset, shared: Iterable[Leak]) -> list[Finding]:
    """Slides in two parts, names that contradict their folder, and what the names do not say."""
    found: list[Finding] = []
    by_parts: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for leak in shared:
        by_parts[leak.parts].append(leak.name)
    for parts, slides in by_parts.items():
        where = " and ".join(parts)
        message = f"slides in {where}, so that scores are optimistic: {len(slides)} ({', '.join(slides)})"
        found.append(Finding("warning", dataset.root, message))
    for image in dataset.fields:
        match = BCI_NAME.fullmatch(image.name) if dataset.layout == "bci" else None
        if match and image.split != match[1]:
            found.append(
                Finding("warning", image.path, f"its name says {match[1]}, its folder {image.split}")
            )
    silent = sum(image.slide is None for image in dataset.fields)
    if silent and len(dataset.splits) > 1 and dataset.layout != "bci":
        message = (
            f"{silent} names state no slide, so slides in two parts cannot be seen; give a slide pattern"
        )
        found.append(Finding("note", dataset.root, message))
    return found


def _about_contents(dataset: Dataset, digests: Mapping[Path, str]) -> list[Finding]:
    """Files of one content: across parts a leak, across stains a mistake, elsewhere a repetition."""
    same: dict[str, list[Field]] = defaultdict(list)
    for image in dataset.fields:
        if image.path in digests:
            same[digests[image.path]].append(image)
    found: list[Finding] = []
    for first, *others in same.values():
        for other in others:
            message = f"the same file as {first.path}"
            if other.stain != first.stain:
                found.append(Finding("error", other.path, f"{message}, expected another stain"))
            elif other.split != first.split:
                found.append(
                    Finding("warning", other.path, f"{message}, so {first.split} leaks into {other.split}")
                )
            # H&E that several markers share is often copied for each.
            elif other.marker == first.marker:
                found.append(Finding("note", other.path, message))
    return found


def _about_scales(facts: Mapping[Path, FileFacts]) -> list[Finding]:
    stated = {path: fact.mpp for path, fact in facts.items() if fact.mpp is not None}
    if not stated or max(stated.values()) < 1.02 * min(stated.values()):
        return []
    low, *_, high = sorted(stated, key=lambda path: stated[path])
    message = f"states {stated[high]:.4g} um/px, {low} {stated[low]:.4g}; training brings them to one scale"
    return [Finding("note", high, message)]


def _about_the_rest(dataset: Dataset) -> list[Finding]:
    found = [Finding("note", dataset.root, note) for note in dataset.notes]
    slides: list[Path] = []
    other: list[Path] = []
    for path in dataset.left_out:
        if path.name.lower().endswith(SUFFIXES) and (why := why_special(path)):
            found.append(Finding("error", path, why))
        else:
            (slides if path.suffix.lower() in SLIDE_SUFFIXES else other).append(path)
    if slides:
        found.append(Finding("warning", slides[0], f"left out: a whole slide, no tile{_more(slides)}"))
    if other:
        message = f"left out: by its ending or folder no image of a stain{_more(other)}"
        found.append(Finding("note", other[0], message))
    return found


def _slides_of_parts(dataset: Dataset) -> dict[str, int]:
    slides: dict[str, set[str]] = defaultdict(set)
    for image in dataset.fields:
        if image.slide is not None:
            slides[image.split or "all"].add(image.slide)
    return {part: len(slides[part]) for part in (*PARTS, "all") if part in slides}


def _scale(facts: FileFacts) -> str:
    return f"{facts.mpp:.4g} um/px from {facts.mpp_from}" if facts.mpp is not None else "not stated"


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(Counter(words).most_common())


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _more(paths: list[Path]) -> str:
    return f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
