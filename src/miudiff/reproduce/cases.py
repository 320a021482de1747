"""A case: one dataset made ready for the comparison, once, as files that anybody can open.

    OUT/NAME/images/{train,test}/{HE,IHC}/name.png        OUT/NAME/case.json: where they come from and how they were divided

Images are shrunk as a whole to the budget's side, as the paper shrinks 1024 x 1024 to 256 x 256; all systems train on these files and
are measured on these files. Training never sees which H&E image belongs to which IHC image, except ASP's, which needs to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from miudiff.checkpoints import read_json, write_json
from miudiff.data.layouts import Field, Layout, open_dataset
from miudiff.data.splits import Split, official_split, paper_split
from miudiff.data.twin import MARKER, at_scale, twin_region
from miudiff.errors import DataError
from miudiff.images import Pixels, list_images, read_image, read_scale, resize, write_image

TWIN = "twin"
TWIN_MPP = 1.0  # the shipped weights' scale
TWIN_TILE = 128
LEAST = 64  # two patches of the MI estimator, and VIF's windows
MULTIPLE = (
    32  # the paper's network halves an image five times, and ILVR and EGSDE compare what is 32 times coarser
)
SplitName = Literal["auto", "official", "paper"]
STAINS: tuple[Literal["HE"], Literal["IHC"]] = ("HE", "IHC")

# What the publications of these sets state for their 1024 x 1024 patches; for other sizes it would be a guess.
PUBLISHED_MPP: dict[Layout, float] = {"mist": 0.4661, "bci": 0.46}
PUBLISHED_SIDE = 1024


@dataclass(frozen=True)
class Source:
    """What `--data NAME=ROOT` asks for; `root` is None for the twin set."""

    name: str
    root: Path | None
    mpp: float | None = None


@dataclass(frozen=True)
class Case:
    """A dataset that is ready.

    Attributes:
        folder: OUT/NAME.
        mpp: Micrometres per pixel of the prepared images, None where nothing states it.
        paired: Whether every training H&E image has its IHC image; ASP can be trained only there.
        notes: How it was divided and what a reader of the scores must know, a sentence each.
        train: How many (H&E, IHC) images there are to train on.
        test: The names of the test pairs.
    """

    name: str
    folder: Path
    marker: str | None
    mpp: float | None
    paired: bool
    notes: tuple[str, ...]
    train: tuple[int, int]
    test: tuple[str, ...]

    @property
    def images(self) -> Path:
        return self.folder / "images"

    def read(self, stain: Literal["HE", "IHC"]) -> list[Pixels]:
        """The test images of a stain, in the order of `test`."""
        return [read_image(self.images / "test" / stain / f"{name}.png") for name in self.test]

    def smallest_side(self) -> int:
        """The shorter side of the smallest training image: no training tile can be larger."""
        paths = [p for stain in STAINS for p in list_images(self.images / "train" / stain)]
        return min(min(read_image(path).shape[:2]) for path in paths)


def parse_source(word: str, scales: Sequence[str] = ()) -> Source:
    """`twin`, or NAME=ROOT; `scales` are NAME=UM_PER_PIXEL words.

    Raises:
        DataError: Neither form, no such folder, or a scale that is no number.
    """
    if word == TWIN:
        return Source(TWIN, None, TWIN_MPP)
    name, _, root = word.partition("=")
    if not root or not name or any(c in name for c in "/\\."):
        raise DataError(f"--data {word}: expected twin, or NAME=ROOT such as bci=/data/BCI_dataset")
    if not Path(root).is_dir():
        raise DataError(f"--data {word}: {root} is no folder")
    return Source(name, Path(root), _scale_of(name, scales))


def _scale_of(name: str, scales: Sequence[str]) -> float | None:
    for word in scales:
        key, _, value = word.partition("=")
        if key == name:
            try:
                return float(value)
            except ValueError:
                raise DataError(f"--mpp {word}: expected NAME=number, as in {name}=0.46") from None
    return None


def prepare(
    source: Source,
    out: Path,
    side: int,
    most: int | None,
    split: SplitName,
    split_seed: int,
    say: Callable[[str], None],
) -> Case:
    """Make a dataset ready, or find it ready.

    Args:
        side: The longer side of a prepared image in pixels.
        most: Test images at most, the first by name; None takes all.

    Raises:
        DataError: No pairs to test on, no images to train on, an unreadable image, or a folder prepared in another way.
    """
    folder = out / source.name
    settings: dict[str, Any] = {
        "root": str(source.root.resolve()) if source.root else TWIN,
        "mpp": source.mpp,
        "side": side,
        "most": most,
        "split": split,
        "split_seed": split_seed,
    }
    record = folder / "case.json"
    if record.exists():
        found = read_json(record)
        changed = [key for key in settings if found["settings"].get(key) != settings[key]]
        if changed:
            raise DataError(
                f"{record}: prepared with another '{changed[0]}' ({found['settings'].get(changed[0])}, now {settings[changed[0]]}); give another --out"
            )
        return _case(source.name, folder, found)
    say(f"{source.name}: preparing images in {folder / 'images'}")
    found = _prepare_twin(folder) if source.root is None else _prepare_root(source, folder, settings)
    write_json(record, {"settings": settings, **found})
    case = _case(source.name, folder, read_json(record))
    say(
        f"{source.name}: {case.train[0]} H&E and {case.train[1]} IHC images to train on, {len(case.test)} pairs to test on"
    )
    return case


def _case(name: str, folder: Path, found: dict[str, Any]) -> Case:
    return Case(
        name,
        folder,
        found["marker"],
        found["mpp"],
        found["paired"],
        tuple(found["notes"]),
        (found["train"][0], found["train"][1]),
        tuple(found["test"]),
    )


def _prepare_twin(folder: Path) -> dict[str, Any]:
    """The twin set: its training half whole, its held-out half as tiles."""
    for stain, image in zip(STAINS, twin_region("train"), strict=True):
        write_image(folder / "images" / "train" / stain / "left.png", at_scale(image, TWIN_MPP))
    names: list[str] = []
    for stain, image in zip(STAINS, twin_region("test"), strict=True):
        scaled = at_scale(image, TWIN_MPP)
        names = []
        for y in range(0, scaled.shape[0] - TWIN_TILE + 1, TWIN_TILE):
            for x in range(0, scaled.shape[1] - TWIN_TILE + 1, TWIN_TILE):
                names.append(f"right_{y}_{x}")
                tile = scaled[y : y + TWIN_TILE, x : x + TWIN_TILE]
                write_image(folder / "images" / "test" / stain / f"{names[-1]}.png", tile)
    note = "Twin set: the H&E image is rendered from the IHC image's own tissue; trained on its left half, tested on its right half, of one slide."
    return {
        "marker": MARKER,
        "mpp": TWIN_MPP,
        "paired": True,
        "notes": [note],
        "train": [1, 1],
        "test": names,
    }


def _prepare_root(source: Source, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    assert source.root is not None
    dataset = open_dataset(source.root)
    if len(dataset.markers) > 1:
        raise DataError(
            f"{source.root}: holds {', '.join(dataset.markers)}; one case has one marker, give --data {source.name}={source.root}/... of one"
        )
    divided = _divide(source.root, dataset, settings["split"], settings["split_seed"])
    test_part = "test" if divided.fields("test") else "val"  # MIST's official test part is named val
    pairs = divided.dataset.pairs(test_part)[: settings["most"]]
    training = {stain: divided.fields("train", stain) for stain in STAINS}
    for kind, fields in training.items():
        if not fields:
            raise DataError(f"{source.root}: no {kind} images in its training part; see `miudiff data check`")
    if not pairs:
        raise DataError(
            f"{source.root}: no H&E/IHC pairs in its {test_part} part to measure on; see `miudiff data check`"
        )
    paired = [(p.he.path, p.ihc.path) for p in divided.dataset.pairs("train")]
    scale = _Scale(source, dataset.layout)
    # Partners get one name; ASP finds them by it, and no other system looks at names.
    stems = _names([*training["HE"], *training["IHC"]], source.root)
    partner = {ihc: stems[he] for he, ihc in paired}
    for stain, fields in training.items():
        for field in fields:
            name = partner.get(field.path, stems[field.path])
            write_image(
                folder / "images" / "train" / stain / f"{name}.png",
                scale.shrink(field.path, settings["side"]),
            )
    names = _names([p.he for p in pairs], source.root)
    for pair in pairs:
        he, ihc = (scale.shrink(field.path, settings["side"]) for field in (pair.he, pair.ihc))
        if he.shape != ihc.shape:
            raise DataError(
                f"{pair.ihc.path}: {ihc.shape[1]} x {ihc.shape[0]} once shrunk, but {pair.he.path} is {he.shape[1]} x {he.shape[0]}; a test pair has one size"
            )
        for folder_name, image in zip(STAINS, (he, ihc), strict=True):
            write_image(folder / "images" / "test" / folder_name / f"{names[pair.he.path]}.png", image)
    part = f"{divided.name} split, test part '{test_part}'" + (
        f", seed {divided.seed}" if divided.seed is not None else ""
    )
    return {
        "marker": dataset.markers[0] if dataset.markers else None,
        "mpp": scale.mpp,
        "paired": bool(paired) and len(paired) == len(training["HE"]) == len(training["IHC"]),
        "notes": [part, *scale.notes, *divided.warnings, *dataset.notes],
        "train": [len(training["HE"]), len(training["IHC"])],
        "test": sorted(names.values()),
    }


def _divide(root: Path, dataset: Any, split: SplitName, seed: int) -> Split:
    states = {"train"} < set(dataset.splits)  # train, and something to test on
    if split == "official" or (split == "auto" and states):
        return official_split(dataset)
    return paper_split(dataset, seed)


def _names(fields: Sequence[Field], root: Path) -> dict[Path, str]:
    """A name for each file, its own where no other of its stain has it, else with its folders."""
    count = Counter((f.stain, f.name) for f in fields)
    return {
        f.path: f.name
        if count[f.stain, f.name] == 1
        else "_".join(f.path.relative_to(root).with_suffix("").parts).replace(" ", "_")
        for f in fields
    }


class _Scale:
    """Shrinks images to one side and keeps their scale: all must have the same."""

    def __init__(self, source: Source, layout: Layout) -> None:
        self.given, self.layout, self.root = source.mpp, layout, source.root
        self.mpp: float | None = None
        self.notes: list[str] = []
        self._first: Path | None = None

    def shrink(self, path: Path, side: int) -> Pixels:
        """Uint8 [h, w, 3] with the longer side at most `side`; what is beyond a multiple of 32 is cut off at the right and below.

        Raises:
            DataError: The image's scale after shrinking differs from the others'.
        """
        pixels = read_image(path)
        height, width = pixels.shape[:2]
        factor = min(1.0, side / max(height, width))
        native = self._native(path, height, width)
        mpp = native / factor if native is not None else None
        if self._first is None:
            self._first, self.mpp = path, mpp
        elif (mpp is None) != (self.mpp is None) or (
            mpp is not None and self.mpp is not None and abs(mpp - self.mpp) > 0.02 * self.mpp
        ):
            raise DataError(
                f"{path}: {_told(mpp)} once its longer side is {side}, but {self._first} has {_told(self.mpp)}; a case has one scale"
            )
        small = resize(pixels, round(height * factor), round(width * factor))
        rows, columns = (n // MULTIPLE * MULTIPLE for n in small.shape[:2])
        if min(rows, columns) < LEAST:
            raise DataError(
                f"{path}: {width} x {height} pixels, expected at least {LEAST} on each side at side {side}"
            )
        return small[:rows, :columns]

    def _native(self, path: Path, height: int, width: int) -> float | None:
        if self.given is not None:
            return self.given
        stated = read_scale(path)
        if stated is not None:
            return stated
        if (height, width) == (PUBLISHED_SIDE, PUBLISHED_SIDE) and self.layout in PUBLISHED_MPP:
            note = f"{PUBLISHED_MPP[self.layout]:g} um/px before shrinking, as published for {self.layout.upper()}"
            self.notes = [note]
            return PUBLISHED_MPP[self.layout]
        self.notes = [
            "Scale unknown: the files state no um/px and none was given; measures of cells are left out."
        ]
        return None


def _told(mpp: float | None) -> str:
    return "no stated scale" if mpp is None else f"{mpp:.3g} um/px"
