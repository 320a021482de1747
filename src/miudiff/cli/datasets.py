"""Commands on datasets. Thin: the work is elsewhere, and is imported when a command runs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from miudiff.cli.app import complain, data, say


@data.command
def check(
    root: Path,
    *,
    layout: Literal["auto", "bci", "mist", "cut", "plain"] = "auto",
    slide_pattern: str | None = None,
    json: Path | None = None,
) -> int:
    """Say what is in a dataset and what is wrong with it, file by file.

    Args:
        root: The dataset's folder.
        layout: As published (bci, mist), CUT's trainA and trainB, plain folders, or find out.
        slide_pattern: A regular expression with a group (?P<slide>...) that finds the slide in a file name.
        json: Write the report as JSON, too.
    """
    from miudiff.data.check import check_dataset
    from miudiff.images import write_text
    from miudiff.progress import Progress

    report = check_dataset(root, layout, slide_pattern, progress=Progress("files", say))
    if report.layout is None:
        complain(f"{root}: {report.findings[0].message}")
    else:
        for line in report.lines():
            say(line)
    if json is not None:
        write_text(json, report.to_json())
    return report.exit_code


@data.command
def twin(
    source: Path,
    out: Path,
    *,
    antigen: Literal["nuclear", "cytoplasmic"] = "nuclear",
    mpp: float | None = None,
) -> int:
    """Make H&E twins of IHC images: exactly aligned pairs, in OUT/HE and OUT/IHC.

    Args:
        source: An IHC image, or a folder of them.
        out: Folder for the pairs.
        antigen: Where DAB lies: nuclear (Ki-67) or cytoplasmic and membranous (HER2).
        mpp: Micrometres per pixel, by which nuclei are found; without it what each file states, else 0.5.
    """
    from miudiff.data.twin import make_twins

    written, failed = make_twins(source, out, antigen, mpp)
    for message in failed:
        complain(message)
    say(f"{len(written)} pairs in {out}, {len(failed)} failed")
    return 0 if not failed else 3 if written else 2
