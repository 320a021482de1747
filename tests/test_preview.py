"""`miudiff translate --preview`: few windows of a whole slide, said wherever the result is met, and the same when it goes on."""

import json

import numpy as np
import pytest
import tifffile

import miudiff.whole_slide.preview as preview
from miudiff.cli import main
from miudiff.estimate import Pace
from miudiff.images import write_image
from miudiff.methods.presets import preset
from miudiff.slide_report.case import open_case
from miudiff.slide_report.words import made
from miudiff.slides.regions import read_regions
from miudiff.slides.sight import OUTSIDE
from miudiff.stainer import VirtualStainer
from miudiff.viewer.facts import told
from miudiff.whole_slide.preview import hurried
from slide_run import paint
from test_whole_slide import make
from tiny import CPU, tiny_model

QUICK = ("--set", "reverse.start=8", "--glass", "stain", "--device", "cpu", "--precision", "fp32")


@pytest.fixture
def slide(tmp_path):
    return make(tmp_path / "in" / "case.tif", levels=2)


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine one that stains so many windows in the time of a preview."""

    def make_machine(windows):
        monkeypatch.setattr(preview, "SECONDS", 1000.0 * windows + 500)
        monkeypatch.setattr(preview, "pace_of", lambda *words: Pace(1000.0, 0.0, 0.0, False))

    return make_machine


def run(model, *words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in ("translate", *words, "--model", model, *QUICK)])
    return left.value.code


def pixels(path):
    return tifffile.imread(path, series=0, level=0)


def test_a_preview_stains_what_fits_and_leaves_the_rest_grey(model, slide, tmp_path, machine):
    machine(3)
    target = tmp_path / "out" / "case.ome.tif"
    assert run(model, slide, target, "--preview", "--compression", "lossless") == 0
    record = json.loads((tmp_path / "out" / "case.json").read_text())
    assert record["preview"] is True
    assert record["previewed"] == {"windows": 3, "of": 12, "whole": False, "steps": 4}
    assert record["config"]["reverse"]["steps"] == 4
    found = pixels(target)
    shown = read_regions(tmp_path / "out" / "case.roi.geojson", 400, 300).mask(0, 0, 400, 300)
    assert 3 * 100**2 < shown.sum() < 3 * 130**2
    assert (found[~shown] == OUTSIDE).all()
    assert (found[shown] != OUTSIDE).any(axis=-1).mean() > 0.9
    assert not list((tmp_path / "out").glob("*.html"))


def test_a_preview_is_said_wherever_it_is_met(model, slide, tmp_path, machine):
    machine(3)
    target = tmp_path / "out" / "case.ome.tif"
    assert run(model, slide, target, "--preview") == 0
    words = "3 of 12 windows in 4 steps"
    assert f"preview: {words}" in tifffile.TiffFile(target).pages[0].description
    with open_case(target, print) as case:
        assert ("Preview", words) in made(case)

    class Case:
        facts = json.loads((tmp_path / "out" / "case.json").read_text())

    assert ("Preview", words) in told(Case)
    del Case.facts["preview"], Case.facts["previewed"]
    assert "Preview" not in dict(told(Case))


def test_a_window_of_a_preview_is_what_a_whole_run_of_its_steps_makes(model, slide, tmp_path, machine):
    machine(1)
    lossless = ("--compression", "lossless", "--no-report")
    assert run(model, slide, tmp_path / "few", "--preview", *lossless) == 0
    assert run(model, slide, tmp_path / "all", "--set", "reverse.steps=4", *lossless) == 0
    few, whole = (pixels(tmp_path / name / "case.ome.tif") for name in ("few", "all"))
    (field,) = read_regions(tmp_path / "few" / "case.roi.geojson", 400, 300).polygons
    left, top, right, bottom = (round(edge) for edge in field.bounds)
    inner = np.s_[
        top + 40 : bottom - 40, left + 40 : right - 40
    ]  # where its neighbours blend nothing into it
    assert few[inner].size > 0
    assert np.array_equal(few[inner], whole[inner])


def test_a_slide_without_tissue_is_whole_as_it_is(model, tmp_path, machine):
    machine(-1)
    source = make(tmp_path / "in" / "case.tif", levels=2)
    with tifffile.TiffFile(source) as tiff:
        glass = np.full((300, 400, 3), 245, np.uint8)
        scale = tiff.pages[0].tags["XResolution"].value
    tifffile.imwrite(
        source,
        glass,
        tile=(128, 128),
        photometric="rgb",
        resolution=(scale[0] / scale[1],) * 2,
        resolutionunit="CENTIMETER",
    )
    words = ("--preview", "--glass", "keep", "--compression", "lossless")
    with pytest.raises(SystemExit) as left:
        main(
            [
                str(word)
                for word in (
                    "translate",
                    source,
                    tmp_path / "case.ome.tif",
                    "--model",
                    model,
                    "--device",
                    "cpu",
                    *words,
                )
            ]
        )
    assert left.value.code == 0
    assert (pixels(tmp_path / "case.ome.tif") == 245).all()


def test_where_the_whole_slide_fits_all_of_it_is_stained(model, slide, tmp_path, machine):
    machine(12)
    lossless = ("--compression", "lossless", "--no-report")
    assert run(model, slide, tmp_path / "few", "--preview", *lossless) == 0
    assert run(model, slide, tmp_path / "all", "--set", "reverse.steps=4", *lossless) == 0
    few, whole = (pixels(tmp_path / name / "case.ome.tif") for name in ("few", "all"))
    assert np.array_equal(few, whole)
    assert not (tmp_path / "few" / "case.roi.geojson").exists()


def test_a_whole_run_over_a_preview_is_refused_and_replaces_it_when_asked_for(
    model, slide, tmp_path, machine, capsys
):
    machine(3)
    target = tmp_path / "out" / "case.ome.tif"
    assert run(model, slide, target, "--preview") == 0
    assert run(model, slide, target, "--preview") == 0
    assert "1 there already" in capsys.readouterr().out
    for words in ((), ("--set", "reverse.steps=4")):
        assert run(model, slide, target, *words) == 2
        line = capsys.readouterr().err
        assert "holds a preview (3 of 12 windows in 4 steps); give another target, or --overwrite" in line
    assert run(model, slide, target, "--overwrite", "--no-report") == 0
    record = json.loads((tmp_path / "out" / "case.json").read_text())
    assert record["preview"] is None
    assert "previewed" not in record
    assert not (tmp_path / "out" / "case.roi.geojson").exists()
    assert run(model, slide, target, "--preview") == 2
    assert "another 'preview'" in capsys.readouterr().err


def test_a_preview_that_goes_on_on_a_slower_machine_is_the_same(
    model, slide, tmp_path, machine, monkeypatch, capsys
):
    machine(5)
    assert run(model, slide, tmp_path / "whole", "--preview") == 0
    whole, calls = VirtualStainer._translate, []

    def stop(self, he, keys):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(self, he, keys)

    with monkeypatch.context() as patch:
        patch.setattr("miudiff.slides.runner.GROUP", 1)
        patch.setattr(VirtualStainer, "_translate", stop)
        assert run(model, slide, tmp_path / "cut", "--preview") == 130
    machine(2)
    capsys.readouterr()
    assert run(model, slide, tmp_path / "cut", "--no-report") == 2
    assert "holds work begun with --preview" in capsys.readouterr().err
    assert run(model, slide, tmp_path / "cut", "--preview") == 0
    first, second = ((tmp_path / name / "case.ome.tif").read_bytes() for name in ("whole", "cut"))
    assert first == second


def test_what_does_not_go_together_with_a_preview_is_told_in_one_line(model, slide, tmp_path, capsys):
    def mistake(*words):
        assert run(model, *words, "--preview") == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    out = tmp_path / "out"
    (tmp_path / "roi.geojson").write_text("{}")
    assert "leave out the regions" in mistake(slide, out, "--roi", tmp_path / "roi.geojson")
    assert "leave out --samples" in mistake(slide, out, "--samples", "2")
    assert "leave out --workers" in mistake(slide, out, "--workers", "2")
    write_image(tmp_path / "tile.png", paint(70, 80))
    assert "--preview: is for whole slides" in mistake(tmp_path / "tile.png", tmp_path / "o.png")
    write_image(slide.parent / "tile.png", paint(70, 80))
    assert "holds images as well" in mistake(slide.parent, out)
    assert not out.exists()


def test_a_hurried_stainer_takes_four_steps_at_most_and_refines_nothing():
    for preset_name, steps in (("thorough", 4), ("paper", 4)):
        quick = hurried(VirtualStainer(tiny_model(), preset(preset_name), CPU))
        assert quick.steps_of_a_tile == steps
        assert quick.method.refined_steps == 0
    two = hurried(VirtualStainer(tiny_model(), preset("fast", ("reverse.steps=2",)), CPU))
    assert two.steps_of_a_tile == 2
