"""Whole slides: reading any region of one at any scale, regions drawn on it, its tissue, and writing pyramids.

`reader` opens a slide and reads from it; `slide` says what every slide can do, `openslide_reader` and `tiff_reader` do it for the
two libraries; `scaled` reads at any scale (`resampling`), `marked` around damage; `regions` are what was drawn on a slide; `overview` sees it whole.
"""
