"""`miudiff translate` on whole slides: what is written beside a result, how it goes on, and what is refused in one line."""

import json
import os
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile

from miudiff.cli import main
from miudiff.errors import DataError
from miudiff.images import write_image
from miudiff.locks import lock
from miudiff.methods.model import save_model
from miudiff.result_folder import NOTICE
from miudiff.slides.regions import read_regions
from miudiff.stainer import VirtualStainer
from miudiff.whole_slide.jobs import slide_jobs
from miudiff.whole_slide.record import work_folder
from slide_run import paint
from tiny import tiny_model

QUICK = ("--set", "reverse.start=6", "--set", "reverse.steps=2", "--set", "refinement.loss=none")
QUICK += ("--glass", "stain", "--device", "cpu", "--precision", "fp32", "--no-report")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(folder, tiny_model())
    return folder


def make(path, height=300, width=400, mpp=0.5, levels=1):
    """A tiled TIFF slide that states its scale in centimetres, as scanners' TIFFs do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = paint(height, width)
    scale = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"} if mpp else {}
    with tifffile.TiffWriter(path) as tiff:
        for level in range(levels):
            step = 2**level
            tiff.write(
                pixels[::step, ::step],
                tile=(128, 128),
                photometric="rgb",
                compression="deflate",
                subfiletype=min(level, 1),
                metadata=None,
                **(scale if level == 0 else {}),
            )
    return path


@pytest.fixture
def slide(tmp_path):
    return make(tmp_path / "in" / "case.tif", levels=2)


def run(model, *words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in ("translate", *words, "--model", model, *QUICK)])
    return left.value.code


def mistake(capsys, model, *words, code=2):
    assert run(model, *words) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_slide_becomes_a_pyramid_of_its_own_size_with_its_record_beside_it(model, slide, tmp_path):
    assert run(model, slide, tmp_path / "out" / "case.ome.tif", "--compression", "lossless") == 0
    with openslide.OpenSlide(tmp_path / "out" / "case.ome.tif") as result:
        assert result.dimensions == (400, 300)
        assert float(result.properties["openslide.mpp-x"]) == pytest.approx(0.5)
    record = json.loads((tmp_path / "out" / "case.json").read_text())
    assert "not for diagnosis" in record["notice"]
    assert record["mpp"] == pytest.approx(0.5)
    assert (record["width"], record["height"], record["seed"], record["mode"]) == (400, 300, 0, "blend")
    assert record["model"]["identity"].startswith("tiny ")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["case.json", "case.ome.tif"]


def test_the_result_is_that_of_the_same_pixels_as_an_image(model, tmp_path):
    source = make(tmp_path / "in" / "case.tif", mpp=1.0, levels=2)
    assert run(model, source, tmp_path / "case.ome.tif", "--compression", "lossless") == 0
    from miudiff.methods.model import load_model
    from miudiff.methods.presets import preset
    from tiny import CPU

    config = preset("fast", ("reverse.start=6", "reverse.steps=2", "refinement.loss=none"))
    stainer = VirtualStainer(load_model(model), config, CPU, glass="stain")
    whole = stainer.translate(paint(300, 400), 1.0, 0, "case.tif")
    found = tifffile.imread(tmp_path / "case.ome.tif", series=0, level=0)
    assert np.array_equal(found, whole)


def test_run_again_it_is_there_already_and_other_settings_are_refused(model, slide, tmp_path, capsys):
    target = tmp_path / "out" / "case.ome.tif"
    assert run(model, slide, target) == 0
    before = target.stat().st_mtime_ns
    assert run(model, slide, target) == 0
    assert "1 there already" in capsys.readouterr().out
    assert target.stat().st_mtime_ns == before
    line = mistake(capsys, model, slide, target, "--seed", "3")
    assert "was made with another 'seed'" in line
    assert run(model, slide, target, "--seed", "3", "--overwrite") == 0
    assert json.loads((tmp_path / "out" / "case.json").read_text())["seed"] == 3


def test_of_a_folder_one_bad_slide_does_not_stop_the_others(model, tmp_path, capsys):
    make(tmp_path / "in" / "a.tif", levels=2)
    make(tmp_path / "in" / "c.tif", levels=2)
    (tmp_path / "in" / "b.svs").write_bytes(b"no slide")
    write_image(tmp_path / "in" / "tile.png", paint(70, 80))
    line = mistake(capsys, model, tmp_path / "in", tmp_path / "out", code=3)
    assert "b.svs" in line
    assert sorted(p.name for p in (tmp_path / "out").glob("*.tif")) == ["a.ome.tif", "c.ome.tif"]
    assert (tmp_path / "out" / "tile.png").exists()
    table = (tmp_path / "out" / "failures.csv").read_text().splitlines()
    assert table[0] == "slide,error"
    assert len(table) == 2
    assert "b.svs" in table[1]
    (tmp_path / "in" / "b.svs").unlink()
    assert run(model, tmp_path / "in", tmp_path / "out") == 0
    assert not (tmp_path / "out" / "failures.csv").exists()


def test_a_scale_that_no_file_states_is_asked_for_by_name_or_by_a_table(model, tmp_path, capsys):
    source = make(tmp_path / "in" / "case.tif", mpp=None, levels=2)
    line = mistake(capsys, model, source, tmp_path / "out")
    assert "states no micrometres per pixel" in line
    assert "--mpp" in line
    assert "column 'mpp'" in line
    (tmp_path / "slides.csv").write_text("slide,mpp\nin/case.tif,0.5\n")
    assert run(model, tmp_path / "slides.csv", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "case.json").read_text())["mpp_source"] == "0.5 um/px as given"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name\na.tif\n", "expected a column 'slide'"),
        ("slide,mpp\nin/case.tif,half\n", "line 2: mpp 'half', expected micrometres per pixel"),
        ("slide\nin/case.tif\nin/case.tif\n", "another slide gives case.ome.tif"),
        ("", "no rows"),
        ("slide;mpp\nin/case.tif;0.5\n", "parted by commas"),
        ("slide,mpp\nin/case.tif\n", "line 2: 1 fields, expected 2"),
        ("slide\n\nin/case.tif,0.5\n", "line 3: 2 fields, expected 1"),
        ("slide,mpp,slide\na,1,b\n", "line 1: the column 'slide' is there twice"),
        ("slide,mpp\n,0.5\n", "line 2: names no slide"),
        ("slide,mpp\n  ,0.5\n", "line 2: names no slide"),
        ("slide,mpp\nin/case.tif,nan\n", "line 2: mpp nan: expected micrometres per pixel between"),
        ("slide,mpp\nin/case.tif,1e400\n", "line 2: mpp inf: expected"),
        ("slide,mpp\nin/case.tif,-1\n", "line 2: mpp -1: expected"),
        ("slide,mpp\nin/case.tif,0\n", "line 2: mpp 0: expected"),
        ("slide\nin/ca\0se.tif\n", "line 2: holds a NUL"),
        (b"slide\nin/case.tif\nin/\xe9.tif\n", "line 3: is not UTF-8"),
        ("slide\n" + "x" * 10**6 + "\n", "line 2: cannot be read as CSV (field larger"),
        ('slide\n"a\nb.tif"\n"in/case.tif\n', "line 4: cannot be read as CSV (unexpected end"),
    ],
)
def test_a_table_that_cannot_be_followed_is_refused(model, slide, tmp_path, capsys, text, told):
    (tmp_path / "slides.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert told in mistake(capsys, model, tmp_path / "slides.csv", tmp_path / "out")


def test_a_table_may_have_spaces_quotes_line_breaks_and_columns_of_its_own(tmp_path):
    (tmp_path / "slides.csv").write_text('id, slide, mpp\n7, "in/a,b.tif", 0.5\n\n8,"in/c\nd.tif",\n')
    first, second = slide_jobs(tmp_path / "slides.csv", tmp_path / "out", 0.25, None)
    assert (first.source, first.mpp) == (tmp_path / "in/a,b.tif", 0.5)
    assert (second.source, second.mpp) == (tmp_path / "in/c\nd.tif", 0.25)


def test_a_table_is_a_regular_file_and_a_folder_of_its_name_a_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="no regular file"):
        slide_jobs(tmp_path / "pipe.csv", tmp_path / "out", None, None)
    make(tmp_path / "slides.csv" / "a.tif", levels=2)
    (job,) = slide_jobs(tmp_path / "slides.csv", tmp_path / "out", None, None)
    assert job.source.name == "a.tif"


def test_a_missing_slide_of_a_table_is_told_and_the_others_are_made(model, slide, tmp_path, capsys):
    (tmp_path / "slides.csv").write_text("slide\nin/gone.svs\nin/case.tif\n")
    assert "gone.svs" in mistake(capsys, model, tmp_path / "slides.csv", tmp_path / "out", code=3)
    assert (tmp_path / "out" / "case.ome.tif").exists()


def test_wrong_words_are_refused_before_any_work(model, slide, tmp_path, capsys):
    def told(*words):
        return mistake(capsys, model, *words)

    out = tmp_path / "out"
    assert "expected a name ending in .ome.tif" in told(slide, tmp_path / "out.png")
    itself = make(slide.parent / "itself.ome.tif", levels=2)
    assert "is the source itself" in told(itself, itself)
    assert "--quality: found 101" in told(slide, out, "--quality", "101")
    assert "--samples: found 0" in told(slide, out, "--samples", "0")
    assert "no such" in told(tmp_path / "gone.svs", out).lower()
    write_image(tmp_path / "tile.png", paint(70, 80))
    assert "--roi: is for whole slides" in told(tmp_path / "tile.png", tmp_path / "o.png", "--roi", slide)
    (tmp_path / "bad.geojson").write_text("{}")
    assert "bad.geojson" in told(slide, out, "--roi", tmp_path / "bad.geojson")
    assert "mpp 99" in told(slide, out, "--mpp", "99")
    small = make(tmp_path / "in2" / "small.tif", 100, 100, mpp=0.25, levels=2)
    assert "expected at least 64 on each side" in told(small, out)
    assert not list(out.glob("*.tif"))


def test_samples_lie_beside_the_result(model, slide, tmp_path):
    assert run(model, slide, tmp_path / "out", "--samples", "3") == 0
    names = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.tif"))
    assert names == ["case.ome.tif", "case.samples/seed1.ome.tif", "case.samples/seed2.ome.tif"]
    first, second = (tifffile.imread(tmp_path / "out" / name, series=0, level=0) for name in names[:2])
    assert not np.array_equal(first, second)


def test_a_second_process_is_kept_out(model, slide, tmp_path, capsys):
    import fcntl

    work = tmp_path / "out" / "case.ome.tif.work"
    work.mkdir(parents=True)
    with (work / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is translating" in mistake(capsys, model, slide, tmp_path / "out")
    assert run(model, slide, tmp_path / "out") == 0


def test_a_finished_slide_leaves_the_work_of_a_running_process_alone(model, slide, tmp_path, capsys):
    target = tmp_path / "out" / "case.ome.tif"
    assert run(model, slide, target) == 0
    work = work_folder(target)
    with lock(work / "lock"):  # another process makes it again with --overwrite
        (work / "rows").mkdir()
        assert run(model, slide, target) == 2
        assert "another process" in capsys.readouterr().err
        assert run(model, slide, target, "--overwrite") == 2
        assert (work / "rows").is_dir()
    assert run(model, slide, target) == 0
    assert not work.exists()


def test_slides_that_another_process_is_at_work_on_are_left_to_it(model, tmp_path, capsys):
    for name in ("a.tif", "b.tif"):
        make(tmp_path / "in" / name, levels=2)
    with lock(work_folder(tmp_path / "out" / "a.ome.tif") / "lock"):
        assert run(model, tmp_path / "in", tmp_path / "out") == 0
    assert "1 written, 0 there already, 0 failed, 1 left to another process" in capsys.readouterr().out
    assert not (tmp_path / "out" / "a.ome.tif").exists()


def test_a_source_that_was_replaced_by_one_of_the_same_size_is_not_mixed_with_it(
    model, slide, tmp_path, capsys
):
    target = tmp_path / "out" / "case.ome.tif"
    first = slide.read_bytes()
    assert run(model, slide, target) == 0
    at = slide.stat()
    changed = bytearray(first)
    changed[-400] ^= 1  # in the data of a tile
    slide.write_bytes(changed)
    os.utime(slide, ns=(at.st_atime_ns, at.st_mtime_ns))
    assert "another source" in mistake(capsys, model, slide, target)
    target.unlink()
    work = work_folder(target)
    work.mkdir()
    record = json.loads((tmp_path / "out" / "case.json").read_text())
    (work / "job.json").write_text(json.dumps(record))
    line = mistake(capsys, model, slide, target)
    assert "holds work begun with another source" in line
    assert "has changed" in line


def test_a_result_is_not_stained_again(model, slide, tmp_path, capsys):
    assert run(model, slide, tmp_path / "out" / "case.ome.tif") == 0
    line = mistake(capsys, model, tmp_path / "out" / "case.ome.tif", tmp_path / "twice" / "case.ome.tif")
    assert "is itself a virtual stain" in line


def test_a_name_too_long_for_what_lies_beside_a_result_fails_before_the_work(model, tmp_path, capsys):
    make(tmp_path / "in" / f"{'x' * 240}.tif", levels=2)
    make(tmp_path / "in" / "a.tif", levels=2)
    line = mistake(capsys, model, tmp_path / "in", tmp_path / "out", code=3)
    assert "rename the slide" in line
    assert (tmp_path / "out" / "a.ome.tif").exists()


def test_out_of_memory_halves_the_batch_and_goes_on(model, slide, tmp_path, capsys, monkeypatch):
    assert run(model, slide, tmp_path / "one") == 0
    whole = VirtualStainer._translate

    def short(self, he, keys):
        if len(he) > 2:
            raise MemoryError("too much")
        return whole(self, he, keys)

    monkeypatch.setattr(VirtualStainer, "_translate", short)
    capsys.readouterr()
    assert run(model, slide, tmp_path / "two", "--batch-size", "8") == 0
    said = capsys.readouterr().out
    assert "going on with 4 tiles at once" in said
    assert "going on with 2 tiles at once" in said
    first, second = (
        tifffile.imread(tmp_path / name / "case.ome.tif", series=0, level=0).astype(int)
        for name in ("one", "two")
    )
    assert np.abs(first - second).max() <= 1 + 8  # a grey level before JPEG


def test_the_same_pixels_are_written_as_zarr_when_asked_for(model, slide, tmp_path):
    zarr = pytest.importorskip("zarr")
    assert run(model, slide, tmp_path, "--zarr", "--compression", "lossless") == 0
    found = zarr.open_group(tmp_path / "case.ome.zarr", mode="r")["0"][:]
    whole = tifffile.imread(tmp_path / "case.ome.tif", series=0, level=0)
    assert np.array_equal(np.moveaxis(found.reshape(3, 300, 400), 0, -1), whole)


def test_zarr_that_is_asked_for_too_late_is_told_and_not_passed_over(model, slide, tmp_path, capsys):
    pytest.importorskip("zarr")
    assert run(model, slide, tmp_path) == 0
    capsys.readouterr()
    told = mistake(capsys, model, slide, tmp_path, "--zarr", code=3)
    assert "case.ome.zarr: is not there" in told
    assert "--overwrite" in told
    assert run(model, slide, tmp_path, "--zarr", "--overwrite") == 0
    assert run(model, slide, tmp_path, "--zarr") == 0


def test_regions_that_cannot_even_be_asked_for_fail_their_slide_alone(model, slide, tmp_path, capsys):
    make(tmp_path / "in" / "other.tif")
    table = tmp_path / "in" / "slides.csv"
    table.write_text(f"slide,roi\ncase.tif,{'a' * 300}.geojson\nother.tif,\n")
    told = mistake(capsys, model, table, tmp_path / "out", code=3)
    assert "case.tif" in told or "aaa" in told
    assert (tmp_path / "out" / "other.ome.tif").exists()


def test_fused_windows_are_stained_too(model, slide, tmp_path):
    assert run(model, slide, tmp_path / "out", "--mode", "fuse") == 0
    assert json.loads((tmp_path / "out" / "case.json").read_text())["mode"] == "fuse"


def test_a_vanished_slide_is_told_and_what_was_done_is_kept(model, slide, tmp_path, capsys, monkeypatch):
    whole = VirtualStainer._translate
    calls = []

    def vanish(self, he, keys):
        calls.append(1)
        if len(calls) == 2:
            slide.rename(tmp_path / "away.tif")
        return whole(self, he, keys)

    monkeypatch.setattr(VirtualStainer, "_translate", vanish)
    monkeypatch.setattr("miudiff.slides.runner.GROUP", 2)
    line = mistake(capsys, model, slide, tmp_path / "out")
    assert "vanished" in line
    monkeypatch.undo()
    (tmp_path / "away.tif").rename(slide)
    assert run(model, slide, tmp_path / "out") == 0
    assert run(model, slide, tmp_path / "fresh") == 0
    first, second = (Path(tmp_path / name / "case.ome.tif").read_bytes() for name in ("out", "fresh"))
    assert first == second


def test_the_regions_lie_beside_the_result_as_they_were(model, slide, tmp_path):
    drawn = tmp_path / "drawn.geojson"
    square = [[100, 50], [220, 50], [220, 150], [100, 150], [100, 50]]
    drawn.write_text(json.dumps({"type": "Polygon", "coordinates": [square]}))
    target = tmp_path / "out" / "case.ome.tif"
    assert run(model, slide, target, "--roi", drawn) == 0
    kept = read_regions(tmp_path / "out" / "case.roi.geojson", 400, 300)
    assert kept.bounds == (100, 50, 220, 150)
    assert run(model, slide, target, "--overwrite") == 0
    assert not (tmp_path / "out" / "case.roi.geojson").exists()


def test_a_virtual_slide_beside_h_and_e_images_does_not_keep_them_from_being_stained(model, slide, tmp_path):
    assert run(model, slide, tmp_path / "out" / "case.ome.tif") == 0
    write_image(tmp_path / "out" / "he.png", paint(64, 64))
    assert main_code(model, tmp_path / "out", tmp_path / "twice", "--mpp", "1") == 0
    assert (tmp_path / "twice" / "he.png").exists()
    assert not (tmp_path / "twice" / "case.ome.tif").exists()


def main_code(model, *words):
    """As `run`, without the options that are for slides alone."""
    quick = [word for word in QUICK if word != "--no-report"]
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in ("translate", *words, "--model", model, *quick)])
    return left.value.code


def test_a_virtual_image_beside_slides_does_not_keep_them_from_being_stained(model, slide, tmp_path):
    write_image(slide.parent / "virtual.png", paint(64, 64), comment=NOTICE)
    assert run(model, slide.parent, tmp_path / "out") == 0
    assert (tmp_path / "out" / "case.ome.tif").exists()
    assert not (tmp_path / "out" / "virtual.png").exists()
