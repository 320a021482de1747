"""Quality against training time as a picture: a panel for each measure, a line for each marker, the teacher's level dashed.

    python benchmarks/models.py --set Ki67=TWINS/Ki67 ... STATE > state.md        # for each state of a run, and for the teacher
    python benchmarks/quality.py quality.svg --level teacher.md --at 55=state1.md --at 80=state2.md

Each table is that of one model; `--at` says after how many minutes of training it stood.
"""

from __future__ import annotations

import argparse
from pathlib import Path

SHOWN = ("DAB Dice", "DAB r", "Hist", "nuclei Dice", "grad r", "sharp")
COLOURS = ("#1f5c99", "#b5541c", "#3a7d44", "#7a3b8f")
WIDTH, HEIGHT, LEFT, TOP, BELOW = 300, 200, 48, 28, 34

Table = dict[str, dict[str, float]]  # by marker and column


def read_table(path: Path) -> Table:
    """The means of the last row of each set."""
    found: Table = {}
    marker, columns = "", list[str]()
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if line.endswith("pairs"):
            marker = line.partition(",")[0]
        elif cells[0] == "model":
            columns = cells
        elif len(cells) == len(columns) > 1 and "---" not in cells[0]:
            means = (cell.partition(" ")[0] for cell in cells[1:])
            found[marker] = dict(zip(columns[1:], map(float, means), strict=True))
    return found


def panel(measure: str, states: dict[float, Table], level: Table) -> str:
    """SVG of one measure over minutes."""
    values = [table[marker][measure] for table in (*states.values(), level) for marker in level]
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.1
    low, high = low - margin, high + margin
    last = max(states)

    def x(minutes: float) -> float:
        return LEFT + (WIDTH - LEFT - 12) * minutes / last

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BELOW) * (high - value) / (high - low)

    parts = [f'<text x="{LEFT}" y="18" font-weight="bold">{measure}</text>']
    for share in (0, 0.5, 1):
        value = low + share * (high - low)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.2f}</text>')
        at = x(share * last)
        parts.append(
            f'<text x="{at:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{share * last:.0f} min</text>'
        )
    for marker, colour in zip(level, COLOURS, strict=False):
        points = " ".join(
            f"{x(at):.1f},{y(table[marker][measure]):.1f}" for at, table in sorted(states.items())
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        at = y(level[marker][measure])
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{at:.1f}" y2="{at:.1f}" stroke="{colour}" stroke-dasharray="4 3"/>'
        )
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--level", type=Path, required=True, help="the teacher's table")
    parser.add_argument("--at", action="append", required=True, help="MINUTES=TABLE")
    arguments = parser.parse_args()
    level = read_table(arguments.level)
    words = (word.partition("=") for word in arguments.at)
    states = {float(minutes): read_table(Path(path)) for minutes, _, path in words}
    parts = []
    for number, measure in enumerate(SHOWN):
        left, top = WIDTH * (number % 3), HEIGHT * (number // 3)
        parts.append(f'<g transform="translate({left} {top})">{panel(measure, states, level)}</g>')
    below = 2 * HEIGHT + 16
    for number, (marker, colour) in enumerate(zip(level, COLOURS, strict=False)):
        parts.append(f'<text x="{LEFT + 120 * number}" y="{below}" fill="{colour}">{marker}</text>')
    arguments.out.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {3 * WIDTH} {below + 12}" font-family="sans-serif" font-size="11">'
        + '<rect width="100%" height="100%" fill="white"/>'
        + "".join(parts)
        + "</svg>\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
