"""Blocks into one file that every viewer opens as a pyramid.

Readers disagree on where the coarser levels of a TIFF are. OME-TIFF, so Bio-Formats and QuPath, wants them as SubIFDs of the
full image; OpenSlide follows the main chain of IFDs and looks nowhere else. A directory may be reached both ways: here each level
is written once, and both name it.
"""

from __future__ import annotations

import uuid
from itertools import accumulate, chain
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from miudiff.errors import SlideError
from miudiff.images import atomic, remove_parts
from miudiff.slides import bigtiff as tiff
from miudiff.slides.pyramid import Block, BlockStore, Layout

SOFTWARE = "miudiff"


def assemble(
    store: BlockStore, path: str | Path, mpp: float | None, name: str, identity: str, notice: str = ""
) -> None:
    """Write the pyramidal OME-TIFF of a finished store; equal blocks and arguments give equal bytes.

    The encoded tiles are copied as they are, one at a time. One process at a time may write a `path`.

    Args:
        store: Has every block of every level.
        path: The file; it appears whole or not at all.
        mpp: Micrometres per pixel of level 0; None states no scale.
        name: Of the image, as viewers show it.
        identity: What the file is made from; its UUID follows from it.
        notice: Said in the file's description, for whoever meets it without its record.

    Raises:
        SlideError: A block is missing or damaged.
        DataError: The file cannot be written, as on a full disk.
    """
    if mpp is not None and not 1e-3 < mpp < 1e4:
        raise ValueError(f"{mpp} micrometres per pixel")
    path, layout = Path(path), store.layout
    blocks = [
        [store.tiles(level, row) for row in range(layout.rows(level))] for level in range(len(layout.levels))
    ]
    description = _describe(layout, mpp, name, identity, notice)
    remove_parts(path)  # what a killed run left would fill the disk with every try
    with atomic(path) as part, part.open("wb") as file:
        file.write(_directories(store, blocks, mpp, description))
        for block in chain.from_iterable(blocks):
            file.writelines(block)


def _directories(store: BlockStore, blocks: list[list[Block]], mpp: float | None, description: str) -> bytes:
    """All of the file that comes before its tiles: the levels' directories, finest first."""
    levels = range(len(blocks))
    lengths = [[length for block in rows for length in block.lengths] for rows in blocks]

    def write(starts: list[int], tiles: int) -> list[bytes]:
        begins = list(accumulate(chain.from_iterable(lengths), initial=tiles))
        written, first = [], 0
        for level in levels:
            tags = _tags(store, level, mpp)
            tags += [
                tiff.offsets(324, begins[first : first + len(lengths[level])]),  # where its tiles begin
                tiff.longs(325, lengths[level]),
            ]
            first += len(lengths[level])
            if level == 0:
                tags.append(tiff.text(270, description))
                tags += [tiff.directories(330, starts[1:])] if len(levels) > 1 else []
            written.append(tiff.directory(tags, starts[level], [*starts[1:], 0][level]))
        return written

    sizes = [len(directory) for directory in write([0 for _ in levels], 0)]
    *starts, tiles = accumulate(sizes, initial=tiff.HEADER)
    return tiff.header(tiff.HEADER) + b"".join(write(starts, tiles))


def _tags(store: BlockStore, level: int, mpp: float | None) -> list[tiff.Tag]:
    """What is said of a level besides where its tiles lie."""
    layout = store.layout
    width, height = layout.levels[level]
    tags = [
        tiff.longs(254, [1 if level else 0]),  # a reduced image or the full one
        tiff.longs(256, [width]),
        tiff.longs(257, [height]),
        tiff.shorts(258, 8, 8, 8),  # bits of each sample
        tiff.shorts(277, 3),  # samples of each pixel
        tiff.shorts(284, 1),  # which lie together
        tiff.text(305, SOFTWARE),
        tiff.longs(322, [layout.tile]),
        tiff.longs(323, [layout.tile]),
    ]
    if store.compression.kind == "jpeg":
        # YCbCr, and no YCbCrSubSampling (530). Bio-Formats takes 1, 1 to mean that its decoder left the colours unconverted and
        # turns them a second time; without the tag it does not, and libtiff then asks the JPEG itself.
        tags += [tiff.shorts(259, 7), tiff.shorts(262, 6), tiff.ratios(532, 0, 255, 128, 255, 128, 255)]
    else:
        tags += [tiff.shorts(259, 8), tiff.shorts(262, 2), tiff.shorts(317, 2)]  # deflated differences of RGB
    across, down = layout.factor(level)
    return [
        *tags,
        tiff.ratios(282, 1e4 / (mpp * across) if mpp else 1),
        tiff.ratios(283, 1e4 / (mpp * down) if mpp else 1),
        tiff.shorts(296, 3 if mpp else 1),  # in pixels a centimetre, or of no unit
    ]


def _describe(layout: Layout, mpp: float | None, name: str, identity: str, notice: str) -> str:
    # XML has no word for control characters, UTF-8 none for the undecoded bytes of a file's name.
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    unique = uuid.uuid5(uuid.NAMESPACE_OID, f"{SOFTWARE} {identity}")
    scale = "" if mpp is None else f'PhysicalSizeX="{float(mpp)!r}" PhysicalSizeXUnit="µm" '
    scale += scale.replace("SizeX", "SizeY")
    schema = "http://www.openmicroscopy.org/Schemas/OME/2016-06"
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<OME xmlns="{schema}" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
        f'xsi:schemaLocation="{schema} {schema}/ome.xsd" UUID="urn:uuid:{unique}" Creator="{SOFTWARE}">'
        f'<Image ID="Image:0" Name={quoteattr(name)}>'
        + (f"<Description>{escape(notice)}</Description>" if notice else "")
        + f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" SignificantBits="8" BigEndian="false" '
        f'Interleaved="true" SizeX="{layout.width}" SizeY="{layout.height}" SizeC="3" SizeZ="1" SizeT="1" {scale}>'
        '<Channel ID="Channel:0:0" SamplesPerPixel="3"/>'
        '<TiffData IFD="0" PlaneCount="1"/>'
        "</Pixels></Image></OME>"
    )


def check_pyramid(path: str | Path, layout: Layout, mpp: float | None) -> None:
    """Look at a finished file as tifffile and OpenSlide see it: levels, sizes, scale, and one corner of each level.

    Raises:
        SlideError: One of them sees something else; it says which and what.
    """
    import openslide
    import tifffile

    path = Path(path)
    expected = [(height, width) for width, height in layout.levels]
    try:
        with tifffile.TiffFile(path) as file:
            pages = [file.pages.get(i, cache=False) for i in range(len(file.pages))]
            chained = [page.shape[:2] for page in pages]
            levels = [level.shape[:2] for level in file.series[0].levels]
            if not file.is_ome or levels != expected or chained != expected:
                raise SlideError(
                    f"{path}: tifffile sees levels {levels}, chained {chained}, expected {expected}"
                )
            end = path.stat().st_size
            for page in pages:
                if any(not n or at + n > end for at, n in zip(page.dataoffsets, page.databytecounts)):
                    raise SlideError(f"{path}: cut off within the level {page.shape[:2]}; write it again")
        with openslide.OpenSlide(path) as slide:
            if (sizes := list(slide.level_dimensions)) != list(layout.levels):
                raise SlideError(f"{path}: OpenSlide sees levels {sizes}, expected {list(layout.levels)}")
            scale = slide.properties.get(openslide.PROPERTY_NAME_MPP_X)
            if (scale is None) != (mpp is None) or (mpp and abs(float(scale or 0) / mpp - 1) > 1e-3):
                raise SlideError(f"{path}: OpenSlide sees {scale} micrometres per pixel, expected {mpp}")
            for level in range(slide.level_count):
                slide.read_region((0, 0), level, (1, 1))
    except SlideError:
        raise
    except Exception as error:  # tifffile and OpenSlide raise many kinds
        raise SlideError(f"{path}: cannot be read back ({error}); write it again") from error
