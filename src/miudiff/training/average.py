"""The exponential moving average of a module's weights: what is used at test time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """average <- d average + (1 - d) weights after each step, with d = min(decay, (1 + n) / (10 + n)) (Song et al. 2021's warm-up).

    diffusers' `EMAModel` is not used because its state holds Python objects beside tensors and its warm-up is another.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.shadow = {name: p.detach().clone().float() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        names, values = zip(*module.named_parameters(), strict=True)
        torch._foreach_lerp_([self.shadow[n] for n in names], [v.detach() for v in values], 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "shadow": self.shadow}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self.updates = int(state["updates"])
        if set(state["shadow"]) != set(self.shadow):
            raise ValueError("the average is of another module")
        for name, value in self.shadow.items():
            value.copy_(state["shadow"][name])

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        return dict(self.shadow)
