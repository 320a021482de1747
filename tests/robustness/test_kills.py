"""Commands that are killed, crowded, cut off from their files and starved of disk: each ends, and in the end the result is the same.

Signals come at random moments of each job; whatever they leave, the same command goes on to the bytes of a run that nobody disturbed.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from command import SOURCE, Tally
from miudiff.images import write_image
from slide_run import paint
from small_set import bci, budget_file
from test_training import write_run
from test_whole_slide import make

PATIENCE = 240.0  # seconds after which a command counts as hung
QUICK = ("--set", "reverse.start=6", "--set", "reverse.steps=2", "--device", "cpu", "--precision", "fp32")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Job:
    """A command, and the files that it must have made in the end.

    Attributes:
        words: Of the command; `{out}` stands for its output folder.
        results: A pattern of files in the output folder whose bytes count.
    """

    words: tuple[str, ...]
    results: str

    def start(self, out: Path, *more: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
        words = [word.replace("{out}", str(out)) for word in (*self.words, *more)]
        return subprocess.Popen(
            [sys.executable, "-m", "miudiff", *words],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, out: Path, *more: str) -> tuple[int | None, str, str]:
        return end(self.start(out, *more))

    def made(self, out: Path) -> dict[str, bytes]:
        return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob(self.results))}


def end(process: subprocess.Popen[str]) -> tuple[int | None, str, str]:
    """Exit code, stdout and stderr; None as the code of a command that hung."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        return None, out, err
    return process.returncode, out, err


def wrong(code: int | None, err: str, expected: tuple[int, ...]) -> str:
    if code is None:
        return "did not end"
    if "Traceback" in err or code not in expected:
        return f"code {code}: {err[-500:]}"
    if code == 2 and not err.startswith("miudiff: "):
        return f"code 2 without a line: {err[-300:]!r}"
    return ""


@pytest.fixture
def jobs(tmp_path: Path, tiny_folder: Path) -> Callable[[str], Job]:
    """Makes the input of a job and gives the job."""
    model = ("--model", str(tiny_folder))

    def job(name: str) -> Job:
        if name == "slide":
            source = make(tmp_path / "in" / "case.tif", 700, 900, levels=2)
            words = ("translate", str(source), "{out}/case.ome.tif", *model, *QUICK)
            return Job((*words, "--glass", "stain", "--no-report"), "*.ome.tif")
        if name == "folder":
            for i in range(8):
                write_image(tmp_path / "he" / f"{i}.png", paint(160, 160 + i))
            return Job(("translate", str(tmp_path / "he"), "{out}", *model, *QUICK), "*.png")
        if name == "reproduce":
            root, budget = bci(tmp_path / "bci"), budget_file(tmp_path / "tiny.yaml", seeds=1)
            words = ("reproduce", "table1", "--data", f"set={root}", "--mpp", "set=0.5", "--budget", budget)
            rows = ("CUT", "ASP", "SDEdit", "MIU-Diff, fast")
            only = [word for row in rows for word in ("--only", row)]
            place = ("--device", "cpu", "--precision", "fp32", "--out", "{out}")
            return Job((*words, *only, *place), "set/results/**/*.png")
        path = write_run(tmp_path / name, name, steps=24, save_every=3)
        return Job(("train", str(path), "out={out}"), "weights/**/*.safetensors")

    return job


def disturb(job: Job, out: Path, seconds: float, rng: random.Random, kills: int) -> str:
    """Start the job again and again and stop it at random moments; what went wrong in the end, or "" ."""
    for _ in range(kills):
        process, chosen = job.start(out), rng.choice(SIGNALS)
        time.sleep(rng.uniform(0, 1.1 * seconds))
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(chosen)
        code, _, err = end(process)
        # a signal that comes while Python itself starts or ends is Python's to answer
        if found := wrong(code, err.replace("KeyboardInterrupt", ""), (0, 130, -chosen)):
            return f"{chosen.name}: {found}"
    code, _, err = job.run(out)
    return wrong(code, err, (0,))


@pytest.mark.robustness
@pytest.mark.parametrize("name", ["slide", "folder", "score", "cut", "asp", "reproduce"])
def test_signals_at_random_moments_change_nothing_in_the_end(jobs, tmp_path, tally: Tally, name):
    job, rng = jobs(name), random.Random(f"{tally.seed} {name}")
    began = time.monotonic()
    code, _, err = job.run(tmp_path / "whole")
    assert code == 0, err
    seconds, expected = time.monotonic() - began, job.made(tmp_path / "whole")
    assert expected
    for trial in range(5):
        out = tmp_path / f"trial{trial}"
        found = disturb(job, out, seconds, rng, kills=rng.randint(1, 4))
        tally.add(f"trial {trial}", found or ("" if job.made(out) == expected else "another result"))
    tally.check()


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.robustness)])
def test_processes_on_one_folder_share_its_images(jobs, tmp_path, tally: Tally, count):
    job, out = jobs("folder"), tmp_path / "out"
    ends = [end(process) for process in [job.start(out) for _ in range(count)]]
    for code, _, err in ends:
        tally.add("a process", wrong(code, err, (0,)))
    tally.check()
    written = [int(told.splitlines()[-1].split()[0]) for _, told, _ in ends]
    assert sum(written) == 8, f"each image is made once, but {written}"
    assert len(job.made(out)) == 8
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.robustness
def test_processes_of_other_seeds_never_mix_in_one_folder(jobs, tmp_path, tally: Tally):
    job = jobs("folder")
    expected = {}
    for seed in "01":
        assert job.run(tmp_path / f"seed{seed}", "--seed", seed)[0] == 0
        expected[seed] = job.made(tmp_path / f"seed{seed}")
    rng = random.Random(tally.seed)
    for trial in range(6):
        out = tmp_path / f"trial{trial}"
        processes = {}
        for seed in rng.sample("01", 2):
            processes[seed] = job.start(out, "--seed", seed)
            time.sleep(rng.uniform(0, 4))
        codes = {seed: end(process) for seed, process in processes.items()}
        found = "".join(wrong(code, err, (0, 2)) for code, _, err in codes.values())
        if not found and sorted(code for code, _, _ in codes.values()) != [0, 2]:
            found = f"codes {[code for code, _, _ in codes.values()]}"
        if not found and job.made(out) not in expected.values():
            found = "seeds are mixed"
        tally.add(f"trial {trial}", found)
    tally.check()


@pytest.mark.robustness
def test_two_processes_on_one_slide_end_in_one_result(jobs, tmp_path, tally: Tally):
    job, rng = jobs("slide"), random.Random(tally.seed)
    assert job.run(tmp_path / "whole")[0] == 0
    for trial in range(4):
        out = tmp_path / f"trial{trial}"
        first = job.start(out)
        time.sleep(rng.uniform(0, 5))
        second = job.start(out, *rng.choice([(), ("--overwrite",)]))
        found = "".join(wrong(code, err, (0, 2)) for code, _, err in (end(first), end(second)))
        same = job.made(out) == job.made(tmp_path / "whole")
        tally.add(f"trial {trial}", found or ("" if same else "another result"))
    tally.check()


@pytest.mark.robustness
@pytest.mark.parametrize("how", ["folder removed", "rows cut", "rows zeroed", "rows removed"])
def test_files_that_vanish_or_change_in_mid_job_end_it_and_never_its_result(
    jobs, tmp_path, tally: Tally, how
):
    job, rng = jobs("slide"), random.Random(f"{tally.seed} {how}")
    assert job.run(tmp_path / "whole")[0] == 0
    for trial in range(4):
        out = tmp_path / f"trial{trial}"
        process = job.start(out)
        wait_for(process, lambda out=out: list(out.glob("*.work/rows/*.raw")))
        time.sleep(rng.uniform(0, 0.6))
        spoil(out, how)
        code, _, err = end(process)
        found = wrong(code, err, (0, 2))
        code, _, err = job.run(out)
        found = found or wrong(code, err, (0,))
        same = job.made(out) == job.made(tmp_path / "whole")
        tally.add(f"{how}, trial {trial}", found or ("" if same else "another result"))
    tally.check()


def wait_for(process: subprocess.Popen[str], there: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not there() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


def spoil(out: Path, how: str) -> None:
    if how == "folder removed":
        for _ in range(100):
            shutil.rmtree(out, ignore_errors=True)
        return
    for row in out.glob("*.work/rows/*.raw"):
        with contextlib.suppress(OSError):
            if how == "rows removed":
                row.unlink()
            elif how == "rows cut":
                os.truncate(row, row.stat().st_size // 3)
            else:
                row.write_bytes(bytes(row.stat().st_size))


@pytest.mark.robustness
def test_a_source_that_is_replaced_between_two_runs_is_refused(jobs, tmp_path, tally: Tally):
    job, rng = jobs("slide"), random.Random(tally.seed)
    source = Path(job.words[1])
    first = source.read_bytes()
    for trial in range(4):
        out = tmp_path / f"trial{trial}"
        source.write_bytes(first)
        process = job.start(out)
        wait_for(process, lambda out=out: list(out.glob("*.work/rows/*.raw")))
        process.kill()
        end(process)
        if job.made(out):
            continue  # it was done before the kill
        other = bytearray(first)
        other[rng.randrange(len(first) // 2, len(first))] ^= 1 << rng.randrange(8)
        source.write_bytes(other)
        code, _, err = job.run(out)
        found = wrong(code, err, (2,)) or ("" if "another source" in err or "damaged" in err else err)
        tally.add(f"trial {trial}", found)
    tally.check()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts a disk of so many KiB."""
    mounted: list[Path] = []

    def mount(kib: int) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no leave to mount a tmpfs")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True)


@pytest.mark.robustness
@pytest.mark.parametrize("name", ["slide", "folder", "score", "cut"])
def test_a_full_disk_is_one_line_and_more_room_ends_in_the_same_result(
    jobs, tmp_path, tally: Tally, small_disk, name
):
    job, rng = jobs(name), random.Random(f"{tally.seed} {name}")
    assert job.run(tmp_path / "whole")[0] == 0
    expected = job.made(tmp_path / "whole")
    for trial in range(3):
        disk = small_disk(rng.choice([40, 100, 200, 300, 500, 900]))
        code, _, err = job.run(disk / "out")
        found = wrong(code, err, (0, 2))
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        code, _, err = job.run(disk / "out")
        found = found or wrong(code, err, (0,))
        tally.add(
            f"{name}, trial {trial}",
            found or ("" if job.made(disk / "out") == expected else "another result"),
        )
    tally.check()
