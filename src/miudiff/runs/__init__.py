"""One YAML file is one run: which learner, on what, how long, where. The same command goes on in the run's folder.

    task: score                     # or mi
    out: runs/ki67-score
    markers: [Ki67]
    data: {root: data, mpp: 1.0, size: 64, sources: [{files: "ihc/*.jpg", marker: Ki67, mpp: 0.25}]}
    score: {network: {...}, optimizer: {...}}

Systems that learn from both stains (`classifier`, `cut`, `asp`) take H&E from `he`, or, with `paired`, as the partners of the IHC images. Under torchrun the same command trains on every process it starts, on one machine or several.
"""

from miudiff.runs.config import RunConfig, Sections, Task, check
from miudiff.runs.execute import accelerator_on, learner_of, leaving, run, trained_as

__all__ = [
    "RunConfig",
    "Sections",
    "Task",
    "accelerator_on",
    "check",
    "learner_of",
    "leaving",
    "run",
    "trained_as",
]
