"""Everything that needs an NVIDIA GPU, in one run of at most eight minutes: tests, `miudiff bench`, a slide, and training.

    python benchmarks/gpu.py --data FOLDER --slide slide.svs --out results [--minutes 8]

The tests marked `gpu`, the bench and the slide each have a share of the time; what is left distils the model that ships by the recipe
of its student. It comes back in float16, in parts of 15 MB (`student.00`, `student.01`, ...). The table is printed last, and lies in
`table.md`. `--device cpu` tries the script on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch

from miudiff.checkpoints import WEIGHTS

PART = 15 * 10**6  # bytes of a part
ROWS: list[tuple[str, str]] = []


def told(name: str, value: str) -> None:
    """Keep a row of the table, and say it at once."""
    ROWS.append((name, value))
    print(f"== {name}: {value}", flush=True)


def command(words: list[str], seconds: float) -> tuple[int | None, str, float]:
    """Run Python with `words`; its exit status (None: out of time), its output, and the seconds it took."""
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-u", *words], timeout=max(seconds, 1), capture_output=True, text=True
        )
        output, status = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as late:
        output, status = (late.stdout or b"").decode(errors="replace"), None
    print(output[-4000:], flush=True)
    return status, output, time.monotonic() - began


def split(data: bytes, folder: Path) -> list[Path]:
    """Write `data` as parts of at most PART bytes."""
    parts = []
    for number, begin in enumerate(range(0, len(data), PART)):
        parts.append(folder / f"student.{number:02d}")
        parts[-1].write_bytes(data[begin : begin + PART])
    return parts


def tests(seconds: float) -> None:
    status, output, took = command(
        ["-m", "pytest", "-q", "-m", "gpu", "tests", "-p", "no:cacheprovider"], seconds
    )
    lines = [line for line in output.splitlines() if re.search(r"\d+ (passed|failed|skipped|error)", line)]
    last = lines[-1].strip("= ") if lines else f"exit status {status}"
    told("tests marked gpu", "out of time" if status is None else f"{last} ({took:.0f} s)")


def bench(out: Path, device: str, seconds: float) -> None:
    words = ["-m", "miudiff", "bench", "--quick", "--device", device, "--json", str(out / "bench.json")]
    status, output, took = command(words, seconds)
    told("bench --quick", "out of time" if status is None else f"exit status {status}, {took:.0f} s")
    for line in output.splitlines():
        if line.startswith("| ") and not line.startswith(("| measure", "| ---")):
            name, figure, against = line.strip("| ").split(" | ")
            ROWS.append((f"  {name}", f"{figure} (against {against})"))


def slide(source: Path, out: Path, device: str, preset: str, seconds: float) -> None:
    target = out / "work" / preset / "slide.ome.tif"
    words = ["-m", "miudiff", "translate", str(source), str(target), "--device", device, "--preset", preset]
    status, _, took = command([*words, "--overwrite"], seconds)
    record = target.with_name("slide.json")
    if status or not record.exists():
        told(f"one slide, {preset}", "out of time" if status is None else f"exit status {status}")
        return
    made = json.loads(record.read_text())
    tissue = made["tissue_share"] * made["width"] * made["height"] * (made["mpp"] / 1000) ** 2
    told(
        f"one slide, {preset}",
        f"{took:.1f} s in all, {made['seconds']} s of staining, {tissue:.1f} mm2 of tissue",
    )


def training(arguments: argparse.Namespace, began: float) -> None:
    """A short run tells how many steps of both stages fit the time; then that many, with twice the time for matching."""
    out, batch = arguments.out, arguments.batch
    words = ["-m", "miudiff", "train", arguments.recipe, f"data.root={arguments.data}"]
    words += [f"batch_size={batch}", f"device={arguments.device}"]
    probe = out / "work" / "probe"
    short = ["steps=60", "log_every=20", "distill.regression.steps=20", f"distill.regression.tiles={batch}"]
    status, _, took = command([*words, f"out={probe}", *short], 150)
    if status != 0:
        told("training", f"exit status {status} after {took:.0f} s")
        return
    lines = [json.loads(line) for line in (probe / "metrics.jsonl").read_text().splitlines()]
    rates = [lines[0]["images_per_second"], lines[-1]["images_per_second"]]
    told("training, images a second", f"{rates[0]:.1f} regression, {rates[1]:.1f} matching (batch {batch})")
    left = arguments.minutes * 60 - (time.monotonic() - began) - 60
    first, second = (int(share * left * rate / batch) for share, rate in zip((0.25, 0.5), rates, strict=True))
    if min(first, second) < 20:
        told("training", f"no time left ({left:.0f} s)")
        return
    run, steps = out / "work" / "run", first + second
    schedule = [f"steps={steps}", f"distill.regression.steps={first}", f"save_every={steps}"]
    schedule += [f"distill.regression.optimizer.decay_from={2 * first // 3}"]
    schedule += [f"distill.optimizer.decay_from={2 * second // 3}", f"log_every={max(1, steps // 20)}"]
    status, _, took = command([*words, f"out={run}", *schedule], left + 30)
    if status != 0:
        told("training", f"exit status {status} after {took:.0f} s of {steps} steps")
        return
    told("training", f"{first} + {second} steps, {took:.0f} s")
    bring_back(run, out)


def bring_back(run: Path, out: Path) -> None:
    """The averaged student in float16, in parts, with its card."""
    model = out / "work" / "model"
    words = ["-m", "miudiff", "model", "assemble", str(run), str(model), "--name", "gpu", "--half"]
    status, _, _ = command(words, 60)
    if status != 0:
        told("weights", f"model assemble: exit status {status}")
        return
    parts = split((model / "student" / WEIGHTS).read_bytes(), out)
    for name in ("student/config.json", "model_index.json"):
        (out / Path(name).name).write_text((model / name).read_text())
    told("weights", f"{sum(p.stat().st_size for p in parts) / 1e6:.1f} MB in {len(parts)} parts")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the root of the recipe's images; none: no training")
    parser.add_argument("--slide", type=Path, help="a slide to stain; none: that part is left out")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--recipe", default="ihc-small-turbo")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("no NVIDIA GPU here that torch can use; --device cpu tries the script without one")
    began = time.monotonic()
    (arguments.out / "work").mkdir(parents=True, exist_ok=True)
    whole = arguments.minutes * 60
    tests(0.2 * whole)
    bench(arguments.out, arguments.device, 0.35 * whole)
    if arguments.slide:
        for preset in ("turbo", "fast"):
            slide(arguments.slide, arguments.out, arguments.device, preset, 0.1 * whole)
    if arguments.data:
        training(arguments, began)
    told("in all", f"{time.monotonic() - began:.0f} s")
    table = io.StringIO()
    print("| what | result |\n| --- | --- |", file=table)
    for name, value in ROWS:
        print(f"| {name} | {value} |", file=table)
    (arguments.out / "table.md").write_text(table.getvalue())
    print(table.getvalue(), flush=True)


if __name__ == "__main__":
    main()
