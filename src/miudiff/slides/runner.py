"""One slide through a stainer: windows are stained row by row, and meanwhile finished rows become blocks of the result's pyramid.

    read ahead -> stain windows, in batches -> row-NNNNN.raw -> blend, back to level 0, glass -> encode -> blocks -> result

Everything on disk is a pure function of the slide and the settings, whole or not there: the same command goes on from what it
finds. A row file is deleted once no block needs it, so neither memory nor disk holds more than a few rows of windows beside the result.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from miudiff.ahead import begun_ahead
from miudiff.errors import DataError, SlideError
from miudiff.images import Pixels, atomic
from miudiff.noise import NoiseKey
from miudiff.slides.blocks import Encoder
from miudiff.slides.frame import Window
from miudiff.slides.sight import Rectangle, Sight, read_rectangles, write_rectangles

AHEAD = 3  # rows of windows that may wait to be encoded
GROUP = 16  # windows that are read together
READ_AHEAD = 2  # groups that are read before they are stained
READERS = 8  # threads that read for a stainer of large batches, at most


Keyed = tuple[Pixels, NoiseKey]  # a window's H&E and its noise


class Staining(Protocol):
    """What the runner needs of a stainer."""

    @property
    def batch(self) -> int:
        """How many windows it stains at once."""
        ...

    def stream(self, windows: Iterable[Keyed]) -> Iterator[Pixels]:
        """The virtual IHC of each window, in their order; it may take some more before it gives one."""
        ...


Group = list[Window]  # neighbours of one row that are read together
Result = tuple[list[Pixels], list[Rectangle]]  # the windows of a group, and what of them could not be read


class Stained(Protocol):
    """Stains windows, wherever: here, or on other machines (`cluster`)."""

    def __call__(self, sight: Sight, groups: Iterable[Group]) -> Generator[Result, None, None]:
        """The virtual IHC of each group's windows, and what of its H&E could not be read, in the order of the groups.

        Closed early, it ends what it has begun.
        """
        ...


class Here:
    """Stains windows in this process; the next ones are read meanwhile, by more threads the more are stained at once.

    A batch is filled with windows of several groups, and of the next row: few of them lie in a row of a small piece of tissue.
    """

    def __init__(self, staining: Staining, key: NoiseKey) -> None:
        self.staining, self.key = staining, key

    def __call__(self, sight: Sight, groups: Iterable[Group]) -> Generator[Result, None, None]:
        batch = self.staining.batch
        ahead = READ_AHEAD + (2 * batch // GROUP if batch > 1 else 0)
        begun: deque[tuple[int, list[Rectangle]]] = (
            deque()
        )  # groups: how many windows, and what is bad in them

        def windows(read: Iterable[tuple[Group, Future[Result]]]) -> Iterator[Keyed]:
            for group, future in read:
                he, bad = future.result()
                begun.append((len(group), bad))
                for pixels, at in zip(he, group, strict=True):
                    yield pixels, self.key.at(at.left, at.top)

        stained: list[Pixels] = []
        reading = begun_ahead(sight.windows, groups, ahead, min(READERS, ahead - 1))
        with contextlib.closing(reading) as read:
            for ihc in self.staining.stream(windows(read)):
                stained.append(ihc)
                if len(stained) == begun[0][0]:
                    yield stained, begun.popleft()[1]
                    stained = []


class RowStore:
    """Stained rows of windows on disk, each a file that is whole or does not count, and what could not be read beside it.

    row-NNNNN.raw       MAGIC, a CRC-32 for each window, the CRC-32 of all that, then uint8 [n, h, w, 3]
    row-NNNNN.json      rectangles of level 0 that could not be read
    """

    MAGIC = b"miudiff row 1\n\0\0"

    def __init__(self, folder: Path, sight: Sight) -> None:
        self.folder, self.sight = folder, sight
        self._windows: dict[int, list[Window]] = {}
        self._held: dict[int, NDArray[np.uint8]] = {}

    def windows(self, row: int) -> list[Window]:
        """The windows of a row that are stained, a function of the slide and the settings."""
        if row not in self._windows:
            self._windows[row] = [at for at in self.sight.frame.row(row) if self.sight.needs(at)]
        return self._windows[row]

    def groups(self, row: int) -> list[Group]:
        """The windows of a row that are stained, in groups of neighbours that are at most GROUP apart."""
        found: list[Group] = []
        for window in self.windows(row):
            if found and window.column - found[-1][0].column < GROUP:
                found[-1].append(window)
            else:
                found.append([window])
        return found

    def has(self, row: int) -> bool:
        """Whether the row is there and whole, to its last byte."""
        try:
            self._load(row)
            self.bad(row)
        except SlideError:
            return False
        return True

    def write(self, row: int, stained: list[Pixels], bad: list[Rectangle]) -> None:
        """Keep a whole row; the note of what could not be read is there before it.

        Raises:
            DataError: It cannot be written, or the folder is gone and with it the rows before.
        """
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: vanished while it was in use; run the same command again")
        if bad:
            write_rectangles(self._path(row).with_suffix(".json"), bad)
        parts = [np.ascontiguousarray(pixels).data for pixels in stained]
        head = self.MAGIC + np.array([zlib.crc32(part) for part in parts], "<u4").tobytes()
        with atomic(self._path(row)) as path, path.open("wb") as file:
            file.write(head + zlib.crc32(head).to_bytes(4, "little"))
            file.writelines(parts)

    def read(self, row: int) -> NDArray[np.uint8]:
        """The stained windows of a row, uint8 [n, h, w, 3], in the order of `windows`; held until `forget`.

        Raises:
            SlideError: It is not there, or not what was written.
        """
        if row not in self._held:
            self._held[row] = self._load(row)
        return self._held[row]

    def _load(self, row: int) -> NDArray[np.uint8]:
        path, count = self._path(row), len(self.windows(row))
        shape = (count, *self.sight.frame.size, 3)
        start = len(self.MAGIC) + 4 * count + 4
        try:
            data = np.fromfile(path, np.uint8)
        except OSError as error:
            raise SlideError(
                f"{path}: cannot be read ({error.strerror}); run the same command again"
            ) from error
        head = data[:start].tobytes()
        whole = len(data) == start + int(np.prod(shape)) and head.startswith(self.MAGIC)
        if whole and zlib.crc32(head[:-4]).to_bytes(4, "little") == head[-4:]:
            pixels = data[start:].reshape(shape)
            sums = np.frombuffer(head[len(self.MAGIC) : -4], "<u4").tolist()
            if sums == [zlib.crc32(window.data) for window in pixels]:
                return pixels
        raise SlideError(f"{path}: damaged; run the same command again, which stains these windows anew")

    def bad(self, row: int) -> list[Rectangle]:
        """What of a row could not be read."""
        return read_rectangles(self._path(row).with_suffix(".json"))

    def forget(self, before: int) -> None:
        """Delete the pixels of the rows before this one; what could not be read is kept for the record."""
        self._held = {row: pixels for row, pixels in self._held.items() if row >= before}
        for path in self.folder.glob("row-*.raw"):
            if int(path.stem.removeprefix("row-")) < before:
                path.unlink(missing_ok=True)

    def _path(self, row: int) -> Path:
        return self.folder / f"row-{row:05d}.raw"


class Runner:
    """Stains a slide into blocks of encoded tiles.

    Args:
        sight: The slide, its frame and what of it is asked for.
        encoder: Makes blocks of the result from rows of windows.
        folder: Holds what is unfinished; the same folder goes on.

    Attributes:
        todo: The rows of windows that are still to be stained, as it was found.
    """

    def __init__(self, sight: Sight, encoder: Encoder, folder: Path) -> None:
        self.sight, self.encoder = sight, encoder
        self.rows = RowStore(folder / "rows", sight)
        self._missing = encoder.missing()
        rows = range(*self._rows_of(self._missing))
        self._there = {row for row in rows if self.rows.has(row)}  # on disk, seen whole or just written
        self.todo = [row for row in rows if row not in self._there]
        self._changed = threading.Condition()
        self._stopped = False
        self._awaited = 0  # the encoding waits for no row from this one on

    def run(self, stained: Stained, progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Stain and encode what is missing. `progress` is told how many windows of how many are done.

        Raises:
            SlideError: A region cannot be read. Whatever the stainer or the disk raises.
            KeyboardInterrupt: Ctrl-C; everything that was finished is kept.
        """
        self.rows.folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(1, "encode") as pool:
            encoding = pool.submit(self._encode, self._missing)
            try:
                # Closed here: left to the garbage collector, its threads would be joined in whatever thread collects it.
                wanted = (group for row in self.todo for group in self.rows.groups(row))
                with contextlib.closing(stained(self.sight, wanted)) as results:
                    self._keep(results, encoding, progress)
                encoding.result()
            except BaseException:
                with self._changed:
                    self._stopped = True
                    self._changed.notify_all()
                with contextlib.suppress(BaseException):
                    encoding.result()
                raise

    def _keep(
        self,
        results: Iterator[Result],
        encoding: Future[None],
        progress: Callable[[int, int], None],
    ) -> None:
        """Write each row of windows once all its groups are stained, until all are or the encoding has failed."""
        total = sum(len(self.rows.windows(row)) for row in range(len(self.sight.frame.tops)))
        done = total - sum(len(self.rows.windows(row)) for row in self.todo)
        progress(done, total)
        for row in self.todo:
            pixels: list[Pixels] = []
            bad: list[Rectangle] = []
            for _ in self.rows.groups(row):
                ihc, unread = next(results)
                pixels += ihc
                bad += unread
                done += len(ihc)
                progress(done, total)
            self.rows.write(row, pixels, bad)
            self._wait_for_encoding(row)
            if encoding.done():
                return

    @property
    def outstanding(self) -> tuple[list[Window], list[Window]]:
        """The windows of the rows to be stained: those that are, and those that are not."""
        every = [window for row in self.todo for window in self.sight.frame.row(row)]
        stained = {window for row in self.todo for window in self.rows.windows(row)}
        return sorted(stained), [window for window in every if window not in stained]

    def _rows_of(self, blocks: list[int]) -> tuple[int, int]:
        """The rows of windows, first and one past the last, that these blocks of level 0 need."""
        if not blocks:
            return 0, 0
        needed = [self.encoder.needs(block) for block in (blocks[0], blocks[-1])]
        return needed[0].start, needed[1].stop

    def _wait_for_encoding(self, row: int) -> None:
        """Tell that a row is there, and go on once the encoding is not too far behind; what it waits for is there then.

        Both threads wait for what they told each other, never for the disk, so no file that vanishes can keep them waiting.
        """
        with self._changed:
            self._there.add(row)
            self._changed.notify_all()
            self._changed.wait_for(lambda: row < self._awaited + AHEAD)

    def _encode(self, blocks: list[int]) -> None:
        """Encode these blocks of level 0, each as soon as its rows are there; in a thread of its own."""
        try:
            for block in blocks:
                needed = self.encoder.needs(block)
                with self._changed:
                    self._awaited = needed.stop
                    self._changed.notify_all()
                    self._changed.wait_for(lambda n=needed: self._stopped or self._there.issuperset(n))  # type: ignore[misc]
                if self._stopped:
                    return
                self.rows.forget(needed.start)
                self.encoder.encode(block, self.rows)
        finally:
            with self._changed:
                self._awaited = 10**9  # whatever happened, nobody is to wait for this thread
                self._changed.notify_all()

    @property
    def unreadable(self) -> list[Rectangle]:
        """What could not be read, over the whole slide."""
        rows = range(len(self.sight.frame.tops))
        found = {at for row in rows for at in self.rows.bad(row)} | set(self.encoder.unreadable)
        return sorted(found, key=lambda at: (at.y, at.x))


def clear(folder: Path) -> None:
    """Remove what was unfinished."""
    shutil.rmtree(folder, ignore_errors=True)
