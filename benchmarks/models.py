"""Models and presets beside each other on the same pairs: a student and its teacher, say, or the student at each stage of its training.

    python benchmarks/models.py --set Ki67=TWINS/Ki67 --set ER/PR=TWINS/ER-PR ihc-small:fast ihc-small:turbo runs/turbo/weights

A set is MARKER=ROOT, ROOT with H&E and IHC of one name (HE and IHC, or testA and testB as benchmarks/twin_sets.py makes them). A row is
a model, and after a colon a preset. Columns as in benchmarks/steps.py: the mean over the pairs and its standard deviation over seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from steps import COLUMNS, pairs_of, row  # beside this file

from miudiff.stainer import VirtualStainer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", help="MODEL or MODEL:PRESET")
    parser.add_argument("--set", action="append", required=True, dest="sets", help="MARKER=ROOT")
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--side", type=int, default=1024, help="of the square taken of each pair, in pixels")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    for word in arguments.sets:
        marker, _, root = word.partition("=")
        pairs = pairs_of(Path(root), arguments.side)
        print(f"\n{marker}, {len(pairs)} pairs\n\n| model | " + " | ".join(COLUMNS) + " |")
        print("| --- " * (1 + len(COLUMNS)) + "|")
        for name in arguments.models:
            model, _, preset = name.partition(":")
            stainer = VirtualStainer.load(model, preset=preset or None, marker=marker)
            means, spreads = row(stainer, pairs, arguments.mpp, arguments.seeds)
            cells = (f"{mean:.3g} ± {spread:.1g}" for mean, spread in zip(means, spreads, strict=True))
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
