"""Reading refuses what it cannot read right; writing is whole or nothing; the pure maps keep their word."""

from __future__ import annotations

import struct
import zlib
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
