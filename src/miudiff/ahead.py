"""Work that is begun before its result is asked for, such as reading the next file while this one is stained."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def begun_ahead(
    work: Callable[[Item], Made], items: Iterable[Item], most: int, threads: int = 1
) -> Generator[tuple[Item, Future[Made]], None, None]:
    """Each item, in order, with what `work` makes of it in another thread; close it, and the threads end.

    Args:
        most: So many items are begun and not yet given, at most, the one that is given among them.
    """
    queue: deque[tuple[Item, Future[Made]]] = deque()
    upcoming = iter(items)
    with ThreadPoolExecutor(threads, "ahead") as pool:
        try:
            while True:
                for item in islice(upcoming, most - len(queue)):
                    queue.append((item, pool.submit(work, item)))
                if not queue:
                    return
                yield queue.popleft()
        finally:
            for _, made in queue:  # what was given is made to its end
                made.cancel()
