"""Reading refuses what it cannot read right; writing is whole or nothing; the pure maps keep their word."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from miudiff.errors import DataError
from miudiff.images import (
    atomic,
    gradient_map,
    irregular,
    list_images,
    luma,
    read_image,
    read_scale,
    resize,
    to_gray,
    to_tensor,
    to_uint8,
    write_bytes,
    write_image,
)
from slide_files import edit_tag, tissue


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    """A smooth colour image, 48 x 64, so that JPEG keeps it."""
    y, x = np.mgrid[:48, :64]
    image = np.stack([120 + 2 * x, 200 - y, 90 + x + y], axis=-1)
    return image.clip(0, 255).astype(np.uint8)


def refusal(path: Path) -> str:
    """The one line with which `path` is refused; it begins with the path."""
    with pytest.raises(DataError) as caught:
        read_image(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def png(colour: int, depth: int, width: int, height: int, data: bytes) -> bytes:
    """A PNG file by its specification, for what Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


# What is read


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp", ".webp"])
def test_lossless_formats_give_back_what_was_written(tmp_path, pixels, suffix):
    path = tmp_path / f"a{suffix}"
    write_image(path, pixels)
    np.testing.assert_array_equal(read_image(path), pixels)


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".jpg", "JPEG"), (".tif", "TIFF"), (".webp", "WEBP"), (".png", "PNG")]
)
def test_the_ending_decides_the_format_that_is_written(tmp_path, pixels, suffix, kind):
    path = tmp_path / f"a{suffix}"
    write_image(path, pixels)
    with Image.open(path) as image:
        assert image.format == kind


def test_a_written_jpeg_keeps_colour_edges(tmp_path):
    # With chroma subsampling a red column on blue would bleed by far more.
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 2] = 200
    image[:, 10] = (200, 0, 0)
    write_image(tmp_path / "a.jpg", image)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - image).max() < 30


def test_content_decides_and_not_the_ending(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png", "JPEG", quality=95)
    assert np.abs(read_image(tmp_path / "a.png").astype(int) - pixels).mean() < 3


def test_opaque_rgba_is_read_as_rgb(tmp_path, pixels):
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.tif", opaque, photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_palette_is_resolved(tmp_path, pixels, suffix):
    image = Image.fromarray(pixels).quantize(32)
    image.save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"a{suffix}"), np.asarray(image.convert("RGB")))


def test_a_tiled_jpeg_ome_tiff_is_read_with_its_scale(tmp_path):
    y, x = np.mgrid[:300, :400]
    image = np.stack([x // 2, y // 2, (x + y) // 4], axis=-1).astype(np.uint8)
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm"}
    tifffile.imwrite(path, image, tile=(256, 256), compression="jpeg", photometric="rgb", metadata=metadata)
    assert np.abs(read_image(path).astype(int) - image).mean() < 3
    assert read_scale(path) == 0.25


def test_a_planar_tiff_is_read_as_rgb(tmp_path, pixels):
    planes = np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), pixels)


def test_a_ycbcr_jpeg_in_tiff_comes_out_as_rgb(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression="jpeg", quality=95)
    assert np.abs(read_image(tmp_path / "a.tif").astype(int) - pixels).mean() < 3


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_single_pixel_is_an_image(tmp_path, suffix):
    write_image(tmp_path / f"a{suffix}", np.array([[[1, 2, 3]]], np.uint8))
    assert read_image(tmp_path / f"a{suffix}").tolist() == [[[1, 2, 3]]]


# What is refused


@pytest.mark.parametrize("value", [0, 254])
def test_transparency_is_refused(tmp_path, pixels, value):
    alpha = np.full(pixels.shape[:2], 255, np.uint8)
    alpha[:24] = value
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "a.png")
    assert "50.00% of its pixels are transparent" in refusal(tmp_path / "a.png")


def test_a_transparent_colour_is_refused(tmp_path, pixels):
    key = tuple(int(value) for value in pixels[0, 0])
    Image.fromarray(pixels).save(tmp_path / "a.png", transparency=key)
    assert "transparent" in refusal(tmp_path / "a.png")


def test_a_palette_with_transparency_is_refused(tmp_path, pixels):
    Image.fromarray(pixels).quantize(8).save(tmp_path / "a.png", transparency=0)
    assert "transparent" in refusal(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_is_refused(tmp_path, pixels, mode):
    Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")
    assert "grey" in refusal(tmp_path / "a.png")


def test_a_grey_tiff_is_refused(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "a.tif", pixels[..., 0])
    assert "grey" in refusal(tmp_path / "a.tif")


def test_sixteen_bits_are_refused_in_every_format(tmp_path, pixels):
    deep = pixels.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", deep, photometric="rgb")
    Image.fromarray(deep[..., 0]).save(tmp_path / "grey.png")
    # Pillow reads this one as 8 bit without a word.
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    (tmp_path / "colour.png").write_bytes(png(2, 16, 64, 48, rows))
    for name in ("a.tif", "grey.png", "colour.png"):
        assert "16 bits a channel, expected 8" in refusal(tmp_path / name)


def test_other_colour_models_are_refused(tmp_path, pixels):
    image = Image.fromarray(pixels)
    image.convert("CMYK").save(tmp_path / "cmyk.jpg")
    image.convert("CMYK").save(tmp_path / "cmyk.tif")
    image.convert("LAB").save(tmp_path / "lab.tif")
    image.convert("YCbCr").save(tmp_path / "ycbcr.tif")
    for name in ("cmyk.jpg", "cmyk.tif", "lab.tif", "ycbcr.tif"):
        assert "expected RGB" in refusal(tmp_path / name)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "plain.tif", "deflate.tif", "tiled.tif", "strip.tif"])
def test_a_file_that_was_cut_off_is_refused(tmp_path, name, share):
    image = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    path = tmp_path / name
    if path.suffix == ".tif":
        tiled = {"tile": (256, 256), "compression": "jpeg"}
        options = {
            "deflate.tif": {"compression": "zlib"},
            "tiled.tif": tiled,
            "strip.tif": {"compression": "jpeg"},
        }
        tifffile.imwrite(path, image, photometric="rgb", **options.get(name, {}))
    else:
        write_image(path, image)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "damaged" in refusal(path) or "is not an image" in refusal(path)


def test_a_flipped_byte_in_a_png_is_noticed(tmp_path, pixels):
    path = tmp_path / "a.png"
    write_image(path, pixels)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "damaged" in refusal(path)


def test_several_frames_are_refused(tmp_path, pixels):
    first, second = Image.fromarray(pixels), Image.fromarray(255 - pixels)
    first.save(tmp_path / "a.png", save_all=True, append_images=[second])
    tifffile.imwrite(tmp_path / "a.tif", np.stack([pixels, pixels]), photometric="rgb")
    assert "2 frames" in refusal(tmp_path / "a.png")
    assert "expected one RGB image" in refusal(tmp_path / "a.tif")


def test_what_is_no_image_is_refused_by_what_it_is(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "slide.svs").write_bytes(b"II*\0")
    expected = {
        "empty.png": "the file is empty",
        "text.png": "is not an image",
        "folder.png": "is a folder",
        "slide.svs": "is a whole-slide format",
        "nothing.png": "cannot be read",
    }
    for name, message in expected.items():
        assert message in refusal(tmp_path / name)


# Damage that decoders paint over


def with_size(content: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header states another size."""
    at = next(i for i in range(len(content)) if content[i : i + 2] in (b"\xff\xc0", b"\xff\xc2")) + 5
    return content[:at] + struct.pack(">HH", height, width) + content[at + 4 :]


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"progressive": True}, {"restart_marker_blocks": 4}], ids=str
)
def test_a_jpeg_is_read_whole_and_refused_with_another_size_or_an_early_end(tmp_path, options):
    path = tmp_path / "a.jpg"
    Image.fromarray(tissue(160, 160)).save(path, quality=90, **options)
    content = path.read_bytes()
    np.testing.assert_array_equal(read_image(path), np.asarray(Image.open(path)))
    middle = len(content) * 3 // 5
    spoilt = [with_size(content, *size) for size in [(400, 160), (80, 160), (160, 300), (160, 96)]]
    spoilt += [content[:middle] + b"\xff\xd9", content[:middle] + b"\xff\xd9" + content[middle + 2 :]]
    spoilt += [content[:middle] + content[middle + 300 :]]
    for number, data in enumerate(spoilt):
        (tmp_path / f"{number}.jpg").write_bytes(data)
        assert "damaged" in refusal(tmp_path / f"{number}.jpg")


def test_a_png_with_valid_check_sums_and_half_its_rows_is_refused(tmp_path, pixels):
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    (tmp_path / "whole.png").write_bytes(png(2, 8, 64, 48, rows))
    (tmp_path / "half.png").write_bytes(png(2, 8, 64, 48, rows[: len(rows) // 2]))
    (tmp_path / "twice.png").write_bytes(png(2, 8, 64, 48, rows + rows))
    np.testing.assert_array_equal(read_image(tmp_path / "whole.png"), pixels)
    assert "give less than the" in refusal(tmp_path / "half.png")
    assert "give more than the" in refusal(tmp_path / "twice.png")


def test_a_bmp_whose_size_does_not_fit_its_bytes_is_refused(tmp_path, pixels):
    path = tmp_path / "a.bmp"
    write_image(path, pixels)
    content = path.read_bytes()
    for height in (20, 47, 49):
        path.write_bytes(content[:22] + struct.pack("<i", height) + content[26:])
        assert f"do not fit 64 x {height} pixels" in refusal(path)


@pytest.mark.parametrize("options", [{"quality": 80}, {"lossless": True}], ids=str)
def test_a_webp_that_lost_bytes_is_refused(tmp_path, options):
    path = tmp_path / "a.webp"
    Image.fromarray(tissue(200, 160)).save(path, **options)
    np.testing.assert_array_equal(read_image(path), np.asarray(Image.open(path)))
    content = path.read_bytes()
    middle = len(content) // 2
    for data in (content[:middle], content[:middle] + content[middle + 300 :]):
        path.write_bytes(data)
        assert "damaged" in refusal(path)


def test_a_lossy_webp_with_a_hole_is_refused(tmp_path):
    path = tmp_path / "a.webp"
    Image.fromarray(tissue(200, 160)).save(path, quality=90)
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(512) + content[middle + 512 :])
    assert "its WebP data are damaged" in refusal(path)


@pytest.mark.parametrize("compression", ["zlib", "lzw", "jpeg", "jpeg2000", "webp", None])
@pytest.mark.parametrize("what", ["TileOffsets", "TileByteCounts"])
def test_a_tiff_tile_without_a_place_or_a_length_is_refused(tmp_path, compression, what):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, tissue(160, 160), photometric="rgb", tile=(64, 64), compression=compression)
    edit_tag(path, what, 0, index=5)
    assert "some of its tiles have no data" in refusal(path)


@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "jpeg"])
@pytest.mark.parametrize(
    ("tag", "value"),
    [
        ("TileLength", 60), ("ImageWidth", 1), ("ImageWidth", 65535), ("ImageLength", 65535), ("ImageLength", 40), ("TileWidth", 16),
        ("TileLength", 1 << 15), ("TileLength", 0), ("PlanarConfiguration", 2), ("SamplesPerPixel", 4),
    ],
)  # fmt: skip
def test_a_tiff_whose_tags_do_not_agree_is_refused(tmp_path, compression, tag, value):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, tissue(160, 160), photometric="rgb", tile=(64, 64), compression=compression)
    edit_tag(path, tag, value)
    assert "TIFF" in refusal(path)


@pytest.mark.parametrize(
    ("tag", "value"), [("RowsPerStrip", 8), ("RowsPerStrip", 0), ("ImageLength", 90), ("ImageWidth", 47)]
)
@pytest.mark.parametrize("compression", [None, "zlib", "jpeg"])
def test_a_tiff_of_strips_whose_tags_do_not_agree_is_refused(tmp_path, compression, tag, value):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, tissue(128, 96), photometric="rgb", rowsperstrip=32, compression=compression)
    edit_tag(path, tag, value)
    assert "TIFF" in refusal(path)


def test_one_number_of_bits_for_three_colours_is_refused(tmp_path, pixels):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb")
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[0].tags["BitsPerSample"].offset
    content[at + 4 : at + 8] = struct.pack("<I", 1)
    path.write_bytes(content)
    assert "TIFF" in refusal(path) or "bits" in refusal(path)


def test_a_deflated_tile_of_more_bytes_than_its_size_is_refused(tmp_path, pixels):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", compression="zlib", rowsperstrip=48)
    with tifffile.TiffFile(path) as tiff:
        counts = tiff.pages[0].tags["StripByteCounts"]
        place = tiff.pages[0].dataoffsets[0]
    more = zlib.compress(bytes(1 << 26))
    path.write_bytes(path.read_bytes()[:place] + more)
    edit_tag(path, counts.name, len(more))
    assert "expected 9,216 by the tags" in refusal(path) or "damaged" in refusal(path)


def test_two_images_of_two_sizes_in_a_tiff_are_refused_and_a_thumbnail_is_not(tmp_path, pixels):
    for name, options in (("two.tif", {}), ("thumbnail.tif", {"subfiletype": 1})):
        with tifffile.TiffWriter(tmp_path / name) as writer:
            writer.write(pixels, photometric="rgb", metadata=None)
            writer.write(pixels[:20, :30].copy(), photometric="rgb", metadata=None, **options)
    assert "holds 2 images, expected one" in refusal(tmp_path / "two.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "thumbnail.tif"), pixels)


def test_formats_that_the_documentation_does_not_name_are_refused(tmp_path, pixels):
    for kind in ("GIF", "PPM", "TGA", "JPEG2000", "EPS"):
        Image.fromarray(pixels).save(tmp_path / "a.png", kind)
        assert "expected PNG, JPEG, BMP, WebP or TIFF" in refusal(tmp_path / "a.png")


def most_memory(work: Callable[[], object]) -> int:
    """MiB by which this process grows at most."""

    def peak() -> int:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) // 1024

    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
    except OSError:
        pytest.skip("the system does not tell the memory of a process")
    work()
    return peak() - before


def test_what_a_file_claims_takes_no_memory(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(with_size(content, 12_000, 12_000))
    (tmp_path / "a.png").write_bytes(png(2, 8, 12_000, 12_000, bytes(30_000)))
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression="zlib", tile=(64, 64))
    for tag in ("ImageWidth", "ImageLength", "TileWidth", "TileLength"):
        edit_tag(tmp_path / "a.tif", tag, 12_000)
    for name in ("a.jpg", "a.png", "a.tif"):
        assert most_memory(lambda name=name: refusal(tmp_path / name)) < 200


def test_ome_metadata_of_many_planes_take_no_time(tmp_path, pixels):
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, photometric="rgb", metadata={"axes": "YXS"})
    content = (tmp_path / "a.ome.tif").read_bytes()
    xml = content[content.index(b"<?xml") : content.index(b"</OME>") + 6]
    for size in (b'SizeT="1"', b'SizeZ="1"'):
        assert size in xml
    many = xml.replace(b'SizeT="1"', b'SizeT="99999999"')
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", description=many, metadata=None)
    assert "state 99,999,999 planes" in refusal(tmp_path / "a.tif") or "299,999,997" in refusal(
        tmp_path / "a.tif"
    )
    assert read_scale(tmp_path / "a.tif") is None


def test_a_file_is_looked_at_for_damage_once_and_again_when_it_changes(tmp_path, pixels, monkeypatch):
    from miudiff.formats import reading

    looked = []
    monkeypatch.setitem(reading.DAMAGE, "PNG", lambda content: looked.append(len(content)) or "")
    path = tmp_path / "a.png"
    write_image(path, pixels)
    for _ in range(3):
        np.testing.assert_array_equal(read_image(path), pixels)
    assert len(looked) == 1
    write_image(path, 255 - pixels)
    np.testing.assert_array_equal(read_image(path), 255 - pixels)
    assert len(looked) == 2


def test_what_is_no_regular_file_is_refused_and_left_out(tmp_path, pixels):
    write_image(tmp_path / "a.png", pixels)
    os.mkfifo(tmp_path / "b.png")
    (tmp_path / "c.tif").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / ".d.png")
    for name in ("b.png", "c.tif"):
        assert "is not a regular file" in refusal(tmp_path / name)
        assert read_scale(tmp_path / name) is None
    assert [path.name for path in list_images(tmp_path)] == ["a.png"]
    assert [path.name for path in irregular(tmp_path)] == ["b.png", "c.tif"]


# Scale


@pytest.mark.parametrize(("unit", "size"), [("µm", 0.5), ("nm", 500.0), ("mm", 0.0005)])
def test_the_scale_of_ome_tiff_is_in_micrometres(tmp_path, pixels, unit, size):
    metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeXUnit": unit}
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, photometric="rgb", metadata=metadata)
    assert read_scale(tmp_path / "a.ome.tif") == pytest.approx(0.5)


def test_a_tiff_resolution_in_centimetres_is_a_scale_and_one_in_inches_is_none(tmp_path, pixels):
    for name, unit, resolution in [
        ("cm", "CENTIMETER", 20000),
        ("print", "CENTIMETER", 118),
        ("inch", "INCH", 300),
    ]:
        options = {"resolution": (resolution, resolution), "resolutionunit": unit}
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="rgb", **options)
    scales = [read_scale(tmp_path / f"{name}.tif") for name in ("cm", "print", "inch")]
    assert scales == [pytest.approx(0.5), None, None]


@pytest.mark.parametrize("size", ["1e999", "nan", "-1", "0", "1e-300", "0.009", "20.1", "word"])
def test_a_size_that_no_microscope_has_is_no_scale(tmp_path, pixels, size):
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.123456789, "PhysicalSizeY": 0.123456789}
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, photometric="rgb", metadata=metadata)
    content = (tmp_path / "a.ome.tif").read_bytes()
    assert content.count(b"0.123456789") == 2
    written = size.rjust(11, "0") if size[0].isdigit() else size.ljust(11)
    (tmp_path / "a.ome.tif").write_bytes(content.replace(b"0.123456789", written.encode()))
    assert read_scale(tmp_path / "a.ome.tif") is None


def test_pixels_that_are_not_square_have_no_scale(tmp_path, pixels):
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 5.0}
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, photometric="rgb", metadata=metadata)
    with pytest.raises(DataError, match="expected square pixels"):
        read_scale(tmp_path / "a.ome.tif")


def test_dots_per_inch_and_damaged_headers_state_no_scale(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png", dpi=(72, 72))
    (tmp_path / "b.tif").write_bytes(b"II*\0nonsense")
    assert read_scale(tmp_path / "a.png") is None
    assert read_scale(tmp_path / "b.tif") is None


# Writing


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "deep" / "a.png"
    write_bytes(path, b"old")

    def interrupted() -> None:
        with atomic(path) as part:
            part.write_bytes(b"half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_an_unknown_ending_is_refused_before_anything_is_written(tmp_path, pixels):
    with pytest.raises(DataError, match=r"cannot write '\.gif' files"):
        write_image(tmp_path / "a.gif", pixels)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_told(tmp_path, pixels):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        write_image(tmp_path / "a.png", pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_listing_is_sorted_and_leaves_hidden_and_other_files_out(tmp_path):
    for name in ("b.PNG", "a.tif", ".hidden.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.tif", "b.PNG"]
    with pytest.raises(DataError, match="no images in it"):
        list_images(tmp_path / "folder.png")
    with pytest.raises(DataError, match="no such folder"):
        list_images(tmp_path / "nothing")


# Pure maps


def test_every_value_survives_the_way_to_a_tensor_and_back():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, 16, 16)
    assert (tensor.min().item(), tensor.max().item()) == (-1, 1)
    np.testing.assert_array_equal(to_uint8(tensor)[0], image)


def test_a_batch_keeps_its_order_and_what_is_beyond_the_range_is_clipped(pixels):
    images = [pixels, 255 - pixels]
    for before, after in zip(images, to_uint8(to_tensor(images)), strict=True):
        np.testing.assert_array_equal(after, before)
    assert to_uint8(torch.tensor([-3.0, 3.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2))[0].tolist() == [
        [[0] * 3, [255] * 3]
    ]


def test_luma_agrees_with_pillow_and_grey_has_three_equal_channels(pixels):
    grey = to_gray(to_tensor(pixels))
    expected = np.asarray(Image.fromarray(pixels).convert("L")).astype(int)
    assert np.abs(to_uint8(grey)[0][..., 0].astype(int) - expected).max() <= 1
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 0], grey[:, 2])
    torch.testing.assert_close(luma(grey), grey[:, :1])


def test_a_constant_image_has_the_least_gradient_and_reflection_adds_no_border():
    constant = torch.full((2, 1, 9, 7), 0.3)
    torch.testing.assert_close(gradient_map(constant), torch.full_like(constant, 1e-3))
    assert gradient_map(constant, padding="constant")[..., 0, 0].min() > 0.1


def test_the_gradient_of_a_ramp_is_twice_its_slope():
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(7.0), indexing="ij")
    slope = gradient_map((0.03 * x + 0.04 * y).expand(1, 1, 9, 7))[..., 1:-1, 1:-1]
    torch.testing.assert_close(slope, torch.full_like(slope, 0.1), atol=1e-5, rtol=0)


def test_the_gradient_ignores_an_added_constant_and_the_other_channels():
    images = torch.rand(2, 3, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gradient_map(images + 0.7), gradient_map(images))
    torch.testing.assert_close(gradient_map(images)[:, 1:2], gradient_map(images[:, 1:2]))


def test_shrinking_averages_areas_and_the_same_size_changes_nothing(pixels):
    assert resize(pixels, 48, 64) is pixels
    blocks = pixels.reshape(24, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(resize(pixels, 24, 32) - blocks).max() <= 1
    assert resize(pixels, 96, 128).shape == (96, 128, 3)
    np.testing.assert_array_equal(resize(np.full((5, 5, 3), 77, np.uint8), 11, 13), 77)


# Real files


def test_real_tiled_ome_tiffs_are_read_with_their_scale(shared):
    folder = shared / "data"
    pixels = read_image(folder / "he" / "os1_breast_crop.ome.tif")
    assert pixels.shape == (1101, 1101, 3)
    assert read_scale(folder / "he" / "os1_breast_crop.ome.tif") == pytest.approx(0.227, abs=0.001)
    assert read_scale(folder / "ihc" / "os2_ki67_olympus.ome.tif") == pytest.approx(0.346, abs=0.001)


def test_real_traps_are_read_or_refused(shared):
    formats = shared / "data" / "formats"
    assert read_image(formats / "histolab_no-tissue.png").shape == (512, 512, 3)
    assert read_image(formats / "boxes_single_level.tiff").shape == (250, 300, 3)
    assert "grey" in refusal(formats / "diagnostic_slide_thumb_grey.png")
    assert "whole-slide" in refusal(formats / "broken.svs")
    assert "16 bits" in refusal(shared / "data" / "copyleft_gpl" / "wsi" / "pathml_16bit.tif")


def test_bci_files_are_read_though_their_ending_is_wrong(shared):
    path = next((shared / "data" / "restricted" / "bci_her2" / "HE").iterdir())
    assert path.suffix == ".png"
    assert path.read_bytes()[:2] == b"\xff\xd8"
    assert read_image(path).shape == (1024, 1024, 3)
