"""The report beside a virtual slide: what is stained, how much, how sure, by region, on one page and as files.

`make.make_report` is the way in. `case` finds what belongs to a result, `plane` is the grid it is measured on, `area` says which
of its pixels count and `parts` to which region; `measure` goes over the slide block by block, with `nuclei` for the cells of
one; `measures` turns sums into numbers, `files` writes them for QuPath and tables, and `figures`, `page` draw what is read.
"""
