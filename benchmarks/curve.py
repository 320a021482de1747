"""A run's loss over its steps as a picture: `python benchmarks/curve.py runs/NAME/metrics.jsonl curve.svg`, the means of 100 stretches."""

import argparse
import json
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, LEFT, BELOW = 640, 300, 70, 40

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("metrics", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--key", default="mse")
arguments = parser.parse_args()

rows = [json.loads(line) for line in arguments.metrics.read_text().splitlines()]
known = {row["step"]: row[arguments.key] for row in rows if arguments.key in row}  # the last of each step
steps, values = np.array(sorted(known)), np.array([known[step] for step in sorted(known)])
parts = np.array_split(np.arange(len(steps)), min(100, len(steps)))
x = np.array([steps[part].mean() for part in parts])
y = np.log10([values[part].mean() for part in parts])
low, high = np.floor(y.min() * 5) / 5, np.ceil(y.max() * 5) / 5


def place(step: float, level: float) -> tuple[float, float]:
    return (
        LEFT + (WIDTH - LEFT - 20) * step / steps[-1],
        20 + (HEIGHT - BELOW - 20) * (high - level) / (high - low),
    )


lines = ['<rect width="100%" height="100%" fill="white"/>']
for level in np.arange(low, high + 0.01, 0.2):
    (left, at), (right, _) = place(0, level), place(steps[-1], level)
    lines.append(f'<line x1="{left:.0f}" x2="{right:.0f}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
    lines.append(f'<text x="{left - 8:.0f}" y="{at + 4:.1f}" text-anchor="end">{10**level:.3f}</text>')
for step in np.linspace(0, steps[-1], 5):
    lines.append(
        f'<text x="{place(step, low)[0]:.0f}" y="{HEIGHT - 20}" text-anchor="middle">{step:,.0f}</text>'
    )
points = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in zip(x, y, strict=True))
lines.append(f'<polyline points="{points}" fill="none" stroke="#1f5c99" stroke-width="2"/>')
lines.append(f'<text x="{LEFT}" y="14">{arguments.key} of the training batches, by step</text>')
arguments.out.write_text(
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
    + "".join(lines)
    + "</svg>\n"
)
