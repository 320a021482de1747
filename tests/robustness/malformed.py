"""Malformed images by the hundred, made from a seed: damaged, with edited tags, unusual, hostile."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import tifffile
from PIL import Image

from image_files import Case, Pixels, Random, Verdict, encode, ome, picture, tiff
from rarities import ATTACKS, RARITIES

DAMAGE = ("cut", "lost", "hole", "noise", "flips", "flip", "doubled")
LENGTH = ("cut", "lost", "doubled")  # of the damage, what changes the length
# What of it a format shows for certain; a JPEG shows the rest nearly always, every other may not.
SHOWN: dict[str, tuple[str, ...]] = {
    "png": DAMAGE, "deflate": DAMAGE, "jpeg": ("cut",), "raw": ("cut",), "bmp": LENGTH,
    "webp lossy": ("cut",), "webp": ("cut",), "jpeg 2000": ("cut", "lost"), "lzw": ("cut",), "zstd": ("cut",),
    "packbits": ("cut",),
}  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A sound file: what it is compressed by, and the pixels that another library reads from it."""

    name: str
    kind: str
    content: bytes
    pixels: Pixels


def bases(rng: Random) -> list[Base]:
    """A sound file of each kind, of a picture, sizes and qualities of this seed."""
    image = picture(rng, int(rng.integers(100, 180)), int(rng.integers(100, 180)))
    quality, tile = int(rng.integers(60, 96)), (int(rng.choice([32, 48, 64])),) * 2
    some: list[tuple[str, str, bytes]] = [
        ("a.png", "png", encode(image, "PNG")),
        ("baseline.jpg", "jpeg", encode(image, "JPEG", quality=quality, subsampling=int(rng.integers(3)))),
        ("progressive.jpg", "jpeg", encode(image, "JPEG", quality=quality, progressive=True)),
        ("restarts.jpg", "jpeg", encode(image, "JPEG", quality=quality, restart_marker_blocks=5)),
        ("a.bmp", "bmp", encode(image, "BMP")),
        ("lossy.webp", "webp lossy", encode(image, "WEBP", quality=quality)),
        ("lossless.webp", "webp", encode(image, "WEBP", lossless=True)),
        ("raw.tif", "raw", tiff(image, rowsperstrip=16)),
        ("planes.tif", "raw", tiff(np.moveaxis(image, -1, 0).copy(), planarconfig="separate", tile=tile)),
        ("deflate.tif", "deflate", tiff(image, compression="deflate", tile=tile)),
        ("differences.tif", "deflate", tiff(image, compression="deflate", predictor=2, rowsperstrip=24)),
        ("big.tif", "deflate", tiff(image, compression="deflate", tile=tile, bigtiff=True)),
        ("motorola.tif", "deflate", tiff(image, compression="deflate", tile=tile, byteorder=">")),
        ("lzw.tif", "lzw", tiff(image, compression="lzw", tile=tile)),
        ("zstd.tif", "zstd", tiff(image, compression="zstd", tile=tile)),
        ("packbits.tif", "packbits", tiff(image, compression="packbits", rowsperstrip=8)),
        ("jpeg.tif", "jpeg", tiff(image, compression="jpeg", photometric="ycbcr", tile=tile)),
        ("strips.tif", "jpeg", tiff(image, compression="jpeg", photometric="ycbcr", rowsperstrip=32)),
        ("webp.tif", "webp", tiff(image, compression="webp", tile=tile)),
        ("jpeg2000.tif", "jpeg 2000", tiff(image, compression="jpeg2000", tile=tile)),
        ("a.ome.tif", "deflate", ome(image, tile=tile)),
    ]  # fmt: skip
    return [Base(name, kind, content, _decoded(name, content)) for name, kind, content in some]


def _decoded(name: str, content: bytes) -> Pixels:
    if name.endswith(".tif"):
        array = tifffile.imread(io.BytesIO(content))
        return np.moveaxis(array, 0, -1) if array.shape[0] == 3 else array
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def cases(rng: Random, times: int) -> list[Case]:
    """All kinds of malformed images; each damage `times` times."""
    found = bases(rng)
    made = [Case(f"sound {base.name}", base.content, "read", base.pixels) for base in found]
    for base in found:
        for how in DAMAGE:
            for number in range(times):
                content = damaged(rng, base.content, how)
                made.append(
                    Case(f"{how} {number} {base.name}", content, _verdict(base.kind, how), base.pixels)
                )
        if base.name.endswith(".tif"):
            made += tags(rng, base, 12 * times)
            made += missing_tiles(rng, base)
        if base.name.endswith(".jpg"):
            made += resized_jpegs(rng, base, times)
    return [*made, *unusual(rng), *wrong(rng)]


def _verdict(kind: str, how: str) -> Verdict:
    if how in SHOWN[kind]:
        return "whole"
    if kind == "jpeg":
        return "unseen" if how == "flip" else "likely"
    return "unseen"


def damaged(rng: Random, content: bytes, how: str) -> bytes:
    """The content with damage of a kind at a place that the generator draws."""
    data, size = bytearray(content), len(content)
    span = min(int(rng.integers(200, 600)), size // 4)
    at = int(rng.integers(size // 5, size - span))
    if how == "cut":
        return content[: int(rng.integers(1, size - 8))]
    if how == "lost":
        del data[at : at + span]
    elif how == "doubled":
        data[at:at] = content[at : at + span]
    elif how == "hole":
        data[at : at + span] = bytes(span)
    elif how == "noise":
        data[at : at + span] = rng.bytes(span)
    else:
        for place in rng.integers(size // 5, size, 32 if how == "flips" else 1):
            data[place] ^= 1 << int(rng.integers(8))
    return bytes(data)


def resized_jpegs(rng: Random, base: Base, times: int) -> Iterator[Case]:
    """A JPEG whose header states another size, or which ends early and says so."""
    content = base.content
    at = next(i for i in range(len(content)) if content[i : i + 2] in (b"\xff\xc0", b"\xff\xc2")) + 5
    height, width = struct.unpack(">HH", content[at : at + 4])
    for number in range(times):
        blocks = 16 * int(rng.integers(2, 5))
        for what, size in (
            ("taller", (height + blocks, width)), ("shorter", (height - blocks, width)),
            ("wider", (height, width + blocks)), ("narrower", (height, width - blocks)),
        ):  # fmt: skip
            changed = content[:at] + struct.pack(">HH", *size) + content[at + 4 :]
            yield Case(f"{what} {number} {base.name}", changed, "likely", base.pixels)
        end = int(rng.integers(len(content) // 2, len(content) - 100))
        yield Case(f"ended {number} {base.name}", content[:end] + b"\xff\xd9", "likely", base.pixels)
        marked = content[:end] + b"\xff\xd9" + content[end + 2 :]
        yield Case(f"end within {number} {base.name}", marked, "likely", base.pixels)
    for side in (12_000, 65_000):
        bomb = content[:at] + struct.pack(">HH", side, side) + content[at + 4 :]
        yield Case(f"claims {side} {base.name}", bomb, "refuse")
    yield Case(f"no height {base.name}", content[:at] + bytes(2) + content[at + 2 :], "refuse")


# --- TIFF tags ---


@dataclass(frozen=True)
class Tag:
    """Where an entry of the first page lies, and what it says."""

    code: int
    at: int
    kind: int
    count: int


def directory(content: bytes) -> tuple[list[Tag], str, int]:
    """Entries of the first page, the byte order, and the bytes of a count: 4, or 8 in a BigTIFF."""
    order = "<" if content[:2] == b"II" else ">"
    big = struct.unpack(order + "H", content[2:4])[0] == 43
    start = struct.unpack(order + ("Q" if big else "I"), content[8:16] if big else content[4:8])[0]
    number = struct.unpack(order + ("Q" if big else "H"), content[start : start + (8 if big else 2)])[0]
    wide, entry = (8, 20) if big else (4, 12)
    found = []
    for i in range(number):
        at = start + (8 if big else 2) + entry * i
        code, kind = struct.unpack(order + "HH", content[at : at + 4])
        count = struct.unpack(order + ("Q" if big else "I"), content[at + 4 : at + 4 + wide])[0]
        found.append(Tag(code, at, kind, count))
    return found, order, wide


WIDTH, LENGTH_TAG, COMPRESSION, PHOTOMETRIC, OFFSETS, PREDICTOR = 256, 257, 259, 262, (273, 324), 317
TILE = (278, 322, 323)  # rows of a strip, width and length of a tile
PLAIN = (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 322, 323, 324, 325, 338, 339)


def tags(rng: Random, base: Base, times: int) -> Iterator[Case]:
    """Values, counts and types of tags, edited."""
    entries, order, wide = directory(base.content)
    entries = [entry for entry in entries if entry.code in PLAIN]
    height, width = base.pixels.shape[:2]
    for number in range(times):
        tag = entries[int(rng.integers(len(entries)))]
        data, what = bytearray(base.content), str(rng.choice(["value", "value", "count", "type"]))
        verdict: Verdict = "whole"
        if what == "type":
            data[tag.at + 2 : tag.at + 4] = struct.pack(order + "H", int(rng.choice([0, 2, 7, 99])))
        elif what == "count":
            value = int(rng.choice([0, 1, 2, 2**20, 2**31 - 1]))
            data[tag.at + 4 : tag.at + 4 + wide] = value.to_bytes(wide, "little" if order == "<" else "big")
        else:
            size = {1: 1, 3: 2, 4: 4, 16: 8}.get(tag.kind, 4)
            drawn = (0, 1, 2, 5, 7, 15, 255, 65535, 2**31 - 1, height - 1, width + 1, height + 64, width - 64)
            value = int(rng.choice(drawn)) % (1 << 8 * size)
            place = tag.at + 4 + wide
            data[place : place + size] = value.to_bytes(size, "little" if order == "<" else "big")
            verdict = _edited(base, tag, value)
        yield Case(f"{what} {tag.code} {number} {base.name}", bytes(data), verdict, base.pixels)


def _edited(base: Base, tag: Tag, value: int) -> Verdict:
    """Whether another value of a tag shows."""
    jpeg = base.kind == "jpeg"
    if tag.code in (WIDTH, LENGTH_TAG) and base.name not in ("raw.tif", "differences.tif", "packbits.tif"):
        return "unseen"  # the border of the last tiles is filling, and how much of it no tile says
    if tag.code == PREDICTOR or (tag.code == PHOTOMETRIC and jpeg):
        return "unseen"  # the same data, said to mean something else
    if tag.code in OFFSETS and base.kind in ("raw", "lzw", "zstd", "packbits"):
        return "unseen"  # other bytes of the file, taken for samples
    return "whole"


def missing_tiles(rng: Random, base: Base) -> Iterator[Case]:
    """A tile without a place, or without a length."""
    with tifffile.TiffFile(io.BytesIO(base.content)) as file:
        page, order = file.pages[0], file.byteorder
        found = {
            code: (tag.valueoffset, {3: 2, 4: 4, 16: 8}[int(tag.dtype)], tag.count)
            for code in (*OFFSETS, 279, 325)
            if (tag := page.tags.get(code)) is not None
        }
    for code, (start, size, count) in found.items():
        at = start + size * int(rng.integers(count))
        data = base.content[:at] + bytes(size) + base.content[at + size :]
        yield Case(f"no {'place' if code in OFFSETS else 'length'} {base.name}", data, "refuse")
        if code in (279, 325):
            fewer = struct.pack(order + {2: "H", 4: "I", 8: "Q"}[size], 3)
            yield Case(
                f"short tile {base.name}", base.content[:at] + fewer + base.content[at + size :], "refuse"
            )


# --- sound, and unusual ---


def unusual(rng: Random) -> Iterator[Case]:
    """Sound files that few programs write."""
    image = picture(rng, int(rng.integers(70, 130)), int(rng.integers(70, 130)))
    for name, make in RARITIES.items():
        content = make(image, rng)
        yield Case(f"rare {name}", content, "read", _reference(name, content))


def _reference(name: str, content: bytes) -> Pixels:
    if name.endswith(".tif") and "palette" not in name:
        array = tifffile.imread(io.BytesIO(content), key=0)
        array = np.moveaxis(array, 0, -1) if array.shape[0] == 3 else array
        return array[..., :3]
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def wrong(rng: Random) -> Iterator[Case]:
    """Files that are no image of a section, and files that attack."""
    image = picture(rng, 96, 96)
    for name, (verdict, make) in ATTACKS.items():
        yield Case(f"attack {name}", make(image, rng), verdict)
