"""Pyramids of odd sizes, as scanners write them: no level's downsample is a whole number, and OpenSlide interpolates between tiles.

Each region is compared with OpenSlide's own read of the whole level, which begins at the one place where nothing is interpolated.
"""

from __future__ import annotations

import numpy as np
import openslide
import pytest
import pyvips
import tifffile

from miudiff.cli import main
from miudiff.slides import openslide_reader
from miudiff.slides.brightfield import check_brightfield
from miudiff.slides.overview import tissue_mask
from miudiff.slides.reader import open_slide, read_marked
from miudiff.slides.slide import SlideError
from slide_files import shrunk, spoil, tile_place, tissue, write_svs

ODD = [(3567, 4443), (1783, 2221), (891, 1110)]
SMALL = [(1189, 1481), (594, 740), (296, 369)]


def odd_levels(sizes=SMALL):
    base = tissue(*sizes[0])
    return [base, *(shrunk(base, *size) for size in sizes[1:])]


def whole(path, level):
    with openslide.OpenSlide(path) as slide:
        seen = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level]))
    assert (seen[..., 3] == 255).all()
    return seen[..., :3]


def check_regions(path, seed=0):
    """Random regions of every level are those of OpenSlide's own read of the whole level."""
    rng = np.random.default_rng(seed)
    with open_slide(path) as slide:
        for number, level in enumerate(slide.levels):
            expected = whole(path, number)
            assert expected.shape == (level.height, level.width, 3)
            for _ in range(12):
                x, y = int(rng.integers(level.width)), int(rng.integers(level.height))
                w = int(rng.integers(1, min(level.width - x, 600) + 1))
                h = int(rng.integers(1, min(level.height - y, 600) + 1))
                np.testing.assert_array_equal(slide.read(x, y, w, h, number), expected[y : y + h, x : x + w])
            last = slide.read(0, 0, level.width, level.height, number)
            np.testing.assert_array_equal(last, expected)


@pytest.mark.parametrize("compression", ["jpeg", 33005, 33003])
def test_an_aperio_pyramid_of_odd_sizes_is_read_as_openslide_reads_its_levels(tmp_path, compression):
    path = write_svs(tmp_path / "a.svs", odd_levels(), compression=compression)
    with openslide.OpenSlide(path) as slide:
        assert not any(factor.is_integer() for factor in slide.level_downsamples[1:])
        assert set(slide.associated_images) == {"thumbnail", "label", "macro"}
    check_regions(path)


def test_a_larger_aperio_pyramid_of_odd_sizes_is_bright_and_shows_tissue(tmp_path):
    path = write_svs(tmp_path / "a.svs", odd_levels(ODD))
    check_regions(path)
    with open_slide(path) as slide:
        check_brightfield(slide)
        assert tissue_mask(slide, 0.5).tissue_share() > 0.9


def test_a_generic_pyramid_of_odd_sizes_is_read_as_openslide_reads_its_levels(tmp_path):
    path = tmp_path / "generic.tif"
    image = pyvips.Image.new_from_array(odd_levels()[0])
    image.tiffsave(str(path), tile=True, pyramid=True, compression="jpeg", Q=90)
    check_regions(path)


def test_a_philips_pyramid_is_read_as_openslide_reads_its_levels(tmp_path):
    path = write_philips(tmp_path / "p.tiff", odd_levels())
    assert openslide.OpenSlide.detect_format(path) == "philips"
    check_regions(path)


def write_philips(path, levels, tile=256):
    """As Philips' scanners export: each level padded to whole tiles, their pixel spacing in the XML of the first."""
    spacings = "".join(
        '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" Group="0x0028" '
        f'Element="0x0030" PMSVR="IDoubleArray">&quot;{0.0005 * 2**i}&quot; &quot;{0.0005 * 2**i}&quot;</Attribute>'
        '<Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER" Group="0x1001" Element="0x8B01" '
        f'PMSVR="IUInt16">{i}</Attribute></DataObject>'
        for i in range(len(levels))
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport"><Attribute '
        'Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" PMSVR="IDataObjectArray"><Array>'
        '<DataObject ObjectType="DPScannedImage"><Attribute Name="PIM_DP_IMAGE_TYPE" Group="0x301D" '
        'Element="0x1004" PMSVR="IString">WSI</Attribute><Attribute '
        'Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" Element="0x8B01" '
        f'PMSVR="IDataObjectArray"><Array>{spacings}</Array></Attribute></DataObject></Array></Attribute></DataObject>'
    )
    with tifffile.TiffWriter(path) as tiff:
        for i, level in enumerate(levels):
            spare = ((0, -level.shape[0] % tile), (0, -level.shape[1] % tile), (0, 0))
            tiff.write(
                np.pad(level, spare, constant_values=255),
                tile=(tile, tile),
                compression="jpeg",
                compressionargs={"level": 90},
                photometric="rgb",
                software="Philips DP v1.0",
                description=f"level={i}" if i else xml,
                subfiletype=int(i > 0),
                metadata=None,
            )
    return path


def test_a_level_that_openslide_must_interpolate_has_no_lines_where_its_blocks_meet(tmp_path, monkeypatch):
    path = write_svs(tmp_path / "a.svs", [shrunk(tissue(64, 64), *size) for size in ODD])  # smooth
    monkeypatch.setattr(openslide_reader, "_same_pixels", lambda *arguments: False)
    with open_slide(path) as slide:
        for number in (1, 2):
            level = slide.levels[number]
            pixels = slide.read(0, 0, level.width, level.height, number)
            off = np.abs(pixels.astype(int) - whole(path, number)).max(axis=(1, 2))
            assert off.max() <= 24  # up to half a pixel of a smooth field, at its steepest
            x, y, w, h = 500, 300, 200, 100  # across blocks
            np.testing.assert_array_equal(slide.read(x, y, w, h, number), pixels[y : y + h, x : x + w])


@pytest.mark.parametrize("level", [0, 1])
def test_a_tile_without_data_is_still_missing_on_an_odd_level(tmp_path, level):
    path = write_svs(tmp_path / "a.svs", odd_levels())
    offset, length = tile_place(path, 3, level)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(length))
    with open_slide(path) as slide:
        with pytest.raises(SlideError, match="cannot be read"):
            slide.read(0, 0, slide.levels[level].width, slide.levels[level].height, level)
        _, mask = read_marked(slide, 0, 0, slide.levels[level].width, slide.levels[level].height, level)
        assert 0 < mask.mean() < 0.5


def test_info_goes_on_around_damage_where_it_is_asked_to(tmp_path, capsys):
    path = write_svs(tmp_path / "a.svs", odd_levels()[:1])
    spoil(path, 7, "zeros")
    with pytest.raises(SystemExit) as stopped:
        main(["info", str(path), "--no-estimate"])
    assert stopped.value.code == 2
    assert "--mark-unreadable" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["info", str(path), "--no-estimate", "--mark-unreadable"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "cannot be read" in told
    assert "tissue" in told


def test_a_real_hamamatsu_pyramid_is_read_as_openslide_reads_its_levels(shared):
    path = shared / "data" / "wsi" / "fluorescence_dapi.ndpi"
    rng = np.random.default_rng(0)
    with open_slide(path) as slide, openslide.OpenSlide(path) as other:
        for number, level in enumerate(slide.levels):
            for _ in range(4):
                w, h = min(300, level.width), min(300, level.height)
                x, y = int(rng.integers(level.width - w + 1)), int(rng.integers(level.height - h + 1))
                factor = int(other.level_downsamples[number])
                expected = np.asarray(other.read_region((x * factor, y * factor), number, (w, h)))
                np.testing.assert_array_equal(slide.read(x, y, w, h, number), expected[..., :3])
