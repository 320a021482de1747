"""Measuring virtual stains: how near, how stained, and how sure, up to one page to read.

Nothing here knows a network: every measure takes uint8 images [H, W, 3] and gives numbers. `fidelity` is
PSNR, VIF and histogram correlation, `stain` is the integrated optical density of DAB, `statistics` puts an
interval on a mean, and `report` shows it all.
"""
