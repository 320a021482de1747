"""Whole slides: any region of one at any scale, what was drawn on it, where its tissue is, and pyramids written.

`reader` opens a slide. `slide` says what every slide can do; `openslide_reader` and `tiff_reader` do it with the two libraries,
`tiff_tiles` and `jpeg` find damage that these pass over. `scaled` reads at any scale (`resampling`), `marked` reads around damage,
`brightfield` refuses other light. `regions` are drawn on a slide, `overview` sees it whole.
"""
