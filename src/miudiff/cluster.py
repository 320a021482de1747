"""Many windows on many machines: actors that each hold a stainer, under Ray (the extra `cluster`).

An actor reads its windows from the slide itself, so every machine must see the slides and the model under the same path. A
window's result depends on the window and its key alone: whoever stains it, and however often, it is the same. The machine that the
command runs on only gathers, blends, encodes and writes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miudiff.errors import ClusterError, ConfigError, MiudiffError, SlideError
from miudiff.images import Pixels
from miudiff.noise import NoiseKey
from miudiff.slides.frame import Frame, Window
from miudiff.slides.reader import Slide, open_slide
from miudiff.slides.sight import Rectangle, Sight

if TYPE_CHECKING:
    from miudiff.stainer import VirtualStainer

Result = list[tuple[Pixels, list[Rectangle]]]
LOCAL = "local"  # the address that starts a Ray of this machine's own
WAITING = 3  # groups of windows that wait at each actor, so that none is idle while results are fetched


@dataclass(frozen=True)
class Task:
    """Windows of one slide for an actor."""

    path: Path
    frame: Frame
    mark: bool
    key: NoiseKey
    windows: tuple[Window, ...]


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
            read = [sight.window(window) for window in task.windows]
            keys = [task.key.at(window.left, window.top) for window in task.windows]
            ihc = self.stainer.stain([pixels for pixels, _ in read], keys)
        except MiudiffError as error:
            return str(error)
        return list(zip(ihc, (bad for _, bad in read)))

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
        workers: How many actors.
        load: Makes a stainer; runs on every actor.
        batch: Windows of a task.
        resources: What an actor takes of a machine, as in {"num_gpus": 1}.

    Raises:
        ConfigError: Ray is not installed, or no cluster answers at the address.
    """

    def __init__(
        self,
        address: str,
        workers: int,
        load: Callable[[], VirtualStainer],
        batch: int = 1,
        resources: Mapping[str, float] | None = None,
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
            if not ray.is_initialized():
                where = {"num_cpus": workers} if address == LOCAL else {"address": address}
                ray.init(**where, **quiet, logging_level="error")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"--cluster {address}: no Ray cluster answers there ({' '.join(str(error).split())[:160]}); start one with `ray start --head`, or leave the address out"
            ) from error
        actor = ray.remote(Worker)
        # A dead actor is started again and its task is done again: results do not depend on who makes them.
        wanted = {"max_restarts": -1, "max_task_retries": -1, "num_cpus": 1, **(resources or {})}
        self.actors = [actor.options(**wanted).remote(load) for _ in range(workers)]
        self._get([actor.ready.remote() for actor in self.actors])  # weights that do not load are told now

    def stained(
        self, key: NoiseKey
    ) -> Callable[[Sight, Iterable[Window]], Iterator[tuple[Pixels, list[Rectangle]]]]:
        """Who stains the windows of a slide whose noise is `key`'s."""

        def run(sight: Sight, windows: Iterable[Window]) -> Iterator[tuple[Pixels, list[Rectangle]]]:
            return self._run(sight, key, iter(windows))

        return run

    def _run(
        self, sight: Sight, key: NoiseKey, windows: Iterator[Window]
    ) -> Iterator[tuple[Pixels, list[Rectangle]]]:
        """Results in the order of the windows; actors take tasks in turn, and each has a few waiting."""
        queue: deque[tuple[Any, int]] = deque()
        try:
            while True:
                while len(queue) < WAITING * len(self.actors) and (
                    group := tuple(islice(windows, self._batch))
                ):
                    task = Task(sight.slide.path.absolute(), sight.frame, sight.mark, key, group)
                    number = self._idlest(queue)
                    queue.append((self.actors[number].stain.remote(task), number))
                if not queue:
                    return
                result: Result | str = self._get(queue[0][0])
                queue.popleft()
                if isinstance(result, str):
                    raise SlideError(result)
                yield from result
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

    def _get(self, wanted: Any) -> Any:
        """What a task gave.

        Raises:
            MiudiffError: What an actor raised, or that it cannot be started.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(wanted)
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
        self._ray.shutdown()
