"""Several processes are one run: what stops one stops all in one line, and the same command goes on to the same weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from miudiff.checkpoints import find_states
from test_training import weights, write_run

SOURCE = Path(__file__).parent.parent / "src"

# What goes wrong on the second of two processes at step 2; the first must not wait for it.
FAULTS = {
    # A NaN reaches every process with the gradients; an infinite constant has gradients like any other.
    "nan": "learner.ScoreLearner.step = lambda self, batch, number: counted(self, spoilt(batch, number), number)",
    "infinity": "learner.variational_bound = lambda *a: bound(*a) + (float('inf') if bad() else 0)",
    "file": "tiles.Tiles.__getitem__ = unreadable",
}
SCRIPT = """
import os
from miudiff.cli import main
from miudiff.data import tiles
from miudiff.diffusion import learner
from miudiff.errors import DataError
from miudiff.training import loop

second, step = os.environ["RANK"] == "1", -1
take, cut, bound = learner.ScoreLearner.step, tiles.Tiles.__getitem__, learner.variational_bound

def counted(self, batch, number):
    global step
    step = number
    return take(self, batch, number)

def bad():
    return second and step == 2

def spoilt(batch, number):
    return batch | {"noise": batch["noise"] * (float("nan") if second and number == 2 else 1)}

def unreadable(self, index):
    if second and index >= 8:
        raise DataError("field1.png: damaged or cut off; copy it again")
    return cut(self, index)

learner.ScoreLearner.step = counted
FAULT
if __name__ == "__main__":
    main()
"""


def launch(*words: str, **pipes) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen([*torchrun, *words], env=environment, text=True, **pipes)


def train(path: Path, folder: Path, *words: str, **pipes) -> subprocess.Popen:
    return launch("-m", "miudiff", "train", str(path), f"out={folder}", *words, **pipes)


def logged(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def wait_for_step(folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not logged(folder) or logged(folder)[-1] < step:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers_of(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.parametrize("fault", [pytest.param("nan", marks=pytest.mark.slow), "infinity", "file"])
def test_what_stops_one_process_stops_all_of_them_in_the_same_line(tmp_path, fault):
    path = write_run(tmp_path, steps=6, save_every=50)
    (tmp_path / "worker.py").write_text(SCRIPT.replace("FAULT", FAULTS[fault]))
    process = launch(str(tmp_path / "worker.py"), "train", str(path), stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=100)
    told = [line for line in errors.splitlines() if line.startswith("miudiff: ")]
    assert len(set(told)) == 1, errors
    assert process.returncode == 1  # torchrun's own; it tells each process's, 2
    assert "[rank" not in errors  # where torch puts a worker's traceback
    if fault == "file":
        assert told[0] == "miudiff: field1.png: damaged or cut off; copy it again"
        assert [step for step, _ in find_states(tmp_path / "run")] == [2]  # what was done is kept
    else:
        assert told[0].startswith(
            f"miudiff: step 2: loss {'nan' if fault == 'nan' else 'inf'}, gradient norm "
        )
        assert told[0].count("field") == 2  # its own share of the batch's four
        assert not find_states(tmp_path / "run")


TOLD = {
    "interrupt": "miudiff: interrupted; the same command goes on from here",
    "kill": "miudiff: another process of this run ended, so this one cannot go on; the other's lines say why, and the"
    " same command goes on from the last state",
}


@pytest.mark.slow  # three starts of two processes
@pytest.mark.parametrize("how", TOLD)
def test_a_run_of_two_processes_goes_on_to_the_same_weights(tmp_path, how):
    steps = 60
    path = write_run(tmp_path, steps=steps, save_every=10_000 if how == "interrupt" else 5)
    folder, pipes = tmp_path / "stopped", {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = train(path, folder, **pipes)
    wait_for_step(folder, 7)
    if how == "interrupt":
        process.send_signal(signal.SIGINT)
    else:
        os.kill(workers_of(process)[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=100)
    assert process.returncode != 0
    reached = find_states(folder)[-1][0]
    assert 5 <= reached < steps
    told = [line for line in errors.splitlines() if line.startswith("miudiff: ")]
    assert set(told) == {TOLD[how]}, errors
    assert "[rank" not in errors  # where torch puts a worker's traceback
    for run in (train(path, folder, **pipes), train(path, tmp_path / "whole", **pipes)):
        _, errors = run.communicate(timeout=200)
        assert run.returncode == 0, errors
    whole, stopped = weights(tmp_path / "whole"), weights(folder)
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert logged(folder) == list(range(1, steps + 1))
