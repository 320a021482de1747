"""Watching the reverse process: pictures of y_S ... y_0, and the size of the guidance in each step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from miudiff.images import Pixels, to_uint8
from miudiff.methods.sdedit import StepReport


class Trajectory:
    """Give it as `watch`; keeps every step's ratio and loss, and the image at `frames` steps."""

    def __init__(self, frames: Sequence[int] = ()) -> None:
        self.frames = set(frames)
        self.images: list[tuple[int, Pixels]] = []
        self.ratios: dict[int, float] = {}
        self.losses: dict[int, float] = {}

    def __call__(self, report: StepReport) -> None:
        self.ratios[report.time] = 0.0 if report.ratio is None else float(report.ratio.mean())
        if report.loss is not None:
            self.losses[report.time] = report.loss
        if report.time in self.frames:
            self.images.append((report.time, to_uint8(report.y[:1])[0]))

    def strip(self) -> Pixels:
        """The kept images side by side, from noise to IHC, uint8 [H, W, 3]."""
        return np.hstack([image for _, image in sorted(self.images, key=lambda pair: -pair[0])])

    def summary(self) -> str:
        """The shift over noise ratio at the beginning, in the middle and at the end, in one line."""
        if not self.ratios:
            return "no guidance"
        steps = sorted(self.ratios, reverse=True)
        picks = [steps[0], steps[len(steps) // 2], steps[-2] if len(steps) > 1 else steps[-1]]
        moving = [self.ratios[i] for i in steps[:-1]] or [0.0]  # the last step has no noise to compare with
        mean = sum(moving) / len(moving)
        return (
            "shift / noise "
            + ", ".join(f"{self.ratios[i]:.2g} at t = {i}" for i in picks)
            + f"; mean {mean:.2g}"
        )
