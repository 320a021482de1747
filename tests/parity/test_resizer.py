"""The resizer against the official one: linear as EGSDE has it, cubic as ILVR."""

import re

import pytest
import torch

from miudiff.diffusion.resizer import down, low_pass


def test_the_recorded_images_agree(golden, agree):
    image, factor = torch.from_numpy(golden["resizer/input"]), int(golden["down_n"])
    agree(down(image, factor, "linear"), golden["resizer/down"], "down", 1e-6)
    agree(low_pass(image, factor, "linear"), golden["resizer/low_pass"], "low_pass", 1e-6)


@pytest.mark.parametrize(("table", "kernel"), [("resizer_egsde", "linear"), ("resizer_ilvr", "cubic")])
def test_the_formulas_agree_at_every_factor(table, kernel, formulas, det, agree_with_summary):
    assert {"down2", "updown4", "updown32_256"} <= set(formulas[table])
    for name, summary in formulas[table].items():
        kind, factor, side = re.fullmatch(r"(down|updown)(\d+)(?:_(\d+))?", name).groups()
        image = det((1, 3, int(side), int(side)) if side else (2, 3, 16, 16), 0.1, 0.0)
        resized = (down if kind == "down" else low_pass)(image, int(factor), kernel)
        agree_with_summary(resized, summary, f"{table} {name}", 1e-6)
