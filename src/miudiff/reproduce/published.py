"""What the paper reports, to stand beside what is measured here (MIU-Diff, Tables 1 and 2).

Its test parts are its own 80/10/10 division of MIST and BCI, at 256 x 256; it states neither the division's seed nor the scale,
references and masks of its measures. VIF of this height is that against the H&E source; IOD is a signed sum over the test set, in units of 1e7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Reported(NamedTuple):
    """A cell group of Table 1; Table 2 leaves PSNR out."""

    psnr: float | None
    vif: float
    hist: float
    iod: float


DATASETS = ("MIST HER2", "MIST Ki67", "BCI HER2")

_ROWS_1: Mapping[str, tuple[tuple[float, float, float, float], ...]] = {
    "CUT": ((13.123, 0.610, 0.264, -1.168), (13.103, 0.611, 0.331, -2.705), (17.649, 0.762, 0.571, -0.825)),
    "ASP": ((15.069, 0.601, 0.495, -1.325), (14.339, 0.609, 0.429, -1.604), (18.336, 0.732, 0.513, -0.804)),
    "ILVR": ((12.231, 0.598, 0.147, -3.456), (13.501, 0.509, 0.142, -2.650), (13.459, 0.497, 0.299, -2.637)),
    "SDEdit": ((12.054, 0.599, 0.202, -2.463), (13.760, 0.529, 0.270, -1.611), (12.393, 0.513, 0.493, -1.280)),
    "EGSDE": ((13.607, 0.587, 0.225, -2.548), (12.447, 0.468, 0.361, -3.637), (12.836, 0.603, 0.379, -1.837)),
    "MIU-Diff": ((14.368, 0.611, 0.670, -1.146), (14.201, 0.586, 0.507, -0.523), (15.120, 0.773, 0.640, -0.792)),
    "I-guided": ((14.293, 0.609, 0.321, -1.903), (13.503, 0.482, 0.334, -2.022), (15.068, 0.713, 0.596, -1.631)),
    "U-guided": ((13.878, 0.600, 0.558, -2.095), (13.718, 0.570, 0.491, -1.732), (14.597, 0.685, 0.630, -2.215)),
    "w/o MI": ((14.337, 0.589, 0.217, -2.178), (13.055, 0.480, 0.320, -2.998), (15.062, 0.659, 0.561, -2.887)),
    "l2": ((13.226, 0.591, 0.403, -1.867), (13.433, 0.553, 0.440, -2.670), (13.809, 0.698, 0.614, -2.825)),
    "w/o PCL": ((12.932, 0.588, 0.663, -2.311), (12.989, 0.525, 0.505, -2.938), (14.093, 0.643, 0.621, -2.451)),
}  # fmt: skip

_ROWS_2: Mapping[str, tuple[tuple[float, float, float], ...]] = {
    "t0'=80": ((0.613, 0.548, -1.280), (0.588, 0.459, -1.980), (0.787, 0.590, -0.961)),
    "t0'=10": ((0.597, 0.667, -1.773), (0.561, 0.483, -2.330), (0.698, 0.630, -2.107)),
    "S=500": ((0.581, 0.584, -1.993), (0.563, 0.474, -2.937), (0.727, 0.596, -2.653)),
    "S=100": ((0.616, 0.480, -2.037), (0.585, 0.341, -2.441), (0.784, 0.224, -2.218)),
}

REPORTED: Mapping[str, Mapping[str, Reported]] = {
    name: {
        **{row: Reported(*values[i]) for row, values in _ROWS_1.items()},
        **{row: Reported(None, *values[i]) for row, values in _ROWS_2.items()},
    }
    for i, name in enumerate(DATASETS)
}


def reported_for(name: str) -> str | None:
    """The paper's dataset that a case's name and marker mean: "mist HER2" is "MIST HER2", "bci" is "BCI HER2"; None for any other."""
    letters = "".join(c for c in name.lower() if c.isalnum())
    if "bci" in letters:
        return "BCI HER2"
    for dataset in DATASETS:
        if dataset.lower().replace(" ", "") in letters:
            return dataset
    return None
