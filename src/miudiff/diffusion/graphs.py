"""CUDA graphs: a network's kernels are recorded once for each shape and launched together from then on.

A small network has hundreds of kernels of a few microseconds each, so on a fast card the processor that launches them sets the
pace. A graph launches the same kernels on the same numbers in one call: the same bits, which is checked when it is recorded.

`torch.compile` is not offered: it makes kernels that round in their own way on every kind of card, so that a result would depend on
where it was compiled, and takes minutes before the first tile.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from miudiff.device import wait_for

log = logging.getLogger(__name__)

Forward = Callable[[Tensor, Tensor], Tensor]  # images [B, 3, H, W] and indices [B] to the network's output

PATIENCE = 8  # calls of a shape before it is worth a graph; the batch that is left at the end seldom is
MOST = 8  # shapes that get one: each holds the memory of a forward pass
WARM_UP = 3  # calls on the stream that records, before it does
RUNS = 5  # calls that are timed


class Graphs:
    """A network's forward pass by the faster of its kernels one by one and a graph of them, for each shape.

    A graph reads the weights where they lie: what is written into them counts. Should they move, all graphs are recorded anew.
    Where gradients are wanted, or the network is in training mode, its kernels are launched one by one.

    Args:
        network: On a CUDA device.
        record: Makes a graph; stands here to be tested without such a device.
    """

    def __init__(
        self, network: nn.Module, record: Callable[[Forward, Tensor, Tensor], Forward] | None = None
    ) -> None:
        self.network, self._record = network, record or record_graph
        self._calls: Counter[Any] = Counter()
        self._chosen: dict[Any, Forward] = {}
        self._weights: list[int] = []

    def __call__(self, y: Tensor, times: Tensor) -> Tensor:
        """What the network gives for images [B, 3, H, W] at indices [B] of the full chain."""
        if torch.is_grad_enabled() or self.network.training:
            return self.network(y, times)
        weights = [weight.data_ptr() for weight in self.network.parameters()]
        if weights != self._weights:
            self.forget()
            self._weights = weights
        kind = y.device.type
        shape = (y.shape, y.dtype, torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind))
        if shape not in self._chosen:
            self._calls[shape] += 1
            if self._calls[shape] <= PATIENCE or len(self._chosen) >= MOST:
                return self.network(y, times)
            self._chosen[shape] = self._choose(y, times)
        return self._chosen[shape](y, times)

    def forget(self) -> None:
        """Let all graphs go, and with them their memory."""
        self._calls.clear()
        self._chosen.clear()

    def _choose(self, y: Tensor, times: Tensor) -> Forward:
        """A graph, if one can be recorded, gives the same and is faster; else the network."""
        size = " x ".join(map(str, y.shape))
        try:
            graph = self._record(self.network, y, times)
            same = torch.equal(graph(y, times), self.network(y, times))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            log.warning("no CUDA graph for %s (%s): kernels are launched one by one", size, reason)
            return self.network
        if not same:
            log.warning(
                "no CUDA graph for %s (it gives other numbers): kernels are launched one by one", size
            )
            return self.network
        alone, together = (_seconds(run, y, times) for run in (self.network, graph))
        log.info(
            "network at %s: %.2f ms kernel by kernel, %.2f ms as a graph", size, 1e3 * alone, 1e3 * together
        )
        return graph if together < alone else self.network


def record_graph(network: Forward, y: Tensor, times: Tensor) -> Forward:
    """The network's kernels for inputs of these shapes, as one that takes the like and gives a tensor of its own.

    Raises:
        RuntimeError: They cannot be recorded, or memory is short.
    """
    kind = y.device.type
    # A cast of the weights that autocast keeps would be gone when the graph looks for it.
    uncached = torch.autocast(
        kind,
        dtype=torch.get_autocast_dtype(kind),
        enabled=torch.is_autocast_enabled(kind),
        cache_enabled=False,
    )
    with torch.cuda.device(y.device), uncached:
        held, graph = (y.clone(), times.clone()), torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                network(*held)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            output = network(*held)

    def replay(y: Tensor, times: Tensor) -> Tensor:
        for place, given in zip(held, (y, times), strict=True):
            place.copy_(given)
        graph.replay()
        return output.clone()  # the next replay writes over it

    return replay


def _seconds(run: Forward, y: Tensor, times: Tensor) -> float:
    """Wall time of a call, over a few that follow each other as in a walk."""
    run(y, times)
    wait_for(y.device)
    began = time.perf_counter()
    for _ in range(RUNS):
        run(y, times)
    wait_for(y.device)
    return (time.perf_counter() - began) / RUNS
