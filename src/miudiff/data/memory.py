"""Images that were read once and are kept, as far as memory allows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

from torch.utils.data import get_worker_info

from miudiff.errors import MiudiffError
from miudiff.images import Pixels

Key = TypeVar("Key")


class Scaled(NamedTuple):
    """An image's pixels at the run's scale, and the (height, width) of its file."""

    pixels: Pixels
    file_size: tuple[int, int]


class Memory(Generic[Key]):
    """Images kept until they fill `limit` bytes: 4 GB are 20,000 tiles of 256 x 256, or 1,300 of 1024.

    Processes that are forked to read tiles share what is there by then, and divide the rest of the limit among them.

    Args:
        read: Reads the image that a key names.
    """

    def __init__(self, read: Callable[[Key], Scaled], limit: int = 4 * 10**9) -> None:
        self.read, self.limit, self.used = read, limit, 0
        self._ahead = 0  # bytes that were there before any process was forked
        self._images: dict[Key, Scaled] = {}

    def get(self, key: Key) -> Scaled:
        """The image, read if it is not there."""
        if key in self._images:
            return self._images[key]
        scaled = self.read(key)
        self._keep(key, scaled)
        return scaled

    def fill(self, keys: Iterable[Key], threads: int) -> None:
        """Read images until the limit is reached; one that cannot be read is left to its turn, which tells why."""
        wanted = [key for key in dict.fromkeys(keys) if key not in self._images]
        with ThreadPoolExecutor(threads) as pool:
            for first in range(0, len(wanted), 4 * threads):
                some = wanted[first : first + 4 * threads]
                found = [(key, scaled) for key, scaled in zip(some, pool.map(self._tried, some), strict=True)]
                if not all(self._keep(key, scaled) for key, scaled in found if scaled):
                    break
        self._ahead = self.used

    def _tried(self, key: Key) -> Scaled | None:
        try:
            return self.read(key)
        except MiudiffError:
            return None

    def _keep(self, key: Key, scaled: Scaled) -> bool:
        """Keep the image if it fits."""
        # Tiles are drawn at random, so what came first is worth as much as what came last: nothing is given up for another.
        info = get_worker_info()
        limit = self._ahead + (self.limit - self._ahead) // (info.num_workers if info else 1)
        if self.used + scaled.pixels.nbytes > limit:
            return False
        self._images[key] = scaled
        self.used += scaled.pixels.nbytes
        return True
