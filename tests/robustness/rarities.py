"""Sound images that few programs write, and hostile ones, each made from a picture."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from image_files import Make, Pixels, Verdict, chunk, encode, interlaced, ome, png, rows, tiff

APP = b"\xff\xe5" + struct.pack(">H", 60_000) + bytes(59_998)  # a long segment of nobody's


def _pages(image: Pixels, second: Pixels, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(image, photometric="rgb", metadata=None)
        writer.write(second, photometric="rgb", metadata=None, **options)
    return buffer.getvalue()


def _subifds(image: Pixels) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, ome=True) as writer:
        writer.write(image, photometric="rgb", subifds=1, tile=(32, 32), compression="deflate")
        writer.write(np.ascontiguousarray(image[::2, ::2]), photometric="rgb", subfiletype=1, tile=(32, 32))
    return buffer.getvalue()


def written(tags: list[tuple[int, int, int, int]], data: bytes) -> bytes:
    """A TIFF of entries (code, type, count, value) and data that follow them."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def _one_strip(image: Pixels, data: bytes, width: int = 0, height: int = 0, **others: int) -> bytes:
    height, width = height or image.shape[0], width or image.shape[1]
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 2, 277: 3, 278: height, 279: len(data)}
    values |= {int(code[1:]): value for code, value in others.items()}
    start = 8 + 2 + 12 * (len(values) + 1) + 4
    return written([(code, 4, 1, value) for code, value in (values | {273: start}).items()], data)


def _palette(image: Pixels, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).quantize(64).save(buffer, kind)
    return buffer.getvalue()


def _opaque(image: Pixels) -> Pixels:
    return np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])


def _after_header(content: bytes, segment: bytes) -> bytes:
    return content[:2] + segment + content[2:]


def _rotated(image: Pixels) -> bytes:
    exif = Image.Exif()
    exif[0x112] = 6
    return encode(image, "JPEG", exif=exif)


RARITIES: dict[str, Make] = {
    "interlaced.png": lambda image, rng: interlaced(image),
    "pieces.png": lambda image, rng: png(image, zlib.compress(rows(image)), piece=61),
    "text.png": lambda image, rng: png(
        image, zlib.compress(rows(image)), chunk(b"tEXt", b"a\0" + b"b" * 9000)
    ),
    "tail.png": lambda image, rng: encode(image, "PNG") + rng.bytes(500),
    "palette.png": lambda image, rng: _palette(image, "PNG"),
    "opaque.png": lambda image, rng: encode(_opaque(image), "PNG"),
    "stored.png": lambda image, rng: encode(image, "PNG", compress_level=0),
    "jpeg named.png": lambda image, rng: encode(image, "JPEG", quality=93),
    "png named.jpg": lambda image, rng: encode(image, "PNG"),
    "tail.jpg": lambda image, rng: encode(image, "JPEG") + rng.bytes(700),
    "zeros after.jpg": lambda image, rng: encode(image, "JPEG") + bytes(4096),
    "segments.jpg": lambda image, rng: _after_header(
        encode(image, "JPEG"), APP + b"\xff\xff\xff\xfe\0\x04hi"
    ),
    "rotated.jpg": lambda image, rng: _rotated(image),
    "bad exif.jpg": lambda image, rng: encode(
        image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + rng.bytes(300)
    ),
    "short exif.jpg": lambda image, rng: encode(image, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0"),
    "rgb.jpg": lambda image, rng: encode(image, "JPEG", keep_rgb=True),
    "optimized.jpg": lambda image, rng: encode(image, "JPEG", optimize=True, quality=100, subsampling=1),
    "progressive with restarts.jpg": lambda image, rng: encode(
        image, "JPEG", progressive=True, restart_marker_rows=1, quality=40
    ),
    "half grey.jpg": lambda image, rng: encode(np.vstack([image, image * 0 + 128]), "JPEG"),
    "glass.jpg": lambda image, rng: encode(image * 0 + 243, "JPEG"),
    "narrow.jpg": lambda image, rng: encode(image[:, :5].copy(), "JPEG", progressive=True),
    "palette.bmp": lambda image, rng: _palette(image, "BMP"),
    "opaque.webp": lambda image, rng: encode(_opaque(image), "WEBP", lossless=True),
    "exif.webp": lambda image, rng: encode(image, "WEBP", quality=70, exif=b"Exif\0\0II*\0" + bytes(40)),
    "glass.webp": lambda image, rng: encode(image * 0 + 250, "WEBP", quality=80),
    "flat.webp": lambda image, rng: encode(image * 0 + 250, "WEBP", lossless=True),
    "palette.tif": lambda image, rng: _palette(image, "TIFF"),
    "opaque.tif": lambda image, rng: tiff(_opaque(image), extrasamples=["unassalpha"]),
    "whole strip.tif": lambda image, rng: _one_strip(image, image.tobytes(), t278=2**32 - 1),
    "even length.tif": lambda image, rng: _one_strip(image[:65, :65], image[:65, :65].tobytes() + b"\0"),
    "lzma.tif": lambda image, rng: tiff(image, compression="lzma"),
    "jpegxl.tif": lambda image, rng: tiff(image, compression="jpegxl", tile=(64, 64)),
    "png.tif": lambda image, rng: tiff(image, compression="png", tile=(64, 64)),
    "rgb jpeg.tif": lambda image, rng: tiff(image, compression="jpeg", tile=(48, 48)),
    "lossy webp.tif": lambda image, rng: tiff(image, compression="webp", compressionargs={"level": 80}),
    "lossy jpeg2000.tif": lambda image, rng: tiff(
        image, compression="jpeg2000", compressionargs={"level": 40}
    ),
    "glass.tif": lambda image, rng: tiff(image * 0 + 243, compression="jpeg2000", tile=(64, 64)),
    "thumbnail.tif": lambda image, rng: _pages(image, image[::4, ::4].copy(), subfiletype=1),
    "pyramid.ome.tif": lambda image, rng: _subifds(image),
}


def _entities(image: Pixels) -> bytes:
    names = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(9))
    xml = f'<!DOCTYPE OME [<!ENTITY a0 "lol">{names}]><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    return tiff(image, description=f'<?xml version="1.0"?>{xml}<Image>&a9;</Image></OME>')


ZEROS = zlib.compress(bytes(64 << 20), 9)  # 64 MiB in 64 KiB
BOMB = zlib.compress(bytes(256 << 20), 9)
ATTACKS: dict[str, tuple[Verdict, Make]] = {
    "half the rows.png": ("refuse", lambda i, r: png(i, zlib.compress(rows(i[:48])))),
    "twice the rows.png": ("refuse", lambda i, r: png(i, zlib.compress(rows(np.vstack([i, i]))))),
    "claims.png": ("refuse", lambda i, r: png(i, zlib.compress(rows(i)), size=(12_000, 12_000))),
    "claims more.png": ("refuse", lambda i, r: png(i, zlib.compress(rows(i)), size=(2**31 - 1, 2**31 - 1))),
    "no size.png": ("refuse", lambda i, r: png(i, zlib.compress(rows(i)), size=(0, 96))),
    "overrun.png": ("refuse", lambda i, r: png(i, ZEROS)),
    "text bomb.png": ("either", lambda i, r: png(i, zlib.compress(rows(i)), chunk(b"zTXt", b"a\0\0" + BOMB))),
    "profile bomb.png": ("either", lambda i, r: png(i, zlib.compress(rows(i)), chunk(b"iCCP", b"a\0\0" + BOMB))),
    "no end.png": ("refuse", lambda i, r: encode(i, "PNG")[:-12]),
    "deep.png": ("refuse", lambda i, r: imagecodecs.png_encode(i.astype(np.uint16) * 257)),
    "grey.png": ("refuse", lambda i, r: encode(i[..., 0].copy(), "PNG")),
    "cmyk.jpg": ("refuse", lambda i, r: _cmyk(i)),
    "gif named.png": ("refuse", lambda i, r: _palette(i, "GIF")),
    "postscript.png": ("refuse", lambda i, r: encode(i, "EPS")),
    "empty.png": ("refuse", lambda i, r: b""),
    "one byte.jpg": ("refuse", lambda i, r: b"\xff"),
    "text.tif": ("refuse", lambda i, r: b"not an image" * 50),
    "noise.png": ("refuse", lambda i, r: b"\x89PNG\r\n\x1a\n" + r.bytes(3000)),
    "noise.jpg": ("refuse", lambda i, r: b"\xff\xd8\xff\xe0" + r.bytes(3000)),
    "noise.tif": ("refuse", lambda i, r: b"II*\0" + r.bytes(3000)),
    "noise.webp": ("refuse", lambda i, r: b"RIFF" + r.bytes(4) + b"WEBP" + r.bytes(3000)),
    "noise.bmp": ("refuse", lambda i, r: b"BM" + r.bytes(3000)),
    "float.tif": ("refuse", lambda i, r: tiff(i.astype(np.float32))),
    "deep.tif": ("refuse", lambda i, r: tiff(i.astype(np.uint16))),
    "grey.tif": ("refuse", lambda i, r: tiff(i[..., 0].copy(), photometric="minisblack")),
    "inverted.tif": ("refuse", lambda i, r: tiff(i[..., 0].copy(), photometric="miniswhite")),
    "two pages.tif": ("refuse", lambda i, r: _pages(i, i[::-1].copy())),
    "two sizes.tif": ("refuse", lambda i, r: _pages(i, i[:50, :40].copy())),
    "transparent.tif": ("refuse", lambda i, r: tiff(np.dstack([i, i[..., :1]]), extrasamples=["unassalpha"])),
    "lab.tif": ("refuse", lambda i, r: tiff(i, photometric="cielab")),
    "claims.tif": ("refuse", lambda i, r: _one_strip(i, i.tobytes(), 12_000, 12_000)),
    "claims more.tif": ("refuse", lambda i, r: _one_strip(i, i.tobytes(), 60_000, 60_000)),
    "overrun.tif": ("refuse", lambda i, r: _one_strip(i, ZEROS, t259=8)),
    "deflate bomb.tif": ("refuse", lambda i, r: _one_strip(i, ZEROS, 60_000, 60_000, t259=8)),
    "no rows.tif": ("refuse", lambda i, r: _one_strip(i, i.tobytes(), t278=0)),
    "entities.ome.tif": ("either", lambda i, r: _entities(i)),
    "planes.ome.tif": ("either", lambda i, r: ome(i, counts='SizeC="3" SizeT="99999999" SizeZ="1"')),
    "negative planes.ome.tif": ("either", lambda i, r: ome(i, counts='SizeC="3" SizeT="-1" SizeZ="1"')),
    **{
        f"scale {value}.ome.tif": ("either", lambda i, r, value=value: ome(i, f'PhysicalSizeX="{value}" PhysicalSizeY="{value}"'))
        for value in ("1e999", "nan", "-1", "1e-300", "e", "0", "1e9")
    },
}  # fmt: skip


def _cmyk(image: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert("CMYK").save(buffer, "JPEG")
    return buffer.getvalue()
