"""What the guards say of right and of wrong images, of each what it is named for; and what `translate` and `info` do with it."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydantic import ValidationError
from scipy import ndimage

from miudiff.cli import main
from miudiff.data.twin import twin_region
from miudiff.errors import DataError
from miudiff.guards import HEReference, inspect, measure_reference
from miudiff.guards.colours import colours_of
from miudiff.guards.findings import FOUND, NUCLEAR
from miudiff.guards.reference import describe
from miudiff.guards.texture import nuclear_size, part, sharpness
from miudiff.images import list_images, read_image, resize, write_image
from miudiff.methods.model import load_model, save_model
from miudiff.slides.choice import tissue_samples
from miudiff.slides.overview import tissue_mask
from miudiff.slides.reader import open_slide
from miudiff.stains import combine_stains, rgb_from_he
from slide_files import write_svs
from tiny import tiny_model

MPP = 0.5  # of the twin
QUICK = ("--set", "reverse.start=4", "--set", "reverse.steps=2", "--set", "refinement.loss=none")
QUICK += ("--device", "cpu", "--precision", "fp32")


def whole(stain):
    """Both halves of the twin: 0 is H&E, 1 is the real IHC."""
    return np.concatenate([twin_region(half)[stain] for half in ("train", "test")], axis=1)


HE, IHC = whole(0), whole(1)


def kinds(image, mpp=MPP):
    return [one.kind for one in inspect([image], mpp)]


def text_of(image, mpp=MPP):
    (found,) = inspect([image], mpp)
    return found.text


def blurred(image, sigma):
    return np.rint(ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0))).astype(np.uint8)


def drawing():
    canvas = Image.new("RGB", (400, 300), "white")
    pen = ImageDraw.Draw(canvas)
    for i, colour in enumerate(("red", "orange", "pink", "purple")):
        pen.rectangle((20 + 90 * i, 40, 90 + 90 * i, 250), fill=colour)
    return np.asarray(canvas)


def page():
    """A page with lines of print beside a field of H&E."""
    canvas = Image.new("RGB", (1024, 900), "white")
    canvas.paste(Image.fromarray(HE), (40, 40))
    pen = ImageDraw.Draw(canvas)
    for line in range(30):
        pen.text(
            (600, 40 + 28 * line), "Ki67 index 23.4 %, fields 5, cells 1,204" * 2, fill="black", font_size=22
        )
    return np.asarray(canvas)


def penned():
    canvas = Image.fromarray(HE)
    ImageDraw.Draw(canvas).line((0, 100, 500, 420), fill=(20, 120, 60), width=24)
    return np.asarray(canvas)


def test_h_and_e_passes_and_so_does_a_part_of_it():
    assert kinds(HE) == []
    assert kinds(HE[100:356, 100:356]) == []
    assert kinds(HE, None) == []
    assert kinds(np.tile(HE[:128, :400], (1, 80, 1))) == []  # as a strip


@pytest.mark.parametrize("hematoxylin", [0.6, 1.0, 1.5])
@pytest.mark.parametrize("eosin", [0.6, 1.0, 1.5])
def test_pale_and_dark_bluish_and_reddish_h_and_e_passes(hematoxylin, eosin):
    amounts = np.clip(-np.log10(np.maximum(HE, 1) / 255.0) @ np.linalg.inv(rgb_from_he), 0, None)[..., :2]
    assert kinds(combine_stains(amounts * (hematoxylin, eosin), rgb_from_he)) == []


@pytest.mark.parametrize(
    ("image", "kind", "word"),
    [
        pytest.param(IHC, "stain", "looks like a DAB IHC section", id="IHC"),
        pytest.param(drawing(), "stain", "looks like a drawing", id="drawing"),
        pytest.param(page(), "stain", "looks like a page with print", id="page"),
        pytest.param(penned(), "stain", "looks like ink on the glass", id="pen"),
        pytest.param(255 - HE, "stain", "", id="negative"),
        pytest.param(
            np.zeros((256, 256, 3), np.uint8) + HE[100:356, 100:356] // 9, "stain", "fluorescence", id="dark"
        ),
        pytest.param(np.full((256, 256, 3), 240, np.uint8), "tissue", "0.0% of it is tissue", id="blank"),
    ],
)
def test_what_is_wrong_is_named(image, kind, word):
    (found,) = inspect([image], MPP)
    assert found.kind == kind
    assert word in found.text
    assert found.expected in found.text
    assert "--" in found.text, "names an option"


def test_hematoxylin_alone_is_told_from_h_and_e():
    amounts = np.clip(-np.log10(np.maximum(IHC, 1) / 255.0) @ np.linalg.inv(rgb_from_he), 0, None)[..., :1]
    blue = np.clip(255 * 10.0 ** -(amounts * [[[0.72, 0.62, 0.30]]]), 0, 255).astype(np.uint8)
    assert "without eosin" in text_of(blue)


@pytest.mark.parametrize("stated", [0.125, 2.0])
def test_a_scale_that_is_wrong_by_four_is_named_with_a_better_one(stated):
    found = {one.kind: one for one in inspect([HE], stated)}
    assert "scale" in found
    assert "--mpp" in found["scale"].text
    believed = float(found["scale"].text.split("about ")[1].split(" um")[0])
    assert abs(np.log2(believed / MPP)) < abs(np.log2(stated / MPP)), (
        "nearer to the truth than what was stated"
    )


@pytest.mark.parametrize("stated", [0.05, 5.0, 10.0])
def test_a_scale_at_which_no_nucleus_can_be_measured_is_named(stated):
    (found,) = inspect([HE], stated)
    assert (found.kind, found.figure) == ("scale", stated)
    assert "expected 0.07 to 2.5" in found.text
    assert "--mpp" in found.text


def test_the_size_of_nuclei_follows_the_scale_and_lies_within_what_is_believed():
    sizes = [nuclear_size(*part([HE], MPP * times)) for times in (0.25, 0.5, 1, 2, 4)]
    assert sizes == sorted(sizes)
    assert NUCLEAR[0] < sizes[2] < NUCLEAR[1]
    assert [size for size, _ in FOUND] == sorted(size for size, _ in FOUND)


def test_a_field_too_small_for_its_nuclei_is_not_judged_by_them():
    assert np.isnan(nuclear_size(*part([HE[:100, :100]], MPP)))


def test_sharpness_falls_with_blur_and_does_not_ask_how_strong_the_stain_is():
    sharp = [sharpness([blurred(HE, sigma / MPP) if sigma else HE], MPP) for sigma in (0, 1, 2, 3)]
    assert sharp == sorted(sharp, reverse=True)
    assert all("focus" in kinds(blurred(HE, sigma / MPP)) for sigma in (1, 2, 3))
    pale = (255 * (HE / 255.0) ** 0.6).astype(np.uint8)
    assert sharpness([pale], MPP) == pytest.approx(sharp[0], rel=0.1)
    assert np.isnan(sharpness([HE], 1.0)), "at 1 um per pixel it does not show"


def test_an_enlarged_image_is_not_as_sharp_as_its_scale_would_be():
    height, width = HE.shape[:2]
    small = resize(HE, height // 4, width // 4)
    assert "focus" in kinds(resize(small, height, width))


def test_the_light_is_that_of_all_samples():
    """A place without glass is judged by the glass of another."""
    yellow = (HE * (1.0, 1.0, 0.8)).astype(np.uint8)
    glass = np.full((256, 256, 3), (255, 255, 204), np.uint8)
    dense = yellow[100:356, 100:356]
    assert colours_of([dense, glass]).eosin == pytest.approx(colours_of([HE]).eosin, abs=0.1)


# The H&E that a model knows


def crops(image, count=24, side=160):
    random = np.random.default_rng(0)
    places = random.integers(0, image.shape[0] - side, (count, 2))
    return [image[top : top + side, left : left + side] for top, left in places]


@pytest.fixture(scope="module")
def reference():
    return measure_reference([describe([crop], MPP) for crop in crops(HE)])


def test_its_own_h_and_e_is_near_and_noise_is_far(reference):
    near = [reference.distance(describe([crop], MPP)) for crop in crops(HE)]
    assert np.median(near) < reference.limit
    noise = np.random.default_rng(1).integers(60, 255, (160, 160, 3)).astype(np.uint8)
    assert reference.distance(describe([noise], MPP)) > reference.limit
    assert [one.kind for one in inspect([HE[:, ::-1]], MPP, reference)] in ([], ["model"])
    flat = blurred(HE, 3)[::2, ::2]
    assert "model" in [one.kind for one in inspect([flat], 4 * MPP, reference)]


def test_how_strong_the_stain_is_does_not_count():
    amounts = np.clip(-np.log10(np.maximum(HE, 1) / 255.0) @ np.linalg.inv(rgb_from_he), 0, None)[..., :2]
    once, half = (describe([combine_stains(amounts * strength, rgb_from_he)], MPP) for strength in (1.0, 0.6))
    np.testing.assert_allclose(half[:8], once[:8], atol=0.08)


def test_a_reference_needs_images_enough_and_a_covariance_that_is_one(reference):
    with pytest.raises(DataError, match="3 images of H&E, expected at least 16"):
        measure_reference([describe([crop], MPP) for crop in crops(HE, 3)])
    with pytest.raises(ValidationError, match="positive definite"):
        HEReference(**reference.model_dump() | {"covariance": tuple((0.0,) * 13 for _ in range(13))})


# The command line


def run(*words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return left.value.code


@pytest.fixture
def folder(tmp_path):
    write_image(tmp_path / "he" / "right.tif", HE[100:356, 100:356], MPP)
    write_image(tmp_path / "he" / "wrong.tif", IHC[100:356, 100:356], MPP)
    return tmp_path / "he"


def test_translate_warns_in_one_line_and_keeps_it_in_the_record(folder, tmp_path, model, capsys):
    assert run("translate", folder, tmp_path / "out", "--model", model, *QUICK) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"miudiff: {folder / 'wrong.tif'}: looks like a DAB IHC section")
    images = json.loads((tmp_path / "out" / "translation.json").read_text())["images"]
    assert images["right.tif"]["findings"] == []
    (found,) = images["wrong.tif"]["findings"]
    assert found["kind"] == "stain"
    assert found["figure"] > 0.5
    assert found["text"] in line


def test_strict_refuses_the_wrong_and_stains_the_right(folder, tmp_path, model, capsys):
    assert run("translate", folder, tmp_path / "out", "--strict", "--model", model, *QUICK) == 3
    assert [path.name for path in (tmp_path / "out").glob("*.tif")] == ["right.tif"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "wrong.tif: looks like a DAB IHC section" in line
    assert "--strict" in line
    before = (tmp_path / "out" / "right.tif").stat().st_mtime_ns
    assert (
        run("translate", folder / "wrong.tif", tmp_path / "one.tif", "--strict", "--model", model, *QUICK)
        == 2
    )
    assert not (tmp_path / "one.tif").exists()
    assert run("translate", folder, tmp_path / "out", "--model", model, *QUICK) == 0, "goes on without it"
    assert (tmp_path / "out" / "right.tif").stat().st_mtime_ns == before


@pytest.fixture
def slides(tmp_path):
    """Two slides: H&E, and IHC."""
    (tmp_path / "slides").mkdir()
    for name, field in (("he", HE), ("ihc", IHC)):
        write_svs(tmp_path / "slides" / f"{name}.svs", [field])
    return tmp_path / "slides"


def test_a_wrong_slide_is_refused_before_anything_of_it_is_stained(slides, tmp_path, model, capsys):
    words = ("--model", model, "--no-report", *QUICK)
    assert run("translate", slides, tmp_path / "out", "--strict", *words) == 3
    assert [path.name for path in (tmp_path / "out").glob("*.ome.tif")] == ["he.ome.tif"]
    assert "ihc.svs: looks like a DAB IHC section" in capsys.readouterr().err
    assert run("translate", slides / "ihc.svs", tmp_path / "out", *words) == 0
    record = json.loads((tmp_path / "out" / "ihc.json").read_text())
    assert [one["kind"] for one in record["findings"]] == ["stain"]
    assert json.loads((tmp_path / "out" / "he.json").read_text())["findings"] == []
    assert run("translate", slides / "ihc.svs", tmp_path / "out", *words) == 0, (
        "the same command finds it done"
    )


def test_info_says_what_it_finds_and_counts_it_as_wrong_where_it_is_to_be_strict(slides, capsys):
    words = ("info", *sorted(slides.iterdir()), "--no-estimate")
    assert run(*words) == 0
    said = capsys.readouterr()
    assert said.out.count("looks like a DAB IHC section") == 1
    assert said.err == ""
    assert run(*words, "--strict") == 3
    assert "ihc.svs: looks like a DAB IHC section" in capsys.readouterr().err
    assert run("info", slides / "ihc.svs", "--no-estimate", "--strict") == 2


def test_a_slide_is_looked_at_where_its_tissue_is_and_always_at_the_same_places(tmp_path):
    field = np.full((1100, 1100, 3), 245, np.uint8)
    field[560:1072, 560:1072] = HE
    write_svs(tmp_path / "slide.svs", [field])
    with open_slide(tmp_path / "slide.svs") as slide:
        tissue = tissue_mask(slide, MPP)
        samples, scale = tissue_samples(slide, MPP, tissue, count=1)
        again, _ = tissue_samples(slide, MPP, tissue, count=1)
        (coarse,), shrunk = tissue_samples(slide, 0.25, tissue, count=1)
    assert scale == MPP
    assert [one.shape for one in samples] == [(512, 512, 3)]
    assert samples[0].mean() < 235, "of the four it is the one with tissue"
    np.testing.assert_array_equal(samples, again)
    assert shrunk == pytest.approx(0.5)
    assert coarse.shape == (512, 512, 3)


def test_a_models_reference_is_measured_kept_and_leaves_its_results_alone(tmp_path, capsys):
    folder = tmp_path / "tiny"
    save_model(folder, tiny_model(mpp=1.0))
    before = load_model(folder).identity
    for number, crop in enumerate(crops(HE, 18)):
        write_image(tmp_path / "he" / f"{number}.png", crop)
    assert run("model", "reference", folder, "--he", tmp_path / "he", "--mpp", MPP) == 0
    assert "18 images" in capsys.readouterr().out
    loaded = load_model(folder)
    assert loaded.card.he_reference is not None
    assert loaded.card.he_reference.images == 18
    assert loaded.identity == before
    save_model(tmp_path / "copy", loaded)
    assert load_model(tmp_path / "copy").card.he_reference == loaded.card.he_reference


# Real images, where they are


@pytest.mark.parametrize(
    ("name", "mpp", "right"),
    [("he/tcga_sbu", 0.5, True), ("he/henorm", 0.25, True), ("ihc/er_pr_endonuke", None, False)],
)
def test_real_h_and_e_passes_and_real_ihc_is_named(shared, name, mpp, right):
    images = list_images(shared / "data" / name)
    wrong = [path.name for path in images if bool(inspect([read_image(path)], mpp)) == right]
    assert len(wrong) <= 0.02 * len(images), wrong
