"""One fit of the dyes for a folder or a slide: kept in the record, shared by processes, and the same for tiles, images and slides."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
import tifffile
from PIL import Image

from miudiff.cli import main
from miudiff.cluster import Task, Worker
from miudiff.data.twin import twin_region
from miudiff.errors import DataError
from miudiff.images import write_image
from miudiff.locks import lock
from miudiff.methods.model import load_model, save_model
from miudiff.methods.presets import preset
from miudiff.noise import NoiseKey
from miudiff.normalisation import HEStains, Normaliser, fit_he_stains
from miudiff.slides.frame import Window, frame_of
from miudiff.stainer import VirtualStainer
from miudiff.whole_slide.record import work_folder
from test_normalisation import restained
from tiny import CPU, tiny_model, tiny_palette

CHANGES = ("reverse.start=6", "reverse.steps=2", "refinement.loss=none")
QUICK = [word for change in CHANGES for word in ("--set", change)]
QUICK += ["--glass", "stain", "--device", "cpu", "--precision", "fp32", "--mpp", "1"]
HE, _ = twin_region("train")
FIELDS = {name: HE[128 * i : 128 * (i + 1), :128] for i, name in enumerate(("a.png", "b.png", "c.png"))}
PALE = restained(0.6, 0.6)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with a palette."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    bare = tiny_model(("Ki67",))
    card = bare.card.model_copy(update={"palette": {"Ki67": tiny_palette()}})
    save_model(folder, replace(bare, card=card))
    return folder


@pytest.fixture
def stainer(model):
    def make(**options):
        return VirtualStainer(load_model(model), preset("fast", CHANGES), CPU, glass="stain", **options)

    return make


@pytest.fixture
def he(tmp_path):
    for name, pixels in FIELDS.items():
        write_image(tmp_path / "he" / name, pixels)
    return tmp_path / "he"


def record(folder):
    return json.loads((folder / "translation.json").read_text())


def pixels_of(path):
    return np.asarray(Image.open(path))


def fitted(*images):
    return fit_he_stains(images).model_dump(mode="json")


# The stainer


def test_an_image_is_stained_as_if_it_had_the_models_dyes_and_keeps_its_glass(stainer):
    section = Normaliser(fit_he_stains([PALE]), tiny_palette().dyes)
    plain = stainer(normalise="off").translate(section.he(PALE), None, 0, "x")
    found = stainer().translate(PALE, None, 0, "x").astype(int)
    assert np.abs(found - section.ihc(plain)).max() <= 1, (
        "tiles are blended before the glass here, after it there"
    )


def test_off_is_the_network_on_the_pixels_as_they_are(stainer):
    off, tile = stainer(normalise="off"), PALE[:64, :64]
    (by_hand,) = off._batches.stream([(tile, NoiseKey(0, "x"))])
    assert np.array_equal(off.translate(tile, None, 0, "x"), by_hand)
    of_section = stainer().for_section(fit_he_stains([PALE]))
    assert not np.array_equal(of_section.translate(tile, None, 0, "x"), by_hand)


def test_a_tile_depends_on_itself_its_key_and_the_dyes_alone(stainer):
    of_section = stainer().for_section(fit_he_stains([HE]))
    tile, key = HE[:64, 64:128], NoiseKey(3, "x")
    expected = of_section.stain([tile], [key])[0]
    assert np.array_equal(of_section.stain([HE[:64, :64], tile], [key, key])[1], expected)
    assert np.array_equal(of_section.translate(tile, None, 3, "x"), expected)
    assert not np.array_equal(stainer().for_section(fit_he_stains([PALE])).stain([tile], [key])[0], expected)


def test_a_stainer_for_a_section_leaves_the_first_as_it_was(stainer):
    first = stainer()
    other = first.for_section(fit_he_stains([HE]))
    assert (first.section, first.normalise) == (None, "section")
    assert other.method is first.method
    assert first.for_section(None).normalise == "off"


def test_a_section_of_too_little_tissue_is_taken_in_the_models_dyes_on_its_own_glass(stainer, caplog):
    glass = np.full((64, 64, 3), 180, np.uint8)
    glass[:20, :20] = HE[:20, :20]
    found, target = stainer().fit([(glass, 1.0)]), stainer()._target
    assert found == target.model_copy(update={"light": (180, 180, 180), "glass": (180, 180, 180)})
    assert "pixels of tissue, expected at least 2000" in caplog.text
    assert np.abs(Normaliser(found, target).he(glass)[30:] - np.array(target.light)).max() < 1
    assert stainer(normalise="off").fit([(glass, 1.0)]) is None


def test_a_model_without_a_palette_has_no_dyes_to_take_and_says_so(he, tmp_path, translate):
    bare = tmp_path / "bare"
    save_model(bare, tiny_model())
    assert VirtualStainer(tiny_model(), preset("fast", CHANGES), CPU).normalise == "off"
    code, out, _ = translate(he, tmp_path / "ihc", model=bare)
    assert code == 0
    assert out.count("not normalised") == 1
    assert record(tmp_path / "ihc")["runs"][0]["dyes"] is None


# Folders


def test_a_folder_has_one_fit_which_is_a_setting_of_its_results(he, stainer, tmp_path, translate):
    code, out, _ = translate(he, tmp_path / "ihc")
    assert code == 0
    assert "dyes of the section: hematoxylin " in out
    (run,) = record(tmp_path / "ihc")["runs"]
    assert (run["normalise"], run["dyes"]) == ("section", fitted(*FIELDS.values()))
    of_section = stainer().for_section(HEStains.model_validate(run["dyes"]))
    expected = of_section.translate(FIELDS["b.png"], 1.0, 0, "b.png")
    assert np.array_equal(pixels_of(tmp_path / "ihc" / "b.png"), expected)


def test_files_that_are_added_or_made_again_take_the_dyes_of_those_that_are_there(he, tmp_path, translate):
    assert translate(he, tmp_path / "ihc")[0] == 0
    before = pixels_of(tmp_path / "ihc" / "b.png")
    (tmp_path / "ihc" / "b.png").unlink()
    write_image(he / "0.png", PALE[:128, :128])
    code, out, err = translate(he, tmp_path / "ihc")
    assert (code, err) == (0, "")
    assert out.endswith("2 written, 2 there already, 0 failed\n")
    assert len(record(tmp_path / "ihc")["runs"]) == 1
    assert np.array_equal(pixels_of(tmp_path / "ihc" / "b.png"), before)
    assert translate(he, tmp_path / "ihc", "--overwrite")[0] == 0
    assert record(tmp_path / "ihc")["runs"][-1]["dyes"] == fitted(PALE[:128, :128], *FIELDS.values())


def test_results_of_other_dyes_are_refused(he, tmp_path, translate):
    for name in ("a.png", "b.png"):
        assert translate(he / name, tmp_path / "ihc")[0] == 0
    code, _, err = translate(he, tmp_path / "ihc")
    assert code == 2
    assert "b.png: was made with another 'dyes." in err
    assert translate(he / "b.png", tmp_path / "ihc")[1].endswith("1 there already, 0 failed\n")


@contextlib.contextmanager
def rival(folder, settings, names):
    """Another process at work in `folder`."""
    with lock(folder / ".translation-elsewhere-1.lock") as file:
        file.write(json.dumps({"settings": settings, "names": names}))
        file.flush()
        yield


def test_a_process_takes_the_dyes_of_one_that_is_at_work_on_the_same_images(he, tmp_path, translate):
    assert translate(he / "c.png", tmp_path / "ihc")[0] == 0
    theirs = record(tmp_path / "ihc")["runs"][0] | {"dyes": fitted(HE)}
    with rival(tmp_path / "ihc", theirs, ["a.png", "b.png"]):
        assert translate(he / "a.png", tmp_path / "ihc", "--overwrite")[0] == 0
    found = record(tmp_path / "ihc")
    assert found["runs"][found["images"]["a.png"]["run"]]["dyes"] == fitted(HE)
    assert not list((tmp_path / "ihc").glob(".*")), "nothing is left behind"


def test_each_image_may_have_dyes_of_its_own(he, stainer, tmp_path, translate):
    assert translate(he, tmp_path / "ihc", "--normalise", "image")[0] == 0
    found = record(tmp_path / "ihc")
    assert [run["dyes"] for run in found["runs"]] == [None]
    assert found["images"]["b.png"]["dyes"] == fitted(FIELDS["b.png"])
    expected = stainer().translate(FIELDS["b.png"], 1.0, 0, "b.png")
    assert np.array_equal(pixels_of(tmp_path / "ihc" / "b.png"), expected)
    assert 'another \'normalise\' ("image", now "section")' in translate(he, tmp_path / "ihc")[2]


def test_a_record_from_before_there_were_dyes_is_of_h_and_e_as_it_was(he, tmp_path, translate):
    assert translate(he, tmp_path / "ihc", "--normalise", "off")[0] == 0
    old = record(tmp_path / "ihc")
    for key in ("normalise", "dyes"):
        assert old["runs"][0].pop(key) is None
    (tmp_path / "ihc" / "translation.json").write_text(json.dumps(old))
    assert translate(he, tmp_path / "ihc", "--normalise", "off")[1].endswith("3 there already, 0 failed\n")
    code, _, err = translate(he, tmp_path / "ihc")
    assert code == 2
    assert "was made with another 'normalise' (none, now \"section\")" in err


def test_a_file_that_cannot_be_read_keeps_no_other_from_being_stained(he, tmp_path, translate):
    (he / "a.png").write_bytes(b"no image")
    code, out, _ = translate(he, tmp_path / "ihc")
    assert (code, out.splitlines()[-1]) == (3, "2 written, 0 there already, 1 failed")
    assert record(tmp_path / "ihc")["runs"][0]["dyes"] == fitted(FIELDS["b.png"], FIELDS["c.png"])


def test_what_is_no_h_and_e_has_no_say_in_the_dyes(he, tmp_path, translate):
    """Neither where it is refused nor where it is only warned of."""
    _, ihc = twin_region("train")
    write_image(he / "d.png", ihc[:128, :128])
    code, _, errors = translate(he, tmp_path / "strict", "--strict")
    assert code == 3
    assert "d.png: looks like a DAB IHC section" in errors
    assert all(line.count("--strict") == 1 for line in errors.splitlines())
    assert translate(he, tmp_path / "warned")[0] == 0
    for folder in ("strict", "warned"):
        assert record(tmp_path / folder)["runs"][0]["dyes"] == fitted(*FIELDS.values())


# Slides


@pytest.fixture
def slide(tmp_path):
    path = tmp_path / "in" / "case.tif"
    path.parent.mkdir()
    tifffile.imwrite(path, PALE, tile=(128, 128), photometric="rgb", compression="deflate")
    return path


def test_a_slide_is_the_image_with_the_slides_dyes(slide, stainer, tmp_path, translate):
    target = tmp_path / "case.ome.tif"
    code, out, _ = translate(slide, target, "--compression", "lossless", "--no-report")
    assert code == 0
    assert "dyes of the section: " in out
    dyes = HEStains.model_validate(json.loads((tmp_path / "case.json").read_text())["dyes"])
    assert dyes.strength == pytest.approx(fit_he_stains([PALE]).strength, rel=0.05)
    whole = stainer().for_section(dyes).translate(PALE, 1.0, 0, "case.tif")
    assert np.array_equal(tifffile.imread(target, series=0, level=0), whole)
    assert translate(slide, target, "--compression", "lossless", "--no-report")[1].endswith("0 failed\n")


def test_a_slide_that_goes_on_keeps_its_dyes(slide, tmp_path, translate):
    target = tmp_path / "case.ome.tif"
    words = (slide, target, "--compression", "lossless", "--no-report")
    assert translate(*words)[0] == 0
    whole = target.read_bytes()
    before = json.loads((tmp_path / "case.json").read_text())
    other = before["dyes"] | {"strength": [0.9, 0.5]}
    target.unlink()
    work = work_folder(target)
    work.mkdir()
    (work / "job.json").write_text(json.dumps(before | {"dyes": other}))
    assert translate(*words)[0] == 0
    assert json.loads((tmp_path / "case.json").read_text())["dyes"] == other
    assert target.read_bytes() != whole


def test_a_slide_as_it_is_stained_is_another_result(slide, stainer, tmp_path, translate):
    target = tmp_path / "case.ome.tif"
    words = (slide, target, "--compression", "lossless", "--no-report")
    assert translate(*words, "--normalise", "off")[0] == 0
    plain = stainer(normalise="off").translate(PALE, 1.0, 0, "case.tif")
    assert np.array_equal(tifffile.imread(target, series=0, level=0), plain)
    assert "was made with another 'normalise' (none, now \"section\")" in translate(*words)[2]


def test_a_worker_stains_with_the_dyes_that_its_task_tells(slide, stainer):
    here = stainer()
    frame = frame_of(PALE.shape[1], PALE.shape[0], 1.0, 1.0, here)
    at, key, dyes = Window(0, 0, 0, 0), NoiseKey(0, "case.tif"), fit_he_stains([PALE])
    tile = PALE[: frame.size[0], : frame.size[1]]
    for told in (dyes, None):
        found = Worker(stainer).stain(Task(slide, frame, False, key, (at,), told))
        assert np.array_equal(found[0][0], here.for_section(told).stain([tile], [key])[0])


def test_info_tells_the_strengths_beside_the_models(slide, model, capsys):
    with pytest.raises(SystemExit):
        main(["info", str(slide), "--model", str(model), "--mpp", "1", "--device", "cpu"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  dyes ")]
    assert "(the model's H&E: 0.80, 0.40)" in line


def test_no_tissue_at_all_is_refused_by_the_fit():
    with pytest.raises(DataError, match="0 pixels of tissue"):
        fit_he_stains([])
