"""Whole slides to virtual IHC: which files are slides, what is written beside a result, and how an interrupted one goes on.

OUT/case.ome.tif          the result, on the slide's own grid
OUT/case.json             how it was made
OUT/case.ome.tif.work/    what is unfinished; the same command goes on from it, and removes it in the end
OUT/failures.csv          of a folder or a list: the slides that could not be translated, and why
"""
