"""Many windows on many machines: actors that each hold a stainer, under Ray (the extra `cluster`).

An actor reads its windows from the slide itself, so every machine must see the slides and the model under the same path. A
window's result depends on the window and its key alone: whoever stains it, and however often, it is the same. The machine that the
command runs on only gathers, blends, encodes and writes.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from miudiff.errors import ClusterError, ConfigError, MiudiffError, SlideError
from miudiff.images import Pixels
from miudiff.noise import NoiseKey
from miudiff.normalisation import HEStains
from miudiff.slides.frame import Frame, Window
from miudiff.slides.reader import Slide, open_slide
from miudiff.slides.runner import Group, Result, Stained
from miudiff.slides.sight import Rectangle, Sight

if TYPE_CHECKING:
    from miudiff.stainer import VirtualStainer

LOCAL = "local"  # the address that starts a Ray of this machine's own
START = 300.0  # seconds until every worker must have loaded its weights
WAITING = 3  # tasks that wait at each actor, so that none is idle while results are fetched


@dataclass(frozen=True)
class Task:
    """Windows of one slide for an actor."""

    path: Path
    frame: Frame
    mark: bool
    key: NoiseKey
    windows: tuple[Window, ...]
    dyes: HEStains | None = None


class Worker:
    """What an actor does; it holds one stainer, and the slide that it read last.

    Args:
        load: Makes the stainer, in the actor's own process.
    """

    def __init__(self, load: Callable[[], VirtualStainer]) -> None:
        self.stainer = load()
        self._slide: Slide | None = None

    def ready(self) -> None:
        """Answer once the stainer is loaded."""

    def stain(self, task: Task) -> Result | str:
        """Each window's virtual IHC and what of its H&E could not be read; a user's mistake as the line that tells it."""
        try:
            sight = Sight(self._open(task.path), task.frame, mark=task.mark)
            read, bad = sight.windows(task.windows)
            keys = [task.key.at(window.left, window.top) for window in task.windows]
            return self.stainer.for_section(task.dyes).stain(read, keys), bad
        except MiudiffError as error:
            return str(error)

    def _open(self, path: Path) -> Slide:
        if self._slide is None or self._slide.path != path:
            if self._slide is not None:
                self._slide.close()
            self._slide = open_slide(path)
        return self._slide


class Cluster:
    """Actors of a Ray cluster.

    Args:
        address: Of a running cluster, as `ray start` tells it, or LOCAL to start one on this machine.
        workers: How many actors; None takes one for each accelerator of the cluster, or for each processor without one.
        load: Makes a stainer; runs on every actor.
        batch: Windows of a task.
        device: "cuda" gives each actor an accelerator of its own.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers at the address.
    """

    def __init__(
        self,
        address: str,
        workers: int | None,
        load: Callable[[], VirtualStainer],
        batch: int = 1,
        device: str = "cpu",
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                "--cluster: Ray is not installed; pip install 'miudiff[cluster]' on every machine"
            ) from error
        self._ray, self._batch = ray, batch
        quiet: dict[str, Any] = (
            {"log_to_driver": False, "include_dashboard": False} if address == LOCAL else {}
        )
        try:
            self._started = not ray.is_initialized()
            if self._started:
                where: dict[str, Any] = {"num_cpus": workers} if address == LOCAL else {"address": address}
                ray.init(**where, **quiet, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"--cluster {address}: no Ray cluster answers there ({' '.join(str(error).split())[:160]}); start one with `ray start --head`, or leave the address out"
            ) from error
        actor: Any = ray.remote(Worker)
        # A dead actor is started again and its task is done again: results do not depend on who makes them.
        wanted = {
            "max_restarts": -1,
            "max_task_retries": -1,
            "num_cpus": 1,
            "num_gpus": int(device == "cuda"),
        }
        kind = "GPU" if device == "cuda" else "CPU"
        workers = workers or max(int(cast("Any", ray).cluster_resources().get(kind, 0)), 1)
        self.actors: list[Any] = [actor.options(**wanted).remote(load) for _ in range(workers)]
        # weights that do not load are told now
        self._get([actor.ready.remote() for actor in self.actors], START)

    def stained(self, key: NoiseKey, dyes: HEStains | None = None) -> Stained:
        """Who stains the windows of a slide of these dyes (`VirtualStainer.for_section`) whose noise is `key`'s."""
        return partial(self._run, key, dyes)

    def _run(
        self, key: NoiseKey, dyes: HEStains | None, sight: Sight, groups: Iterable[Group]
    ) -> Generator[Result, None, None]:
        """Results in the order of the groups; each group is divided into tasks, and every actor has a few waiting."""
        upcoming = iter(groups)
        queue: deque[tuple[Any, int]] = deque()  # tasks in order, and the actor of each
        whole: deque[int] = deque()  # how many tasks make up each group
        try:
            while True:
                while len(queue) < WAITING * len(self.actors) and (group := next(upcoming, None)):
                    parts = [tuple(group[i : i + self._batch]) for i in range(0, len(group), self._batch)]
                    for windows in parts:
                        task = Task(sight.slide.path.absolute(), sight.frame, sight.mark, key, windows, dyes)
                        number = self._idlest(queue)
                        queue.append((self.actors[number].stain.remote(task), number))
                    whole.append(len(parts))
                if not whole:
                    return
                pixels: list[Pixels] = []
                bad: list[Rectangle] = []
                for _ in range(whole.popleft()):
                    result: Result | str = self._get(queue[0][0])
                    queue.popleft()
                    if isinstance(result, str):
                        raise SlideError(result)
                    pixels += result[0]
                    bad += result[1]
                yield pixels, bad
        finally:
            for waiting, _ in queue:
                self._ray.cancel(waiting, recursive=False)

    def _idlest(self, queue: Sequence[tuple[Any, int]]) -> int:
        """The actor with the fewest tasks that are not done."""
        waiting = [0] * len(self.actors)
        if queue:
            refs = dict(queue)
            _, unfinished = self._ray.wait(list(refs), num_returns=len(refs), timeout=0, fetch_local=False)
            for ref in unfinished:
                waiting[refs[ref]] += 1
        return waiting.index(min(waiting))

    def _get(self, wanted: Any, seconds: float | None = None) -> Any:
        """What a task gave, within so many seconds.

        Raises:
            MiudiffError: What an actor raised, or that it cannot be started.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(wanted, timeout=seconds)
        except errors.GetTimeoutError as error:
            free = cast("Any", self._ray).available_resources()
            raise ClusterError(
                f"--workers: {len(self.actors)} workers are not up after {START:.0f} s (free now: {free.get('CPU', 0):.0f} CPUs, {free.get('GPU', 0):.0f} GPUs); ask for fewer, or add machines"
            ) from error
        except errors.RayTaskError as error:
            if isinstance(error.cause, MiudiffError):
                raise error.cause from error
            raise
        except errors.RayActorError as error:
            told = str(error).strip().splitlines()
            raise ClusterError(
                f"--cluster: a worker cannot be started or was lost for good ({told[-1][:200]}); see Ray's logs on its machine"
            ) from error

    def close(self) -> None:
        """Let the actors go, and a Ray that was started here."""
        for actor in self.actors:
            self._ray.kill(actor)
        if self._started:
            self._ray.shutdown()
