"""Pieces through a translator in batches that keep a device busy.

A batch is filled with pieces of one size, whoever asks for them; threads draw its noise ahead; an accelerator is given the next
batch before the last one is fetched from it. How many pieces make up a batch is chosen from the free memory, and halved for good
where that does not suffice. On a processor, what takes one pass stains several pieces at a time, each on a core of its own: cores
that share one network's sums wait for each other, and all but one of them while noise is drawn.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice, takewhile

import torch
from torch import Tensor

from miudiff.device import (
    Download,
    Placement,
    batch_that_fits,
    enough_memory,
    free_memory,
    is_out_of_memory,
    peak_memory,
)
from miudiff.diffusion.graphs import Graphs
from miudiff.errors import NonFiniteError
from miudiff.images import Pixels, quantised, to_tensor
from miudiff.methods.sdedit import Reverse, StepReport
from miudiff.noise import Ahead, NoiseKey, NoiseSource

Keyed = tuple[Pixels, NoiseKey]
MOST = 64  # pieces of a batch whose size is chosen; a card that holds more gains nothing by it
THREADS = 16  # that draw noise, or stain a piece each, at most


class Batches:
    """Batches of pieces through a translator on one device.

    Args:
        translate: H&E [B, 3, H, W] in [-1, 1] and a key for each to virtual IHC.
        reverse: The translator's reverse process; None for a generator.
        count: Pieces that the network is given at once. None takes 1 on a processor, and what fits into memory on CUDA.
        tile: The side of a piece that memory is measured with.
        say: Told what was chosen.
    """

    def __init__(
        self,
        translate: Callable[[Tensor, Sequence[NoiseKey]], Tensor],
        reverse: Reverse | None,
        placement: Placement,
        count: int | None,
        tile: int,
        say: Callable[[str], None],
    ) -> None:
        self.translate, self.reverse, self.placement = translate, reverse, placement
        self.tile, self.say = tile, say
        usual = {"cpu": 1, "cuda": None}.get(placement.device.type, 8)
        self._count = usual if count is None else count
        if reverse is not None and placement.device.type == "cuda":
            reverse.graphs = Graphs(reverse.score)

    @property
    def count(self) -> int:
        """Pieces that the network is given at once; measured when it is first asked for."""
        if self._count is None:
            self._count = self._fitting()
            self.say(f"{self._count} tiles at once, by the free memory of {self.placement.device}")
        return self._count

    @property
    def workers(self) -> int:
        """Pieces that are stained at a time, each by a core: 1 but on a processor, for what takes one pass."""
        apart = self.reverse is None and self.placement.device.type == "cpu" and self.count == 1
        return min(THREADS, torch.get_num_threads()) if apart else 1

    def stream(self, windows: Iterable[Keyed], together: bool = True, apart: bool = True) -> Iterator[Pixels]:
        """The virtual IHC of each piece, uint8 [H, W, 3], in their order.

        Args:
            together: Whether pieces may share a batch; else a piece is one.
            apart: Whether `workers` may stain a piece each; a single piece is stained sooner by all cores.

        Raises:
            DeviceError: Out of memory, with one at a time.
            NonFiniteError: The network gave a NaN or an infinity.
        """
        if apart and self.workers > 1:
            yield from self._apart(windows)
            return
        upcoming, waiting = iter(windows), list[Keyed]()
        under_way: deque[Download] = deque()
        allowed = 0 if self.placement.device.type == "cpu" else 1
        while True:
            count = self.count if together else 1
            waiting += islice(upcoming, max(0, count - len(waiting)))
            if not waiting:
                break
            now = list(takewhile(partial(_alike, waiting[0]), waiting[:count]))
            if begun := self._begin(now):
                under_way.append(begun)
                del waiting[: len(now)]
            while len(under_way) > allowed:
                yield from self._fetched(under_way.popleft())
        for download in under_way:
            yield from self._fetched(download)

    def _apart(self, windows: Iterable[Keyed]) -> Iterator[Pixels]:
        """The virtual IHC of each piece, each made by one of `workers`; the next one waits while they are at work."""
        count, cores = self.workers, torch.get_num_threads()
        pool = ThreadPoolExecutor(count, "stain", torch.set_num_threads, (max(1, cores // count),))
        under_way: deque[Future[Download | None]] = deque()
        try:
            for window in windows:
                under_way.append(pool.submit(self._begin, [window]))
                if len(under_way) > count:
                    yield from self._fetched(_made(under_way.popleft()))
            for future in under_way:
                yield from self._fetched(_made(future))
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(cores)  # what a thread sets is every later thread's, too

    def ahead(self, keys: Sequence[NoiseKey]) -> contextlib.AbstractContextManager[Sequence[NoiseSource]]:
        """Keys whose noise is drawn while an accelerator is at work; a processor has no time to spare for it."""
        if self.placement.device.type == "cpu":
            return contextlib.nullcontext(keys)
        threads = min(THREADS, torch.get_num_threads())
        return Ahead(keys, threads, pinned=self.placement.device.type == "cuda")

    def _begin(self, windows: Sequence[Keyed]) -> Download | None:
        """The results of a batch, on their way; None where memory was short and the batch is smaller now."""
        pieces, keys = [pixels for pixels, _ in windows], [key for _, key in windows]
        with self._memory(pieces[0]):
            try:
                ihc = self.translate(to_tensor(pieces), keys)
                return Download(quantised(ihc), torch.isfinite(ihc).all())
            except (RuntimeError, MemoryError) as error:
                if self.count == 1 or not is_out_of_memory(error):
                    raise
        self._count = self.count // 2
        if self.reverse is not None and self.reverse.graphs is not None:
            self.reverse.graphs.forget()
        self.say(f"too little memory on {self.placement.device}: going on with {self._count} tiles at once")
        return None

    def _fetched(self, download: Download) -> list[Pixels]:
        ihc, finite = download.wait()
        if not finite:
            raise NonFiniteError(
                f"the network gave a NaN or an infinity in {self.placement.precision}; are its weights damaged?"
            )
        return list(ihc.numpy())

    def _memory(self, tile: Pixels) -> contextlib.AbstractContextManager[None]:
        return enough_memory(
            f"a tile of {tile.shape[1]} x {tile.shape[0]} in {self.placement.precision} on {self.placement.device}",
            "free the device, take another (--device cpu) or --precision bf16, or write a smaller 'tile' into the model's model_index.json",
        )

    def _fitting(self) -> int:
        """How many fit into the free memory of a CUDA device, by what a step of one and of two takes."""
        device = self.placement.device
        try:
            one, two = (peak_memory(device, partial(self._try, count)) for count in (1, 2))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return 1
        return batch_that_fits(one, two, free_memory(device), MOST)

    def _try(self, count: int) -> None:
        """Take one step with so many pieces, and throw it away."""
        reverse, reports = self.reverse, iter((False, True))

        def stop(report: StepReport) -> None:
            if next(reports):
                raise _Seen

        watch = reverse.watch if reverse else None
        if reverse:
            reverse.watch = stop
        try:
            with contextlib.suppress(_Seen):
                self.translate(torch.zeros(count, 3, self.tile, self.tile), [NoiseKey(0)] * count)
        finally:
            if reverse:
                reverse.watch = watch


def _made(future: Future[Download | None]) -> Download:
    made = future.result()
    assert made is not None  # a batch of one is not halved
    return made


class _Seen(Exception):
    """A step was taken, and no more is wanted."""


def _alike(first: Keyed, second: Keyed) -> bool:
    return first[0].shape == second[0].shape
