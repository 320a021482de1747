"""Whole slides through trivial stainers: the same pixels as in one piece, the same bytes whatever interrupts, and nothing invented."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile

import miudiff.slides.runner as runner_module
from miudiff.errors import DataError, MiudiffError, SlideError
from miudiff.noise import NoiseKey
from miudiff.slides.blocks import Encoder
from miudiff.slides.encoding import Compression
from miudiff.slides.frame import Frame, frame_of
from miudiff.slides.ome_tiff import assemble
from miudiff.slides.overview import TissueMap
from miudiff.slides.pyramid import BlockStore, Layout
from miudiff.slides.reader import open_slide
from miudiff.slides.regions import read_regions
from miudiff.slides.runner import Here, Runner
from miudiff.slides.sight import HATCH, OUTSIDE, Rectangle, Sight, _rectangles
from miudiff.tiling import over_tiles
from slide_run import GRID, Grid, PlaceStainer, make_slide, paint, translate


@pytest.fixture(scope="module")
def slide_file(tmp_path_factory):
    return make_slide(tmp_path_factory.mktemp("slide") / "he.tif", 700, 1100)


def frame(width, height, **changes):
    return Frame(width, height, changes.pop("columns", width), changes.pop("rows", height), *GRID)


def result_of(path):
    return tifffile.imread(path, series=0, level=0)


def test_a_slide_is_stained_as_in_one_piece(slide_file, tmp_path):
    out = translate(slide_file, tmp_path)
    whole = over_tiles(paint(700, 1100), PlaceStainer().one, GRID[0], GRID[1], GRID[2])
    assert np.array_equal(result_of(out), whole)


def test_at_another_scale_the_result_lies_on_the_slides_own_grid(slide_file, tmp_path):
    out = translate(slide_file, tmp_path, mpp=0.5, model_mpp=1.0, stainer=PlaceStainer(steps=1))
    he, ihc = paint(700, 1100).astype(float), result_of(out).astype(float)
    assert ihc.shape == he.shape
    # the smooth field survives halving and bicubic growth; a shift by a pixel would not
    difference = np.abs(ihc - (255 - he)).mean()
    shifted = np.abs(ihc[:, 1:] - (255 - he[:, :-1])).mean()
    assert difference < 0.5 < shifted


@pytest.mark.parametrize("group", [1, 3, 50])
def test_the_bytes_do_not_depend_on_what_is_read_together(slide_file, tmp_path, group, monkeypatch):
    first = translate(slide_file, tmp_path / "a", mpp=0.4, model_mpp=1.0)
    monkeypatch.setattr(runner_module, "GROUP", group)
    other = translate(slide_file, tmp_path / "b", mpp=0.4, model_mpp=1.0)
    assert first.read_bytes() == other.read_bytes()


def test_the_bytes_do_not_depend_on_the_order_in_which_windows_are_stained(slide_file, tmp_path):
    class Backwards(Here):
        def __call__(self, sight, groups):
            listed = list(groups)
            results = list(super().__call__(sight, listed[::-1]))
            yield from reversed(results)

    first = translate(slide_file, tmp_path / "a")
    other = translate(slide_file, tmp_path / "b", engine=Backwards(PlaceStainer(), NoiseKey(0, "slide")))
    assert first.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("batch", [3, 6, 16, 64])
def test_batches_are_filled_from_row_to_row_and_the_bytes_are_the_same(slide_file, tmp_path, batch):
    """A stainer that asks for several windows, and for some more, before it gives the first."""

    class Batched(PlaceStainer):
        def __init__(self):
            super().__init__()
            self.batch, self.sizes = batch, []

        def stream(self, windows):
            upcoming, held = iter(windows), []
            while now := list(islice(upcoming, batch)):
                self.sizes.append(len(now))
                yield from held
                held = self.stain(*zip(*now))
            yield from held

    stainer = Batched()
    first = translate(slide_file, tmp_path / "a")
    other = translate(slide_file, tmp_path / "b", stainer=stainer)
    assert first.read_bytes() == other.read_bytes()
    assert all(size == batch for size in stainer.sizes[:-1])
    assert sum(stainer.sizes) == 5 * 8
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_what_is_read_ahead_ends_with_a_stainer_that_fails(slide_file, tmp_path):
    with pytest.raises(KeyboardInterrupt) as caught:
        translate(slide_file, tmp_path, stop_after=3)
    assert caught.value.__traceback__  # which holds what was under way
    deadline = time.monotonic() + 10
    while any(thread.name.startswith("ahead") for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("after", [0, 1, 7, 11])
def test_stopped_anywhere_and_started_again_it_ends_in_the_same_bytes(slide_file, tmp_path, after):
    whole = translate(slide_file, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        translate(slide_file, tmp_path / "cut", stop_after=after)
    stainer = PlaceStainer()
    again = translate(slide_file, tmp_path / "cut", stainer=stainer)
    assert again.read_bytes() == whole.read_bytes()
    done_before = after - after % len(Frame(1100, 700, 1100, 700, *GRID).lefts)
    assert stainer.count == 5 * 8 - done_before  # at most the row that was under way is done again


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path):
    source = make_slide(tmp_path / "he.tif", 700, 1100)
    whole = translate(source, tmp_path / "whole").read_bytes()
    folder = tmp_path / "killed"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(
            (str(Path(__file__).parent.parent / "src"), str(Path(__file__).parent))
        ),
        "OMP_NUM_THREADS": "1",
    }
    kills = 0
    for delay in (0.3, 0.6, 0.9):
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("slide_run.py")), str(source), str(folder)],
            env=environment,
        )
        deadline = time.monotonic() + 60
        while (
            not list(folder.glob("**/row-*.raw")) and process.poll() is None and time.monotonic() < deadline
        ):
            time.sleep(0.01)
        time.sleep(delay)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        if (folder / "out.ome.tif").exists():
            break
    assert kills
    assert translate(source, folder).read_bytes() == whole


def spoiling(after, spoil):
    """A stainer that does something to the work folder before window number `after`."""

    class Spoiling(PlaceStainer):
        def stain(self, pieces, keys):
            if self.count <= after < self.count + len(pieces):
                spoil()
            return super().stain(pieces, keys)

    return Spoiling()


@pytest.mark.parametrize("after", [9, 25, 39])
def test_a_folder_that_is_removed_in_mid_job_ends_it_in_one_line(slide_file, tmp_path, after):
    def remove():  # a thread that writes into it at the same moment may keep it from going at once
        while (tmp_path / "out").exists():
            shutil.rmtree(tmp_path / "out", ignore_errors=True)

    stainer = spoiling(after, remove)
    with pytest.raises(MiudiffError, match="run the same command again"):
        translate(slide_file, tmp_path / "out", stainer=stainer)
    whole = translate(slide_file, tmp_path / "whole")
    assert translate(slide_file, tmp_path / "out").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("how", ["cut", "zeroed", "removed", "noise"])
@pytest.mark.parametrize("after", [17, 33])
def test_a_row_that_is_damaged_in_mid_job_never_gets_into_the_result(slide_file, tmp_path, how, after):
    whole = translate(slide_file, tmp_path / "whole").read_bytes()

    def spoil():
        for path in (tmp_path / "out" / "w" / "rows").glob("row-*.raw"):
            with contextlib.suppress(FileNotFoundError):  # it was done with in this moment
                damage_file(path, how)

    try:
        translate(slide_file, tmp_path / "out", stainer=spoiling(after, spoil))
    except MiudiffError as error:
        assert "run the same command again" in str(error)  # noqa: PT017, it may also end well
    assert translate(slide_file, tmp_path / "out").read_bytes() == whole


def test_a_job_that_fails_leaves_no_thread_at_work(slide_file, tmp_path):
    """Held by the error's traceback, reading that is not ended is ended by the garbage collector, in any thread: a deadlock."""

    def remove():
        shutil.move(tmp_path / "out", tmp_path / "elsewhere")

    before = set(threading.enumerate())
    with pytest.raises(MiudiffError) as held:
        translate(slide_file, tmp_path / "out", stainer=spoiling(17, remove))
    assert [thread.name for thread in set(threading.enumerate()) - before] == []
    assert held.tb


@pytest.mark.parametrize("how", ["cut", "zeroed", "removed", "noise"])
def test_a_row_that_is_damaged_between_two_runs_is_stained_anew(slide_file, tmp_path, how):
    whole = translate(slide_file, tmp_path / "whole").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        translate(slide_file, tmp_path / "cut", stop_after=20)
    rows = list((tmp_path / "cut" / "w" / "rows").glob("row-*.raw"))
    assert rows
    for path in rows:
        damage_file(path, how)
    assert translate(slide_file, tmp_path / "cut").read_bytes() == whole


def damage_file(path, how):
    """Cut short, filled with zeros of the same length, removed, or with some bytes changed."""
    size = path.stat().st_size
    if how == "cut":
        os.truncate(path, size // 2)
    elif how == "zeroed":
        path.write_bytes(bytes(size))
    elif how == "removed":
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.seek(size * 2 // 3)
            file.write(b"noise")


@pytest.mark.parametrize("level", [0, 1])
def test_a_block_that_is_gone_is_made_again_whatever_was_made_from_it(slide_file, tmp_path, level):
    whole = translate(slide_file, tmp_path).read_bytes()
    (tmp_path / "out.ome.tif").unlink()
    (tmp_path / "w" / "blocks" / f"{level:02d}-000000.block").unlink()
    assert translate(slide_file, tmp_path).read_bytes() == whole


def test_glass_is_not_stained_and_stays_as_it_is(slide_file, tmp_path):
    share = np.zeros((70, 110), np.uint8)
    share[:, 55:] = 255
    stainer = PlaceStainer()
    out = translate(slide_file, tmp_path, glass=TissueMap(share, 10, 10), stainer=stainer)
    he = paint(700, 1100)
    assert np.array_equal(result_of(out)[:, 565:], he[:, 565:])
    whole = over_tiles(he, PlaceStainer().one, *GRID)
    assert np.array_equal(result_of(out)[:, :545], whole[:, :545])
    assert stainer.count < 5 * 8


def test_a_region_is_stained_as_the_whole_slide_would_be_and_the_rest_is_left_out(slide_file, tmp_path):
    (tmp_path / "roi.geojson").write_text(
        '{"type": "Polygon", "coordinates": [[[100, 200], [420, 200], [420, 500], [100, 500], [100, 200]]]}'
    )
    regions = read_regions(tmp_path / "roi.geojson", 1100, 700)
    stainer = PlaceStainer()
    out = result_of(translate(slide_file, tmp_path, regions=regions, stainer=stainer))
    whole = over_tiles(paint(700, 1100), PlaceStainer().one, *GRID)
    assert np.array_equal(out[200:500, 100:420], whole[200:500, 100:420])
    outside = np.ones((700, 1100), bool)
    outside[200:500, 100:420] = False
    assert (out[outside] == OUTSIDE).all()
    assert stainer.count < 5 * 8


def damaged(folder, x=300, y=300):
    """The slide with the tile over (x, y) destroyed."""
    path = make_slide(folder / "damaged.tif", 700, 1100)
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        index = y // 256 * -(-1100 // 256) + x // 256
        at, length = page.dataoffsets[index], page.databytecounts[index]
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * length)
    return path


def test_a_region_that_cannot_be_read_stops_the_job_and_is_named(tmp_path):
    path = damaged(tmp_path)
    with pytest.raises(SlideError, match=r"damaged\.tif: the region \d+, \d+, .* cannot be read") as caught:
        translate(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "out.ome.tif").exists()


def test_a_region_that_cannot_be_read_is_hatched_when_asked_for(tmp_path):
    path = damaged(tmp_path)
    out = translate(path, tmp_path / "out", mark=True)
    pixels = result_of(out)
    hatched = np.isin(pixels[256:512, 256:512], HATCH).all(-1)
    assert hatched.all()
    # elsewhere, away from what the window saw of the hole, nothing is hatched
    outside = np.ones((700, 1100), bool)
    outside[256:512, 256:512] = False
    grey = np.isin(pixels, HATCH).all(-1) & (pixels.max(-1) == pixels.min(-1))
    assert not (grey & outside).any()
    with pytest.raises(KeyboardInterrupt):
        translate(path, tmp_path / "cut", mark=True, stop_after=17)
    assert translate(path, tmp_path / "cut", mark=True).read_bytes() == out.read_bytes()


def test_a_slide_that_is_too_small_is_refused():
    with pytest.raises(
        SlideError, match="40 x 30 pixels are 10 x 8 at the model's scale, expected at least 64"
    ):
        frame_of(40, 30, 0.25, 1.0, Grid)


def test_a_failing_stainer_is_not_swallowed(slide_file, tmp_path):
    class Broken(PlaceStainer):
        def stain(self, pieces, keys):
            raise MemoryError("no more")

    with pytest.raises(MemoryError):
        translate(slide_file, tmp_path, stainer=Broken())


def test_a_full_disk_stops_in_one_line_and_nothing_is_lost(slide_file, tmp_path):
    whole = translate(slide_file, tmp_path / "whole")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole.stat().st_size // 20, limit[1]))
        with pytest.raises(DataError, match="cannot be written") as caught:
            translate(slide_file, tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    stainer = PlaceStainer()
    assert translate(slide_file, tmp_path / "full", stainer=stainer).read_bytes() == whole.read_bytes()
    assert stainer.count <= 5 * 8


def test_memory_holds_a_few_rows_only(tmp_path):
    """Rows are deleted once their blocks are made: the folder of unfinished work does not grow with the slide."""
    path = make_slide(tmp_path / "long.tif", 9000, 300)
    seen = []
    sight = Sight(open_slide(path), Frame(300, 9000, 300, 9000, *GRID))
    store = BlockStore(tmp_path / "w" / "blocks", Layout(300, 9000), Compression("lossless"))
    encoder = Encoder(sight, store, 1)
    needed = [encoder.needs(block) for block in encoder.missing()]
    runner = Runner(sight, encoder, tmp_path / "w")
    runner.run(
        Here(PlaceStainer(), NoiseKey(0, "a")),
        lambda done, total: seen.append(len(list((tmp_path / "w" / "rows").glob("row-*.raw")))),
    )
    span = max(
        later.stop - earlier.start for earlier, later in pairwise(needed)
    )  # while one waits to replace the other
    assert max(seen) <= span + runner_module.AHEAD + 1 < len(sight.frame.tops) / 2
    assemble(store, tmp_path / "out.ome.tif", 1.0, "long", "id")
    encoder.close()
    assert np.array_equal(
        result_of(tmp_path / "out.ome.tif"), over_tiles(paint(9000, 300), PlaceStainer().one, *GRID)
    )


def test_what_cannot_be_read_is_rounded_outwards_to_whole_pixels_of_the_slide():
    bad = np.zeros((4, 6), bool)
    bad[1:2, 2:5] = (
        True  # columns 12 to 15, rows 21 to 22 of a level at 2.5 times the size of the slide's pixels
    )
    assert _rectangles(bad, 10, 20, 2.5) == [Rectangle(30, 52, 8, 3)]
