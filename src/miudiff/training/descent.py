"""Optimizer steps that are taken only if loss and gradients are finite, without making an accelerator wait for the answer.

To ask a card whether a number is finite, the processor waits for all that the card was given, and gives it nothing meanwhile. On
CUDA the answer therefore stays there: the fused optimizers read it themselves and leave the weights alone, and `look` fetches the
answers of many steps at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from miudiff.errors import NonFiniteError

MOST = 100  # steps between two looks
Network = TypeVar("Network", bound=nn.Module)


def optimizer_over(
    kind: type[torch.optim.Adam], parameters: Iterable[nn.Parameter], **settings: Any
) -> torch.optim.Adam:
    """An Adam or AdamW, fused on CUDA: one kernel for all weights, which can be told there to leave them alone.

    Elsewhere it is torch's default, whose results the fused one repeats only up to rounding.
    """
    weights = list(parameters)
    optimizer = kind(weights, fused=weights[0].is_cuda or None, **settings)
    optimizer.register_load_state_dict_pre_hook(_stay_as_made)
    return optimizer


def _stay_as_made(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state from another device says whether its optimizer was fused, and torch would follow it."""
    groups = [
        {**saved, "fused": own["fused"]}
        for saved, own in zip(
            state["param_groups"], optimizer.param_groups, strict=False
        )  # torch compares them
    ]
    return {**state, "param_groups": groups + list(state["param_groups"][len(groups) :])}


class Descent:
    """Takes the optimizer steps of one learner, none from the first that is not finite on some process.

    Args:
        late: Whether the answers stay on the device until `look`; the optimizers must then be fused. None: on CUDA.
    """

    def __init__(self, accelerator: Accelerator, late: bool | None = None) -> None:
        self.accelerator = accelerator
        self.late = accelerator.device.type == "cuda" if late is None else late
        self._wrong = torch.zeros((), device=accelerator.device)
        self._asked: list[tuple[int, str, Tensor]] = []

    def take(
        self, optimizers: Sequence[Any], loss: Tensor, norm: Tensor, step: int, what: str = "loss"
    ) -> None:
        """Let `optimizers` step by the gradients at hand.

        Args:
            loss, norm: The loss and the norm of its gradients, scalars.
            step: The learner's step, for the message.
            what: The loss's name in it.

        Raises:
            NonFiniteError: As `look`; the weights are as before the step that it names.
        """
        sound = torch.isfinite(loss) & torch.isfinite(norm)
        # A loss is one process's own, so one may be infinite where the gradients, which are everybody's, are not.
        everybodys = self.accelerator.reduce((~sound).float(), "sum")
        self._wrong = torch.maximum(self._wrong, everybodys.clamp(max=1.0))
        numbers = torch.stack([loss.detach().float(), norm.detach().float(), self._wrong])
        self._asked.append((step, what, numbers))
        if not self.late or len(self._asked) == MOST:
            self.look()
        for optimizer in optimizers:
            if self.late:
                getattr(optimizer, "optimizer", optimizer).found_inf = self._wrong
            optimizer.step()

    def look(self) -> None:
        """Fetch the answers since the last look; every process must.

        Raises:
            NonFiniteError: A step was not finite on some process. It was not taken, nor any after it.
        """
        if not self._asked:
            return
        asked, self._asked = self._asked, []
        answers = torch.stack([numbers for *_, numbers in asked]).tolist()
        for (step, what, _), (loss, norm, wrong) in zip(asked, answers, strict=True):
            if wrong:
                raise NonFiniteError(
                    f"{what} {loss:g}, gradient norm {norm:g}", here=not math.isfinite(loss), step=step
                )


def placed(network: Network, accelerator: Accelerator) -> Network:
    """A network on the run's device, with the first process's weights."""
    network.to(accelerator.device)
    for value in network.state_dict().values():
        value.copy_(broadcast(value.contiguous()))
    return network


def average_gradients(accelerator: Accelerator, parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over processes."""
    if accelerator.num_processes == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    means = accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
    for gradient, mean in zip(gradients, means.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view(gradient.shape))
