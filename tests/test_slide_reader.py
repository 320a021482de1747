"""Slides are read right or refused: formats, scales, damage, threads, and boxes that fit together at any scale."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from miudiff.errors import SlideError
from miudiff.formats import Unreadable
from miudiff.formats.jpeg import damage
from miudiff.images import read_scale
from miudiff.slides import scaled
from miudiff.slides.reader import (
    RegionError,
    check_brightfield,
    is_slide,
    open_slide,
    read_marked,
    read_scaled,
    read_scaled_marked,
)
from miudiff.slides.tiff_tiles import level_grids
from slide_files import edit_tag, pyramid, spoil, tile_place, tissue, write_ome, write_svs

MICRONS = {
    "PhysicalSizeX": 0.25,
    "PhysicalSizeY": 0.25,
    "PhysicalSizeXUnit": "µm",
    "PhysicalSizeYUnit": "µm",
}


@pytest.fixture(scope="module")
def picture():
    return tissue(900, 1210)


@pytest.fixture(scope="module")
def svs(picture, tmp_path_factory):
    return write_svs(tmp_path_factory.mktemp("svs") / "a.svs", pyramid(picture, 3))


@pytest.fixture(scope="module")
def ome(picture, tmp_path_factory):
    return write_ome(tmp_path_factory.mktemp("ome") / "a.ome.tif", pyramid(picture, 3), **MICRONS)


@pytest.fixture(scope="module", params=["svs", "ome"])
def slide(request):
    with open_slide(request.getfixturevalue(request.param)) as slide:
        yield slide


def message(error) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# --- what is read right ---


def test_a_real_slide_reads_the_same_through_both_libraries(shared):
    path = shared / "data" / "wsi" / "CMU-1-Small-Region.svs"
    with open_slide(path) as slide:
        assert (slide.format, slide.width, slide.height, slide.mpp) == ("aperio", 2220, 2967, 0.499)
        pixels = slide.read(0, 0, slide.width, slide.height)
    independent = tifffile.imread(path, key=0)
    difference = np.abs(pixels.astype(int) - independent)
    assert difference.max() <= 3
    assert difference.mean() < 0.3


def test_an_aperio_slide_is_read_by_openslide_as_tifffile_decodes_it(svs, picture):
    with open_slide(svs) as slide, tifffile.TiffFile(svs) as tiff:
        assert slide.format == "aperio"
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        assert (slide.mpp, slide.mpp_source, slide.objective) == (0.5, "openslide.mpp-x", "20")
        for level, truth in enumerate(tiff.series[0].levels):
            size = slide.levels[level]
            pixels = slide.read(0, 0, size.width, size.height, level).astype(int)
            assert np.abs(pixels - truth.asarray()).max() <= 3


@pytest.mark.parametrize("compression", [None, "deflate", "lzw"])
def test_a_lossless_pyramid_of_subifds_gives_back_its_pixels(tmp_path, picture, compression):
    levels = pyramid(picture, 3)
    path = write_ome(tmp_path / "a.ome.tif", levels, compression, **MICRONS)
    with open_slide(path) as slide:
        assert (slide.format, slide.mpp, slide.mpp_source) == ("ome-tiff", 0.25, "OME PhysicalSizeX")
        for i, level in enumerate(levels):
            np.testing.assert_array_equal(slide.read(3, 5, 200, 190, i), level[5:195, 3:203])


@pytest.mark.parametrize(
    "layout",
    [
        {"rowsperstrip": 7, "photometric": "rgb"},
        {"rowsperstrip": 5000, "photometric": "rgb", "compression": "zstd"},
        {"tile": (64, 64), "photometric": "rgb", "bigtiff": True},
        {"tile": (64, 64), "photometric": "rgb", "byteorder": ">"},
        {"tile": (64, 64), "photometric": "rgb", "planarconfig": "separate", "compression": "deflate"},
    ],
    ids=["strips", "one strip", "BigTIFF", "big-endian", "planes"],
)
def test_plain_tiff_layouts_give_back_their_pixels(tmp_path, layout):
    picture = tissue(150, 200)
    planes = "planarconfig" in layout
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(picture, -1, 0) if planes else picture, **layout)
    with open_slide(tmp_path / "a.tif") as slide:
        assert (slide.format, slide.width, slide.height) == ("tiff", 200, 150)
        np.testing.assert_array_equal(slide.read(0, 0, 200, 150), picture)
        np.testing.assert_array_equal(slide.read(60, 63, 71, 2), picture[63:65, 60:131])


def test_a_flat_pyramid_is_one(tmp_path, picture):
    levels = pyramid(picture, 3)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for i, level in enumerate(levels):
            tiff.write(
                level, tile=(128, 128), photometric="rgb", subfiletype=int(i > 0), compression="deflate"
            )
    with open_slide(tmp_path / "a.tif") as slide:
        assert [level.downsample for level in slide.levels] == [1, 2, 4]
        np.testing.assert_array_equal(slide.read(10, 20, 30, 40, 2), levels[2][20:60, 10:40])


def test_jpeg_tiles_are_those_of_the_decoder(ome):
    with open_slide(ome) as slide, tifffile.TiffFile(ome) as tiff:
        for i, level in enumerate(tiff.series[0].levels):
            truth = level.asarray()
            np.testing.assert_array_equal(slide.read(0, 0, truth.shape[1], truth.shape[0], i), truth)


def test_a_plain_image_is_a_slide_of_one_level_without_a_scale(tmp_path):
    picture = tissue(50, 70)
    Image.fromarray(picture).save(tmp_path / "a.png", dpi=(50800, 50800))
    with open_slide(tmp_path / "a.png") as slide:
        assert (slide.format, len(slide.levels), slide.mpp, slide.mpp_source) == ("image", 1, None, "")
        np.testing.assert_array_equal(slide.read(5, 6, 60, 40), picture[6:46, 5:65])


def test_an_opaque_alpha_is_fine_and_another_is_refused_where_it_is(tmp_path):
    picture = np.dstack([tissue(128, 256), np.full((128, 256), 255, np.uint8)])
    picture[10, 200, 3] = 254
    tifffile.imwrite(
        tmp_path / "a.tif", picture, photometric="rgb", extrasamples=["unassalpha"], tile=(128, 128)
    )
    with open_slide(tmp_path / "a.tif") as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 128, 128), picture[:, :128, :3])
        with pytest.raises(SlideError, match="transparent"):
            slide.read(120, 0, 100, 100)


def test_a_level_that_is_no_whole_factor_reads_the_same_in_any_region(tmp_path):
    """OpenSlide's factor of such a level is 4.003, and its places are then fractions of a pixel."""
    picture = tissue(2967, 2221)
    path = write_svs(tmp_path / "a.svs", [picture, picture[1:2964:4, 1:2220:4].copy()])
    with open_slide(path) as slide, openslide.OpenSlide(path) as independent:
        assert not independent.level_downsamples[1].is_integer()
        assert slide.levels[1].downsample == 4
        whole = slide.read(0, 0, 555, 741, 1)
        np.testing.assert_array_equal(slide.read(101, 503, 300, 200, 1), whole[503:703, 101:401])
        np.testing.assert_array_equal(slide.read(511, 511, 3, 3, 1), whole[511:514, 511:514])


@pytest.mark.parametrize("region", [(-1, 0, 5, 5), (0, 0, 0, 5), (1200, 0, 11, 5), (0, 899, 5, 2)])
def test_a_region_outside_the_level_is_a_programmers_mistake(slide, region):
    with pytest.raises(ValueError, match="not inside"):
        slide.read(*region)
    with pytest.raises(ValueError, match="level 3"):
        slide.read(0, 0, 5, 5, 3)


# --- the scale ---


@pytest.mark.parametrize(
    ("sizes", "mpp"),
    [
        ({"PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25}, 0.25),
        ({"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.251}, 0.2505),
        ({"PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "pixel", "PhysicalSizeY": 1.0}, None),
        ({"PhysicalSizeX": 352.0, "PhysicalSizeY": 352.0}, None),
        ({"PhysicalSizeX": 0.25}, 0.25),
        ({}, None),
    ],
    ids=["units", "almost square", "no unit of length", "no optical scale", "one axis", "none"],
)
def test_the_scale_is_read_in_its_unit_or_not_at_all(tmp_path, sizes, mpp):
    path = write_ome(tmp_path / "a.ome.tif", [tissue(64, 64)], **sizes)
    with open_slide(path) as slide:
        assert slide.mpp == (pytest.approx(mpp) if mpp else None)
        assert bool(slide.mpp_source) == bool(mpp)


@pytest.mark.parametrize(
    ("resolution", "mpp"), [((20000, "CENTIMETER"), 0.5), ((50800, "INCH"), None), ((72, "CENTIMETER"), None)]
)
def test_a_tiff_resolution_is_a_scale_only_in_cm_and_if_optical(tmp_path, resolution, mpp):
    value, unit = resolution
    tifffile.imwrite(
        tmp_path / "a.tif",
        tissue(64, 64),
        photometric="rgb",
        resolution=(value, value),
        resolutionunit=unit,
    )
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.mpp == (pytest.approx(mpp) if mpp else None)


def test_an_objective_is_told_but_is_no_scale(tmp_path):
    with open_slide(write_svs(tmp_path / "a.svs", [tissue(300, 300)], mpp="")) as slide:
        assert (slide.mpp, slide.objective) == (None, "20")


def test_pixels_that_are_not_square_are_refused(tmp_path):
    path = write_ome(tmp_path / "a.ome.tif", [tissue(64, 64)], PhysicalSizeX=0.25, PhysicalSizeY=0.26)
    with pytest.raises(SlideError, match="0.25 um/px across and 0.26 down") as error:
        open_slide(path)
    message(error)


# --- what is refused ---


def _channels(path):
    tifffile.imwrite(path, np.zeros((3, 64, 64), np.uint8), photometric="minisblack", ome=True)


def _focal_planes(path):
    tifffile.imwrite(path, np.zeros((5, 64, 64, 3), np.uint8), photometric="rgb", ome=True)


WRONG = {
    "16 bits": (lambda p: tifffile.imwrite(p, np.zeros((64, 64, 3), np.uint16)), "16 bits a channel"),
    "grey": (lambda p: tifffile.imwrite(p, np.zeros((64, 64), np.uint8)), "a grey image"),
    "channels": (_channels, "3 separate channels"),
    "focal planes": (_focal_planes, "expected one RGB image"),
    "palette": (lambda p: Image.fromarray(tissue(64, 64)).quantize(8).save(p), "PALETTE"),
    "empty": (lambda p: p.write_bytes(b""), "the file is empty"),
    "folder": (lambda p: p.mkdir(), "is a folder"),
    "nothing": (lambda p: None, "No such file"),
    "text": (lambda p: p.write_text("a slide"), "is not an image"),
    "header only": (lambda p: p.write_bytes(b"II*\0\x08\0\0\0"), "without an image|damaged"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_slide_is_refused_in_one_line(tmp_path, kind, capfd):
    path = tmp_path / "a.tif"
    make, words = WRONG[kind]
    make(path)
    with pytest.raises(SlideError, match=words) as error:
        open_slide(path)
    assert message(error).startswith(str(path))
    assert capfd.readouterr().err == ""


def test_a_slide_format_without_a_slide_in_it_is_refused(tmp_path):
    Image.fromarray(tissue(64, 64)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").rename(tmp_path / "a.mrxs")
    with pytest.raises(SlideError, match="files that belong to it are missing"):
        open_slide(tmp_path / "a.mrxs")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("formats/broken.svs", "no reader knows"),
        ("formats/diagnostic_slide_thumb_grey.png", "a grey image"),
        ("copyleft_gpl/wsi/pathml_16bit.tif", "16 bits a channel"),
        ("copyleft_gpl/wsi/pathml_small_dicom.dcm", "cannot be opened"),
        ("copyleft_gpl/wsi/pathml_small_vectra.qptiff", "separate channels"),
    ],
)
def test_real_files_that_are_no_brightfield_slides_are_refused(shared, name, words):
    with pytest.raises(SlideError, match=words) as error:
        open_slide(shared / "data" / name)
    message(error)


def test_real_slides_and_images_are_accepted(shared):
    data = shared / "data"
    files = [
        *(path for path in data.glob("he/**/*") if path.is_file()),
        *data.glob("ihc/os2_*"),
        *data.glob("pairs/*/*.jpg"),
        data / "wsi" / "CMU-1-Small-Region.svs",
        data / "formats" / "diagnostic_slide_thumb_rgba.png",
    ]
    assert len(files) > 20
    for path in files:
        with open_slide(path) as slide:
            check_brightfield(slide)
            assert (slide.mpp is not None) == (path.suffix in (".tif", ".svs"))


def test_a_real_fluorescence_slide_is_refused_for_its_dark_ground(shared):
    path = shared / "data" / "wsi" / "fluorescence_dapi.ndpi"
    with open_slide(path) as slide:
        assert (slide.format, len(slide.levels)) == ("hamamatsu", 7)
        with pytest.raises(SlideError, match="ground is dark.*fluorescence") as error:
            check_brightfield(slide)
        message(error)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda picture: 255 - np.maximum(picture, 225), "ground is dark"),
        (
            lambda picture: np.where(picture[..., :1] > 100, 8, [0, 40, 250]).astype(np.uint8),
            "ground is dark",
        ),
        (lambda picture: picture * 0, "all black"),
        (lambda picture: picture[..., 1:2].repeat(3, axis=-1), "grey image stored as RGB"),
    ],
    ids=["dim", "blue on black", "black", "grey"],
)
def test_a_scan_without_bright_ground_or_colour_is_refused(tmp_path, make, words):
    Image.fromarray(make(tissue(200, 200))).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide, pytest.raises(SlideError, match=words):
        check_brightfield(slide)


def test_brightfield_with_black_unscanned_parts_is_accepted(tmp_path):
    picture = np.zeros((400, 400, 3), np.uint8)
    picture[:150, :150] = tissue(150, 150)
    Image.fromarray(picture).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide:
        check_brightfield(slide)


# --- tags and files that lie ---


@pytest.mark.parametrize(
    ("tag", "value"),
    [("ImageWidth", 5000), ("ImageLength", 90), ("TileWidth", 16), ("PlanarConfiguration", 2)],
)
def test_a_tiff_whose_tags_do_not_agree_is_no_slide(tmp_path, tag, value):
    path = write_ome(tmp_path / "a.ome.tif", [tissue(300, 400)], tile=64)
    edit_tag(path, tag, value)
    with pytest.raises(SlideError, match="its tags state"):
        open_slide(path)


@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("ImageWidth", 1),
        ("ImageLength", 9000),
        ("TileWidth", 16),
        ("Compression", 1),
        ("PhotometricInterpretation", 3),
    ],
)
def test_the_tags_of_an_aperio_slide_must_agree(tmp_path, picture, tag, value):
    path = write_svs(tmp_path / "a.svs", [picture])
    size = (picture.shape[1], picture.shape[0])
    assert level_grids(path, [size, (7, 7)])[0].width == size[0]
    assert level_grids(path, [size, (7, 7)])[1] is None
    edit_tag(path, tag, value)
    with pytest.raises(Unreadable):
        level_grids(path, [size])
    with pytest.raises(SlideError):
        open_slide(path)


def test_another_page_is_not_taken_for_a_scan_whose_tags_cannot_be_read(tmp_path, picture):
    path = write_svs(tmp_path / "a.svs", [picture])
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[0].tags["ImageWidth"].offset + 2  # where the type of its value stands
    with path.open("r+b") as file:
        file.seek(at)
        file.write((99).to_bytes(2, "little"))
    with pytest.raises(SlideError, match="its tag 256 is damaged"):
        open_slide(path)


def test_a_tiff_of_one_image_and_a_fifo_are_told_apart(tmp_path):
    os.mkfifo(tmp_path / "a.tif")
    os.mkfifo(tmp_path / "a.svs")
    assert not is_slide(tmp_path / "a.tif")
    for name in ("a.tif", "a.svs"):
        with pytest.raises(SlideError, match="is not a regular file"):
            open_slide(tmp_path / name)


def test_a_png_with_a_bomb_in_its_text_is_read_or_refused_in_one_line(tmp_path):
    path = tmp_path / "a.png"
    about = PngImagePlugin.PngInfo()
    about.add_text("comment", "\0" * (80 << 20), zip=True)
    Image.fromarray(tissue(64, 64)).save(path, pnginfo=about)
    with pytest.raises(SlideError, match="damaged or cut off") as error:
        open_slide(path)
    assert message(error).startswith(str(path))


def test_images_and_slides_state_one_scale(tmp_path):
    for size in (0.25, 0.009, 21.0, 1e300):
        path = write_ome(tmp_path / "a.ome.tif", [tissue(64, 64)], PhysicalSizeX=size, PhysicalSizeY=size)
        with open_slide(path) as slide:
            assert slide.mpp == read_scale(path) == (size if size == 0.25 else None)


# --- damage ---


@pytest.mark.parametrize("how", ["zeros", "noise", "marker", "empty", "cut"])
@pytest.mark.parametrize("kind", ["svs", "ome"])
def test_a_damaged_tile_is_refused_by_its_region_and_the_others_still_read(tmp_path, picture, kind, how):
    path = tmp_path / {"svs": "a.svs", "ome": "a.ome.tif"}[kind]
    write = {"svs": write_svs, "ome": write_ome}[kind]
    write(path, [picture], tile=256)
    with open_slide(path) as slide:
        whole = slide.read(0, 0, slide.width, slide.height)
    index = 7  # of 5 x 4 tiles: column 2, row 1
    spoil(path, index, how)
    with open_slide(path) as slide:
        for region in [(512, 256, 256, 256), (700, 300, 10, 10), (0, 0, 1210, 900)]:
            with pytest.raises(
                RegionError, match=f"{region[0]}, {region[1]}, {region[2]} x {region[3]}"
            ) as error:
                slide.read(*region)
            assert message(error).startswith(str(path))
            np.testing.assert_array_equal(slide.read(0, 0, 512, 256), whole[:256, :512])
        if how != "cut":
            np.testing.assert_array_equal(slide.read(768, 256, 442, 644), whole[256:, 768:])


@pytest.mark.parametrize("kind", ["svs", "ome"])
def test_a_slide_that_vanishes_shrinks_or_changes_while_open_is_an_error(tmp_path, kind):
    write = {"svs": write_svs, "ome": write_ome}[kind]
    for what in ("shrinks", "changes", "vanishes"):
        path = write(tmp_path / f"{what}.tif", [tissue(600, 600)])
        with open_slide(path) as slide:
            slide.read(0, 0, 10, 10)
            if what == "shrinks":
                os.truncate(path, path.stat().st_size // 2)
            elif what == "changes":
                write(path, [tissue(600, 610)])
            else:
                path.unlink()
            words = "vanished while" if what == "vanishes" else "changed while"
            with pytest.raises(SlideError, match=words) as error:
                slide.read(300, 300, 300, 300)
            assert not isinstance(error.value, RegionError)  # marking it would paint the whole slide
            message(error)


def test_damage_is_marked_in_squares_that_do_not_depend_on_the_region(tmp_path, picture):
    path = write_svs(tmp_path / "a.svs", [picture], tile=240)
    with open_slide(path) as slide:
        truth = slide.read(0, 0, slide.width, slide.height)
    spoil(path, 8, "zeros")  # column 2, row 1 of 6 x 4 tiles of 240 pixels
    expected = np.zeros(picture.shape[:2], bool)
    expected[0:512, 256:768] = True  # every square of 256 that the tile reaches into
    with open_slide(path) as slide:
        pixels, mask = read_marked(slide, 0, 0, slide.width, slide.height)
        np.testing.assert_array_equal(mask, expected)
        np.testing.assert_array_equal(pixels, np.where(expected[..., None], 0, truth))
        part, part_mask = read_marked(slide, 700, 450, 100, 100)
        np.testing.assert_array_equal(part, pixels[450:550, 700:800])
        np.testing.assert_array_equal(part_mask, mask[450:550, 700:800])


@pytest.mark.parametrize("size", [(400, 297), (1210, 900), (2000, 1500)])
def test_around_damage_a_scaled_pixel_is_right_or_marked(tmp_path, picture, size):
    path = write_ome(tmp_path / "a.ome.tif", [picture], tile=256)
    box = (0, 0, 1210, 900)
    with open_slide(path) as slide:
        truth = read_scaled(slide, box, *size)
    spoil(path, 7, "zeros")
    with open_slide(path) as slide:
        pixels, mask = read_scaled_marked(slide, box, *size)
        with pytest.raises(RegionError):
            read_scaled(slide, box, *size)
    assert 0.05 < mask.mean() < 0.15
    assert not pixels[mask].any()
    assert np.abs(pixels[~mask].astype(int) - truth[~mask]).max() <= 1


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 30},
        {"quality": 95, "subsampling": 0},
        {"quality": 80, "subsampling": 1, "optimize": True},
        {"progressive": True},
        {"restart_marker_blocks": 3},
        {"keep_rgb": True},
    ],
    ids=str,
)
def test_a_whole_jpeg_is_never_called_damaged(tmp_path, options):
    picture = tissue(256, 256)
    half_grey = picture.copy()
    half_grey[200:] = 128  # what a decoder paints where it has no data
    for content in (
        picture,
        picture[:250, :243],
        picture[:40, :5],
        half_grey,
        picture * 0 + 128,
        picture * 0 + 243,
    ):
        Image.fromarray(content).save(tmp_path / "a.jpg", **options)
        assert damage((tmp_path / "a.jpg").read_bytes()) == ""


@pytest.mark.parametrize("subsampling", ["444", "420"])
def test_a_jpeg_that_lost_a_sector_is_called_damaged(subsampling):
    content = imagecodecs.jpeg8_encode(tissue(256, 256), level=90, subsampling=subsampling)
    rng = np.random.default_rng(0)
    for _ in range(30):
        at = int(rng.integers(700, len(content) - 600))
        for lost in (bytes(512), rng.bytes(512), b"\xff" * 512):
            assert damage(content[:at] + lost + content[at + 512 :])
        assert damage(content[:at])
    assert damage(content[:100])
    assert damage(bytes(len(content)))


# --- threads ---


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
@pytest.mark.parametrize("kind", ["svs", "ome"])
def test_threads_read_what_one_reads(tmp_path, picture, kind, damaged):
    path = tmp_path / {"svs": "a.svs", "ome": "a.ome.tif"}[kind]
    {"svs": write_svs, "ome": write_ome}[kind](path, [picture], tile=128)
    if damaged:
        spoil(path, 22, "zeros")
    rng = np.random.default_rng(0)
    regions = [
        (int(x), int(y), 200, 150) for x, y in zip(rng.integers(0, 1000, 60), rng.integers(0, 750, 60))
    ]

    def read(slide, region):
        try:
            return slide.read(*region)
        except RegionError as error:
            return str(error)

    with open_slide(path) as slide:
        alone = [read(slide, region) for region in regions]
    start = threading.Barrier(6)
    with open_slide(path) as slide, ThreadPoolExecutor(6, initializer=start.wait) as pool:
        together = list(pool.map(lambda region: read(slide, region), regions))
    assert any(isinstance(one, str) for one in alone) == damaged
    for one, other in zip(alone, together):
        np.testing.assert_array_equal(one, other)


# --- any scale ---


@pytest.mark.parametrize("factor", [1, 2, 4, 3.7, 2.5, 1.01, 0.998, 0.5, 0.37])
def test_a_box_is_its_small_boxes_put_together(slide, factor):
    """At whole and fractional factors, shrinking and growing, over the border of the slide, from a fractional start."""
    rng = np.random.default_rng(1)
    for left, top in [(0.0, 0.0), (301.25, 203.7), (1100.3, 820.1)]:
        width, height = (int(min(n, 200 / factor)) for n in (150, 130))
        whole = read_scaled(slide, (left, top, left + width * factor, top + height * factor), width, height)
        columns = [0, *sorted(rng.choice(np.arange(1, width), 3, replace=False)), width]
        rows = [0, *sorted(rng.choice(np.arange(1, height), 2, replace=False)), height]
        for x0, x1 in pairwise(columns):
            for y0, y1 in pairwise(rows):
                box = (left + x0 * factor, top + y0 * factor, left + x1 * factor, top + y1 * factor)
                if box[0] >= slide.width or box[1] >= slide.height:
                    continue
                part = read_scaled(slide, box, int(x1 - x0), int(y1 - y0))
                np.testing.assert_array_equal(part, whole[y0:y1, x0:x1], err_msg=f"{factor} {box}")


def test_a_large_box_is_put_together_in_memory_that_does_not_grow(slide, monkeypatch):
    box = (10.5, 20.25, 1100.5, 800.25)
    whole = read_scaled(slide, box, 294, 211)
    monkeypatch.setattr(scaled, "AT_ONCE", 10_000)
    asked = []

    def read(x, y, width, height, level):
        asked.append(width * height)
        return slide.read(x, y, width, height, level)

    np.testing.assert_array_equal(read_scaled(slide, box, 294, 211, read), whole)
    assert max(asked) < 2 * 10_000


@pytest.mark.parametrize(("factor", "level"), [(0.5, 0), (1, 0), (1.9, 0), (2, 1), (3.7, 1), (4, 2), (50, 2)])
def test_the_coarsest_level_that_is_fine_enough_is_read(slide, factor, level):
    levels = set()

    def read(x, y, width, height, level):
        levels.add(level)
        return slide.read(x, y, width, height, level)

    read_scaled(slide, (100, 100, 100 + 20 * factor, 100 + 10 * factor), 20, 10, read)
    assert levels == {level}


def test_shrinking_by_a_whole_factor_is_the_mean_of_squares(tmp_path):
    picture = tissue(240, 360)
    Image.fromarray(picture).save(tmp_path / "a.png")
    with open_slide(tmp_path / "a.png") as slide:
        small = read_scaled(slide, (0, 0, 360, 240), 90, 60)
    mean = picture.reshape(60, 4, 90, 4, 3).mean((1, 3))
    assert np.abs(small - mean).max() <= 1  # the filter rounds twice


@pytest.mark.parametrize(("size", "method"), [((120, 80), "BOX"), ((97, 71), "BOX"), ((720, 480), "BICUBIC")])
def test_resampling_is_pillows_but_for_its_rounding(tmp_path, size, method):
    image = Image.fromarray(tissue(240, 360))
    image.save(tmp_path / "a.png")
    pillow = np.asarray(image.resize(size, Image.Resampling[method]))
    with open_slide(tmp_path / "a.png") as slide:
        ours = read_scaled(slide, (0, 0, 360, 240), *size)
    inner = (slice(4, -4), slice(4, -4))  # at the border Pillow weighs what is there, we repeat the edge
    difference = np.abs(ours[inner].astype(int) - pillow[inner])
    assert difference.max() <= 2  # Pillow rounds between its two passes
    assert difference.mean() < 0.3


@pytest.mark.parametrize("factor", [2.6, 0.4])
def test_a_ramp_stays_a_ramp_and_in_its_place(tmp_path, factor):
    """Values are those of the places of the new pixels, so nothing is shifted; the border goes on beyond the slide."""
    ramp = np.arange(0, 240, dtype=np.uint8)
    Image.fromarray(np.dstack([np.tile(ramp, (40, 1))] * 3)).save(tmp_path / "a.png")
    width = 60
    with open_slide(tmp_path / "a.png") as slide:
        left = 20.3
        pixels = read_scaled(slide, (left, 5, left + width * factor, 5 + 10 * factor), width, 10)
        centres = left + (np.arange(width) + 0.5) * factor - 0.5
        assert np.abs(pixels[3, :, 0] - centres).max() <= 1
        beyond = read_scaled(slide, (230, -20, 260, 10), 30, 30)
        np.testing.assert_array_equal(beyond[:, 10:], 239)


@pytest.mark.parametrize(
    ("box", "size"), [((0, 0, 0, 5), (5, 5)), ((0, 0, 5, 5), (0, 5)), ((5000, 0, 5010, 10), (5, 5))]
)
def test_an_empty_box_or_one_beside_the_slide_is_a_programmers_mistake(slide, box, size):
    with pytest.raises(ValueError):
        read_scaled(slide, box, *size)


def test_the_tiles_that_are_kept_stay_within_their_bound(tmp_path, picture, monkeypatch):
    from miudiff.slides import tiff_reader

    monkeypatch.setattr(tiff_reader, "HELD", 500_000)
    path: Path = write_ome(tmp_path / "a.ome.tif", [picture], tile=128)
    assert tile_place(path, 0)[1] > 0
    with open_slide(path) as slide:
        first = slide.read(0, 0, slide.width, slide.height)
        assert slide._held_bytes == sum(tile.nbytes for tile in slide._held.values()) <= 500_000
        np.testing.assert_array_equal(first, slide.read(0, 0, slide.width, slide.height))
