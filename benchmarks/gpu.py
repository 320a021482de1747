"""Everything that needs an NVIDIA GPU, in one run of at most eight minutes: tests, `miudiff bench`, a slide, and training.

    python benchmarks/gpu.py --data FOLDER_WITH_ihc --slide slide.svs --out results [--minutes 8] [--resume results]

The tests marked `gpu`, the bench and the slide each have a share of the time; what is left trains a network on the images of the recipe
that ships, at 0.5 µm per pixel. It comes back in float16, in parts of 15 MB (`unet.00`, `unet.01`, ...), with a page of samples; `--resume` begins with the
parts of an earlier run. The table is printed last, and lies in `table.md`. `--device cpu` tries the script on a machine without a GPU.
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
MOST = 60 * 10**6  # bytes of all parts
# 26 million parameters: half a network of MOST bytes is left for what a recipe may add.
NETWORK = {"size": 128, "unshuffle": 2, "channels": [96, 192, 256, 320], "attention": [16, 8], "groups": 32}
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
    if len(data) > MOST:
        raise SystemExit(
            f"the weights have {len(data)} bytes, expected at most {MOST}; take a smaller --network"
        )
    parts = []
    for number, begin in enumerate(range(0, len(data), PART)):
        parts.append(folder / f"unet.{number:02d}")
        parts[-1].write_bytes(data[begin : begin + PART])
    return parts


def joined(folder: Path) -> bytes:
    """What `split` wrote."""
    parts = sorted(folder.glob("unet.[0-9][0-9]"))
    if not parts:
        raise SystemExit(f"{folder}: found no parts unet.00, ..., expected those of an earlier run")
    return b"".join(part.read_bytes() for part in parts)


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


def slide(source: Path, out: Path, device: str, seconds: float) -> None:
    target = out / "work" / "slide.ome.tif"
    words = ["-m", "miudiff", "translate", str(source), str(target), "--device", device, "--overwrite"]
    status, _, took = command(words, seconds)
    if status:
        told("one slide", f"exit status {status}")
        return
    record = target.with_name("slide.json")
    share = json.loads(record.read_text())["tissue_share"] if record.exists() else None
    told(
        "one slide", f"out of time after {took:.0f} s" if status is None else f"{took:.1f} s, tissue {share}"
    )


def training(arguments: argparse.Namespace, began: float) -> None:
    """A short training tells how many steps fit the time; then that many, begun with the earlier weights if there are any."""
    out, network = arguments.out, json.loads(arguments.network)
    words = [
        "-m",
        "miudiff",
        "train",
        arguments.recipe,
        f"data.root={arguments.data}",
        "data.size=128",
        "data.mpp=0.5",
    ]
    words += [f"batch_size={arguments.batch}", f"device={arguments.device}", "score.ema=0.999"]
    classes = {"markers": 2}  # of the recipe's stains
    words += [f"score.network={json.dumps(network | classes)}"]
    if arguments.resume:
        initial = out / "work" / "initial"
        initial.mkdir(parents=True, exist_ok=True)
        (initial / "config.json").write_text((arguments.resume / "unet.json").read_text())
        (initial / WEIGHTS).write_bytes(joined(arguments.resume))
        words += [f"score.init={initial}"]
    probe = out / "work" / "probe"
    status, _, took = command([*words, f"out={probe}", "steps=60", "log_every=30"], 150)
    if status != 0:
        told("training", f"exit status {status} after {took:.0f} s")
        return
    rate = json.loads((probe / "metrics.jsonl").read_text().splitlines()[-1])["images_per_second"]
    told("training, images a second", f"{rate:.1f} (batch {arguments.batch} of 128 x 128)")
    left = arguments.minutes * 60 - (time.monotonic() - began) - 40
    steps = int(left * rate / arguments.batch * 0.9)
    if steps < 20:
        told("training", f"no time left ({left:.0f} s)")
        return
    run = out / "work" / "run"
    schedule = [f"steps={steps}", f"score.optimizer.decay_from={steps // 2}", f"save_every={steps}"]
    status, _, took = command(
        [*words, f"out={run}", *schedule, f"log_every={max(1, steps // 20)}"], left + 25
    )
    if status != 0:
        told("training", f"exit status {status} after {took:.0f} s of {steps} steps")
        return
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    told("training", f"{steps} steps, {took:.0f} s, mse {last['mse']:.4f}")
    bring_back(run, out, arguments.device)


def bring_back(run: Path, out: Path, device: str) -> None:
    """The averaged weights in float16, in parts, and a page of samples of them."""
    model = out / "work" / "model"
    words = ["-m", "miudiff", "model", "assemble", str(run), str(model), "--name", "gpu", "--half"]
    status, _, _ = command(words, 60)
    if status != 0:
        told("weights", f"model assemble: exit status {status}")
        return
    parts = split((model / "unet" / WEIGHTS).read_bytes(), out)
    (out / "unet.json").write_text((model / "unet" / "config.json").read_text())
    told("weights", f"{sum(p.stat().st_size for p in parts) / 1e6:.1f} MB in {len(parts)} parts")
    page = [str(out / "samples.png"), "--count", "8", "--size", "256", "--steps", "50", "--device", device]
    command(["-m", "miudiff", "model", "samples", str(model), *page], 30)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="the root of the recipe's images; none: no training")
    parser.add_argument("--slide", type=Path, help="a slide to stain; none: that part is left out")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--recipe", default="ihc-small-score")
    parser.add_argument("--network", default=json.dumps(NETWORK), help="score.network of the recipe, as JSON")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--resume", type=Path, help="the results of an earlier run")
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
        slide(arguments.slide, arguments.out, arguments.device, 0.15 * whole)
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
