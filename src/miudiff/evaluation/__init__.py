"""Measuring virtual stains: how near, how stained, how sure, up to one page to read.

Nothing here knows a network of ours: every measure takes uint8 images [H, W, 3] and gives numbers. One image: `fidelity`
(PSNR, VIF, histograms), `stain` (IOD of DAB), `structure` (SSIM, edges), `cells` (nuclei, index, H-score), all of them
together in `panel`. A set: `scores`, with the intervals of `statistics`, and `distribution` (FID, KID) on the features of
an encoder that the user supplies. Files: `folders`, `evaluate`, `publish`, `report`.
"""
