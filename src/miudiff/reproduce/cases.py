"""A case: one dataset made ready for the comparison, once, as files that anybody can open.

    OUT/NAME/images/{train,test}/{HE,IHC}/name.png        OUT/NAME/case.json: where they come from and how they were divided

Images are shrunk as a whole to the budget's side, as the paper shrinks 1024 x 1024 to 256 x 256; all systems train on these files and
are measured on these files (`prepare` makes them, `whole` where nothing trains). Training never sees which H&E image belongs to which IHC image, except ASP's,
which needs to. `case.json` appears last: without it the images are not whole, and are made anew.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from miudiff.checkpoints import read_json, write_json
from miudiff.errors import DataError
from miudiff.images import Pixels, list_images, read_image
from miudiff.reproduce.prepare import STAINS, Settings, prepare_root, prepare_twin
from miudiff.reproduce.sources import TWIN, Source
from miudiff.reproduce.whole import prepare_whole

BEGUN = "preparing.json"  # there while images are made: what lies beside it is ours to remove


@dataclass(frozen=True)
class Case:
    """A dataset that is ready.

    Attributes:
        folder: OUT/NAME.
        mpp: Micrometres per pixel of the prepared images, None where nothing states it.
        paired: Whether some training H&E image has its IHC image; ASP is trained on those alone.
        notes: How it was divided and what a reader of the scores must know, a sentence each.
        train: How many (H&E, IHC) images there are to train on; none where every pair is a test pair.
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
    def trains(self) -> bool:
        """Whether there is anything to train on."""
        return any(self.train)

    @property
    def counts(self) -> str:
        """How many images there are, in words."""
        train = f"{self.train[0]} H&E and {self.train[1]} IHC images" if self.trains else "nothing"
        return f"{train} to train on, {len(self.test)} pairs to test on"

    @property
    def images(self) -> Path:
        return self.folder / "images"

    def files(self, stain: Literal["HE", "IHC"]) -> list[Path]:
        """The test images of a stain, in the order of `test`."""
        return [self.images / "test" / stain / f"{name}.png" for name in self.test]

    def read(self, stain: Literal["HE", "IHC"], most: int | None = None) -> list[Pixels]:
        """The first `most` test images of a stain, in the order of `test`."""
        return [read_image(path) for path in self.files(stain)[:most]]

    def alone(self) -> list[str]:
        """The names of training images without a partner, sorted."""
        he, ihc = ({p.stem for p in list_images(self.images / "train" / stain)} for stain in STAINS)
        return sorted(he ^ ihc)

    def smallest_side(self) -> int:
        """The shorter side of the smallest training image: no training tile can be larger."""
        paths = [p for stain in STAINS for p in list_images(self.images / "train" / stain)]
        return min(min(read_image(path).shape[:2]) for path in paths)


def prepare(source: Source, out: Path, settings: Settings, say: Callable[[str], None]) -> Case:
    """Make a dataset ready, or find it ready.

    Raises:
        DataError: No pairs to test on, no images to train on, an unreadable image, or a folder prepared in another way.
    """
    folder = out / source.name
    _apart(source, folder)
    asked: dict[str, Any] = {
        "root": str(source.root.resolve()) if source.root else TWIN,
        "mpp": source.mpp,
        **asdict(settings),
    }
    record = folder / "case.json"
    if record.exists():
        return _case(source.name, folder, _found(record, asked))
    say(f"{source.name}: preparing images in {folder / 'images'}")
    _clear(folder)
    write_json(folder / BEGUN, asked)
    images = folder / "images"
    if source.root is None:
        found = prepare_twin(images)
    else:
        found = (prepare_whole if settings.split == "all" else prepare_root)(source, images, settings)
    write_json(record, {"settings": asked, **found})
    (folder / BEGUN).unlink()
    case = _case(source.name, folder, read_json(record))
    say(f"{case.name}: {case.counts}")
    return case


def _apart(source: Source, folder: Path) -> None:
    """Refuse to write into a dataset, whose images would then be its own and ours."""
    if source.root is None:
        return
    root, here = source.root.resolve(), folder.resolve()
    if here.is_relative_to(root) or root.is_relative_to(here):
        raise DataError(
            f"{folder}: this case's folder and the dataset {source.root} lie in each other; give an --out elsewhere"
        )


def _found(record: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What `case.json` holds, if it was made as is asked now."""
    found = read_json(record)
    before = found.get("settings")
    if not isinstance(before, dict) or not {"marker", "mpp", "paired", "notes", "train", "test"} <= set(
        found
    ):
        raise DataError(f"{record}: is no record of a prepared dataset; give another --out")
    changed = [key for key in asked if before.get(key) != asked[key]]
    if changed:
        raise DataError(
            f"{record}: prepared with another '{changed[0]}' ({before.get(changed[0])}, now {asked[changed[0]]}); give another --out"
        )
    return found


def _clear(folder: Path) -> None:
    """Remove the images of a preparation that was stopped: made in another way they could mix training and test.

    Raises:
        DataError: What lies there is not ours, or rests on images that are gone.
    """
    images = folder / "images"
    if (folder / BEGUN).exists():
        shutil.rmtree(images, ignore_errors=True)
    for path in (images, folder / "runs", folder / "results"):
        if path.exists():
            raise DataError(
                f"{path}: is there, but no {folder / 'case.json'} that says what it was made of; give another --out, or remove {folder}"
            )


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
