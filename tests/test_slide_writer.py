"""The staged blocks of a slide, and the pyramids made of them, as independent readers see them."""

from __future__ import annotations

import io
import math
import resource
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from miudiff.errors import DataError, SlideError
from miudiff.images import read_image, read_scale
from miudiff.slides import bigtiff
from miudiff.slides.encoding import Compression
from miudiff.slides.ome_tiff import assemble, check_pyramid
from miudiff.slides.ome_zarr import export_zarr
from miudiff.slides.pyramid import BlockStore, Layout, halve, write_strip

JPEG, LOSSLESS = Compression(), Compression("lossless")
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


def picture(width, height, seed=0):
    """Soft colours, no two places alike, uint8 [height, width, 3]."""
    coarse = np.random.default_rng(seed).integers(40, 256, (height // 24 + 2, width // 24 + 2, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def stage(folder, pixels, compression=JPEG, tile=512, identity="", map=map):
    """The finished store of an image."""
    store = BlockStore(folder, Layout(pixels.shape[1], pixels.shape[0], tile), compression, identity)
    tile, layout = store.layout.tile, store.layout
    for row in range(layout.rows(0)):
        write_strip(store, 0, row, pixels[row * tile : (row + 1) * tile], map)
    for level in range(1, len(layout.levels)):
        for row in range(layout.rows(level)):
            halve(store, level, row, map)
    return store


def decoded(store, level):
    """The pixels of a level as its tiles hold them."""
    (width, height), tile = store.layout.levels[level], store.layout.tile
    rows = [
        np.concatenate([store.compression.decode(data) for data in store.tiles(level, row)], axis=1)
        for row in range(store.layout.rows(level))
    ]
    assert all(row.shape == (tile, tile * store.layout.columns(level), 3) for row in rows)
    return np.concatenate(rows)[:height, :width]


def apart(one, other):
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


def files_in(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


# What readers see

SIZES = [(512, 512), (513, 513), (100, 3000), (1, 1), (1, 3000), (3000, 1), (1101, 513)]
CASES = [(*size, compression) for size in SIZES for compression in (JPEG, LOSSLESS)] + [(5000, 3001, JPEG)]


@pytest.mark.parametrize(
    ("width", "height", "compression"), CASES, ids=lambda value: getattr(value, "kind", value)
)
def test_every_reader_finds_every_level_with_its_size_and_pixels(tmp_path, width, height, compression):
    pyvips = pytest.importorskip("pyvips")
    store = stage(tmp_path / "blocks", picture(width, height), compression)
    path = tmp_path / "slide.ome.tif"
    assemble(store, path, 0.25, "slide", "id")
    check_pyramid(path, store.layout, 0.25)
    levels = store.layout.levels

    with tifffile.TiffFile(path) as file, openslide.OpenSlide(path) as slide:
        assert file.is_ome
        assert file.is_bigtiff
        assert len(file.series) == 1
        assert [level.shape for level in file.series[0].levels] == [(h, w, 3) for w, h in levels]
        assert slide.level_dimensions == levels
        assert slide.properties["openslide.level[0].tile-width"] == str(store.layout.tile)
        for level, size in enumerate(levels):
            expected = decoded(store, level)
            assert apart(file.series[0].levels[level].asarray().reshape(expected.shape), expected) <= 2
            seen = np.asarray(slide.read_region((0, 0), level, size))
            assert (seen[..., 3] == 255).all()
            assert apart(seen[..., :3], expected) <= 2
            assert apart(pyvips.Image.new_from_file(str(path), page=level).numpy(), expected) <= 2
            assert apart(pyvips.Image.new_from_file(str(path), subifd=level - 1).numpy(), expected) <= 2
    assert pyvips.Image.new_from_file(str(path)).get("n-pages") == len(levels)


def test_levels_are_halved_until_the_longer_side_is_at_most_1024():
    assert Layout(5000, 3001).levels == ((5000, 3001), (2500, 1500), (1250, 750), (625, 375))
    assert Layout(1024, 1).levels == ((1024, 1),)
    assert Layout(1, 4097).levels == ((1, 4097), (1, 2048), (1, 1024))
    layout = Layout(5000, 3001)
    assert [(layout.columns(level), layout.rows(level)) for level in range(4)] == [
        (10, 6),
        (5, 3),
        (3, 2),
        (2, 1),
    ]


@pytest.mark.parametrize(("width", "height"), [(1303, 1026), (1201, 1), (1, 1201), (2050, 33)])
def test_a_level_is_the_mean_of_2_x_2_pixels_of_the_finer_one(tmp_path, width, height):
    pixels = picture(width, height)
    store = stage(tmp_path, pixels, LOSSLESS, tile=64)
    for level in range(len(store.layout.levels)):
        assert apart(decoded(store, level), pixels) == 0
        down, across = (min(2, side) for side in pixels.shape[:2])
        pixels = pixels[: pixels.shape[0] // down * down, : pixels.shape[1] // across * across]
        blocks = pixels.reshape(pixels.shape[0] // down, down, pixels.shape[1] // across, across, 3)
        pixels = np.floor(blocks.mean((1, 3)) + 0.5).astype(np.uint8)


def test_coarser_levels_do_not_add_up_the_losses_of_jpeg(tmp_path):
    pixels, coarse = picture(2048, 1024), Compression(quality=30)
    exact, lossy = stage(tmp_path / "exact", pixels, LOSSLESS), stage(tmp_path / "lossy", pixels, coarse)
    for level in (0, 1):
        once = coarse.decode(coarse.encode(np.ascontiguousarray(decoded(exact, level)[:512, :512])))
        assert apart(decoded(lossy, level)[:512, :512], once) == 0


def test_lossless_gives_every_pixel_back_and_jpeg_keeps_close(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 700, 3), np.uint8)
    assert apart(decoded(stage(tmp_path / "noise", noise, LOSSLESS), 0), noise) == 0
    soft = picture(700, 300)
    difference = decoded(stage(tmp_path / "soft", soft), 0).astype(float) - soft
    assert np.abs(difference).mean() < 1
    assert np.abs(difference.mean((0, 1))).max() < 0.2  # no channel is shifted


def test_jpeg_keeps_all_of_its_chroma_and_the_file_leaves_it_to_the_jpeg_to_say_so(tmp_path):
    store = stage(tmp_path / "blocks", picture(600, 600))
    with Image.open(io.BytesIO(store.tiles(0, 0)[0])) as image:
        assert [sampling[1:3] for sampling in image.layer] == [(1, 1)] * 3
    assemble(store, tmp_path / "slide.ome.tif", 0.5, "slide", "id")
    with tifffile.TiffFile(tmp_path / "slide.ome.tif") as file:
        assert file.pages[0].photometric.name == "YCBCR"
        # With the tag and 1, 1 in it Bio-Formats, so QuPath, converts the colours a second time.
        assert "YCbCrSubSampling" not in file.pages[0].tags


def test_the_package_reads_its_own_files(tmp_path):
    store = stage(tmp_path / "blocks", picture(700, 300), LOSSLESS)
    assemble(store, tmp_path / "slide.ome.tif", 0.3, "slide", "id")
    assert apart(read_image(tmp_path / "slide.ome.tif"), picture(700, 300)) == 0
    assert read_scale(tmp_path / "slide.ome.tif") == 0.3


# What the file says


@pytest.mark.parametrize("mpp", [0.2528, 0.5, 0.017, 7.0, np.float64(1 / 3)])
def test_the_scale_is_in_the_ome_xml_and_in_the_resolution_of_every_level(tmp_path, mpp):
    assemble(stage(tmp_path / "blocks", picture(2101, 300)), path := tmp_path / "a.ome.tif", mpp, "a", "id")
    with tifffile.TiffFile(path) as file:
        pixels = ElementTree.fromstring(file.ome_metadata).find(f"{OME}Image/{OME}Pixels")
        assert [float(pixels.get(f"PhysicalSize{axis}")) for axis in "XY"] == [mpp, mpp]
        assert [pixels.get(f"PhysicalSize{axis}Unit") for axis in "XY"] == ["µm", "µm"]
        for level, page in enumerate(file.pages):
            page = page.aspage()
            assert page.tags["ResolutionUnit"].value == 3
            for tag in ("XResolution", "YResolution"):
                numerator, denominator = page.tags[tag].value
                assert 1e4 * denominator / numerator == pytest.approx(mpp * 2**level, rel=1e-6)
    with openslide.OpenSlide(path) as slide:
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(mpp, rel=1e-6)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(mpp, rel=1e-6)


def test_a_file_without_scale_claims_none(tmp_path):
    assemble(stage(tmp_path / "blocks", picture(40, 30)), path := tmp_path / "a.ome.tif", None, "a", "id")
    check_pyramid(path, Layout(40, 30), None)
    assert read_scale(path) is None
    with openslide.OpenSlide(path) as slide:
        assert "openslide.mpp-x" not in slide.properties
    with tifffile.TiffFile(path) as file:
        assert "PhysicalSize" not in file.ome_metadata


@pytest.mark.parametrize("name", ["Fall 7 µ é", "a <\"b\"> & 'c'", "two\nlines\x00", "raw \udcff byte"])
def test_any_name_makes_readable_ome_xml(tmp_path, name):
    notice = "Virtual stain <not> for diagnosis & more"
    assemble(
        stage(tmp_path / "blocks", picture(20, 20)), path := tmp_path / "a.ome.tif", 1.0, name, "id", notice
    )
    with tifffile.TiffFile(path) as file:
        image = ElementTree.fromstring(file.ome_metadata).find(f"{OME}Image")
    assert image.get("Name") == "".join(letter if letter.isprintable() else "?" for letter in name)
    assert image.find(f"{OME}Description").text == notice


def test_rationals_fit_their_32_bits():
    for value in (1e-3, 1 / 3, 1, 255, 39556.962025316454, 1e6 / 3, 1e7):
        numerator, denominator = np.frombuffer(bigtiff.ratios(282, value).data, "<u4").tolist()
        assert numerator / denominator == pytest.approx(value, rel=1e-6)


# The same result always


def test_bytes_do_not_depend_on_order_threads_or_place(tmp_path):
    pixels = picture(1500, 1300)
    first = stage(tmp_path / "first", pixels)
    assemble(first, tmp_path / "first.ome.tif", 0.5, "slide", "id")

    again = BlockStore(tmp_path / "elsewhere" / "again", first.layout, JPEG)
    with ThreadPoolExecutor(3) as pool:
        for row in (2, 0, 1):
            write_strip(again, 0, row, pixels[row * 512 : (row + 1) * 512], pool.map)
        for row in (1, 0):
            halve(BlockStore(tmp_path / "elsewhere" / "again", first.layout, JPEG), 1, row, pool.map)
    assemble(again, tmp_path / "elsewhere" / "other.ome.tif", 0.5, "slide", "id")
    assert files_in(first.folder) == files_in(again.folder)
    written = (tmp_path / "first.ome.tif").read_bytes()
    assert written == (tmp_path / "elsewhere" / "other.ome.tif").read_bytes()

    assemble(again, tmp_path / "other.ome.tif", 0.5, "slide", "another")
    differing = np.frombuffer((tmp_path / "other.ome.tif").read_bytes(), "u1") != np.frombuffer(written, "u1")
    assert 0 < differing.sum() <= 36  # the letters of a UUID


def test_a_tile_of_one_colour_is_encoded_once():
    for compression in (JPEG, LOSSLESS):
        glass = np.full((512, 512, 3), (243, 241, 244), np.uint8)
        data = compression.encode(glass)
        assert compression.encode(glass.copy()) is data  # the very object
        assert len(data) < 5000
        assert apart(compression.decode(data), glass) <= 1
        assert Compression("jpeg", 50).encode(glass) != data
        speck = glass.copy()
        speck[511, 511, 2] -= 60
        assert apart(compression.decode(compression.encode(speck)), speck) < 40


# Blocks that cannot be trusted


@pytest.fixture
def store(tmp_path):
    """A finished store of two levels, three blocks and two."""
    return stage(tmp_path / "blocks", picture(1500, 1300), identity="job")


def test_a_block_cut_off_anywhere_is_not_there(store):
    path = store.path(1, 0)
    whole = path.read_bytes()
    assert store.has(1, 0)
    for length in (0, 10, 60, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert not store.has(1, 0)
        with pytest.raises(SlideError, match="not there or not of this job"):
            store.tiles(1, 0)
    path.write_bytes(whole + b"more")
    assert not store.has(1, 0)
    path.write_bytes(whole)
    assert store.has(1, 0)


def test_a_block_whose_index_is_damaged_is_not_there(store):
    path = store.path(0, 1)
    whole = path.read_bytes()
    for place in (0, 20, 50, 60, 75):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not store.has(0, 1)


def test_a_damaged_tile_is_named_when_it_is_read(store, tmp_path):
    path, block = store.path(0, 1), store.tiles(0, 1)
    whole = bytearray(path.read_bytes())
    whole[block.starts[2] + 100] ^= 1
    path.write_bytes(whole)
    assert len(block[1]) == block.lengths[1]
    with pytest.raises(SlideError, match=r"00-000001.block: damaged in part 2; remove this file"):
        _ = block[2]
    with pytest.raises(SlideError, match="damaged in part 2"):
        assemble(store, tmp_path / "slide.ome.tif", 0.5, "slide", "id")
    assert not list(tmp_path.glob("*.tif"))
    assert not list(tmp_path.glob(".*"))


def test_a_block_of_anything_else_is_not_there(store, tmp_path):
    folder, layout = store.folder, store.layout
    others = [
        BlockStore(folder, layout, JPEG, "another job"),
        BlockStore(folder, layout, Compression(quality=80), "job"),
        BlockStore(folder, layout, LOSSLESS, "job"),
        BlockStore(folder, Layout(1500, 1299), JPEG, "job"),
        BlockStore(folder, Layout(1500, 1300, 256), JPEG, "job"),
    ]
    assert store.has(0, 0)
    assert BlockStore(folder, layout, JPEG, "job").has(0, 0)
    assert not any(other.has(0, 0) for other in others)
    store.path(0, 0).write_bytes(store.path(0, 1).read_bytes())  # the right job, another row
    assert not store.has(0, 0)


def test_a_block_without_its_half_counts_only_while_the_coarser_one_is_there(store):
    before = files_in(store.folder)
    assert all(store.has(level, row) for level, rows in ((0, 3), (1, 2)) for row in range(rows))
    assert (
        len(before[store.path(0, 0).name]) == sum(store.tiles(0, 0).lengths) + 48 + 8 * 4 + 4
    )  # no half left
    store.path(1, 0).unlink()
    assert [store.has(0, row) for row in range(3)] == [False, False, True]
    with pytest.raises(SlideError, match="its half is gone; run the same command again"):
        halve(store, 1, 0)
    pixels = picture(1500, 1300)
    for row in (0, 1):
        write_strip(store, 0, row, pixels[row * 512 : (row + 1) * 512])
    halve(store, 1, 0)
    assert files_in(store.folder) == before


def test_an_unfinished_store_makes_no_file(store, tmp_path):
    store.path(1, 1).unlink()
    with pytest.raises(SlideError, match=r"01-000001.block: not there"):
        assemble(store, tmp_path / "slide.ome.tif", 0.5, "slide", "id")
    assert [path.name for path in tmp_path.iterdir()] == ["blocks"]


def test_wrong_shapes_are_refused(store):
    with pytest.raises(ValueError, match="strip"):
        write_strip(store, 0, 0, picture(1500, 511))
    with pytest.raises(ValueError, match="tiles and half"):
        store.write(0, 0, [b"one"], np.zeros((256, 750, 3), np.uint8))
    with pytest.raises(ValueError, match="expected uint8"):
        JPEG.encode(np.zeros((512, 512, 3), np.float32))
    for sides in ((0, 5), (5, 0), (5, 5, 8), (5, 5, 100)):
        with pytest.raises(ValueError, match="Layout"):
            Layout(*sides)
    with pytest.raises(ValueError, match="micrometres"):
        assemble(store, "slide.ome.tif", math.nan, "slide", "id")


# Disks and memory


@pytest.fixture
def small_files():
    """No file may grow beyond 40,000 bytes: as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_block_that_the_disk_does_not_hold_is_told_in_one_line(tmp_path, small_files):
    store = BlockStore(tmp_path / "blocks", Layout(3000, 600), LOSSLESS)
    with pytest.raises(DataError, match=r"00-000000.block: cannot be written \(File too large\)$"):
        write_strip(store, 0, 0, picture(3000, 512))
    assert not list((tmp_path / "blocks").iterdir())


def test_a_slide_that_the_disk_does_not_hold_leaves_the_last_one(tmp_path, request):
    store = stage(tmp_path / "blocks", picture(600, 600), LOSSLESS)
    target = tmp_path / "slide.ome.tif"
    target.write_bytes(b"the last one")
    request.getfixturevalue("small_files")
    with pytest.raises(DataError, match=r"slide.ome.tif: cannot be written \(File too large\)$"):
        assemble(store, target, 0.5, "slide", "id")
    assert target.read_bytes() == b"the last one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blocks", "slide.ome.tif"]


def test_what_a_killed_run_left_is_removed(store, tmp_path):
    left, not_ours = tmp_path / ".slide.ome.tif.12345.part", tmp_path / ".slide2.ome.tif.1.part"
    left.write_bytes(b"half")
    not_ours.write_bytes(b"half")
    assemble(store, tmp_path / "slide.ome.tif", 0.5, "slide", "id")
    assert not left.exists()
    assert not_ours.exists()


def test_assembling_holds_a_tile_at_a_time(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    store = BlockStore(tmp_path / "blocks", Layout(4096, 4096), LOSSLESS)
    data = LOSSLESS.encode(noise)
    for level in range(3):
        for row in range(store.layout.rows(level)):
            half = np.zeros(store.layout.half(level, row), np.uint8)
            store.write(level, row, [data] * store.layout.columns(level), half)
    tracemalloc.start()
    assemble(store, tmp_path / "slide.ome.tif", 0.5, "slide", "id")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "slide.ome.tif").stat().st_size > 60e6
    assert peak < 4e6


# Looking at what was written


def test_a_pyramid_that_is_not_what_was_meant_is_told(store, tmp_path):
    path = tmp_path / "slide.ome.tif"
    assemble(store, path, 0.5, "slide", "id")
    check_pyramid(path, store.layout, 0.5)
    with pytest.raises(SlideError, match="OpenSlide sees 0.5 micrometres per pixel, expected 0.25"):
        check_pyramid(path, store.layout, 0.25)
    with pytest.raises(SlideError, match="OpenSlide sees 0.5 micrometres per pixel, expected None"):
        check_pyramid(path, store.layout, None)
    with pytest.raises(SlideError, match="tifffile sees levels"):
        check_pyramid(path, Layout(1500, 1302), 0.5)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(SlideError, match="cut off"):
        check_pyramid(path, store.layout, 0.5)
    path.write_bytes(b"no slide")
    with pytest.raises(SlideError, match="cannot be read back"):
        check_pyramid(path, store.layout, 0.5)


# OME-Zarr


def test_ome_zarr_holds_the_same_levels_with_their_places_in_micrometres(tmp_path):
    zarr = pytest.importorskip("zarr")
    store = stage(tmp_path / "blocks", picture(2101, 700))
    path = tmp_path / "slide.ome.zarr"
    export_zarr(store, path, 0.5, "slide", "not for diagnosis")
    export_zarr(store, path, 0.5, "slide", "not for diagnosis")  # replaces what is there
    assert sorted(one.name for one in tmp_path.iterdir()) == ["blocks", "slide.ome.zarr"]
    group = zarr.open_group(path, mode="r")
    (image,) = group.attrs["ome"]["multiscales"]
    assert group.attrs["ome"]["version"] == "0.5"
    assert group.attrs["miudiff"]["notice"] == "not for diagnosis"
    assert [axis["name"] for axis in image["axes"]] == ["c", "y", "x"]
    assert [axis.get("unit") for axis in image["axes"]] == [None, "micrometer", "micrometer"]
    for level, dataset in enumerate(image["datasets"]):
        array = group[dataset["path"]]
        assert apart(np.moveaxis(array[:], 0, -1), decoded(store, level)) == 0
        assert array.metadata.dimension_names == ("c", "y", "x")
        scale, shift = dataset["coordinateTransformations"]
        assert scale == {"type": "scale", "scale": [1, 0.5 * 2**level, 0.5 * 2**level]}
        # the middle of level 0's first 2**level pixels
        middle = 0.5 * np.arange(2**level).mean()
        assert shift == {"type": "translation", "translation": [0, middle, middle]}


def test_an_ome_zarr_that_the_disk_does_not_hold_leaves_nothing(tmp_path, request):
    pytest.importorskip("zarr")
    store = stage(tmp_path / "blocks", picture(600, 600), LOSSLESS)
    request.getfixturevalue("small_files")
    with pytest.raises(DataError, match=r"slide.ome.zarr: cannot be written \(File too large\)$"):
        export_zarr(store, tmp_path / "slide.ome.zarr", 0.5, "slide")
    assert [path.name for path in tmp_path.iterdir()] == ["blocks"]


def test_ome_zarr_takes_no_other_place(tmp_path):
    pytest.importorskip("zarr")
    store = stage(tmp_path / "blocks", picture(20, 20))
    (tmp_path / "notes").mkdir()
    with pytest.raises(DataError, match="notes: is there and no OME-Zarr image"):
        export_zarr(store, tmp_path / "notes", 0.5, "slide")
    assert (tmp_path / "notes").is_dir()
