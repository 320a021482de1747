"""A palette is matched when twins of its IHC set come out as positive as the set is."""

from dataclasses import replace

import numpy as np
import pytest

from miudiff.cells import WEAK, nuclei_of_he, tissue_mask
from miudiff.data.tiles import TileImage
from miudiff.data.twin import render_twin
from miudiff.errors import ConfigError, DataError
from miudiff.evaluation.stain import dab_density
from miudiff.images import to_tensor, to_uint8, write_image
from miudiff.matching import GAINS, match_share, matched_palettes, usual
from miudiff.methods.palette import measure_palette
from miudiff.methods.presets import preset
from miudiff.stains import rgb_from_hdab, rgb_from_he
from test_palette import field
from tiny import CPU, tiny_model


def config(start=3):
    """Of two steps from so near the end that the result is the palette's own picture."""
    return preset(
        "fast", [f"reverse.start={start}", "reverse.steps=2", "reverse.variety=0", "energy.guidance=none"]
    )


def sets(nucleus, tissue):
    """H&E, and IHC: a field whose nuclei and tissue have these amounts of hematoxylin and DAB, and one without DAB."""
    bare = [(hematoxylin, 0.0) for hematoxylin, _ in (nucleus, tissue)]
    ihc = [field(*amounts, rgb_from_hdab, 1)[0] for amounts in ((nucleus, tissue), bare)]
    return field((0.8, 0.1), (0.05, 0.3), rgb_from_he, 0)[0], ihc


@pytest.mark.parametrize(
    ("nuclear", "nucleus", "tissue"),
    [(True, (0.2, 0.5), (0.04, 0.01)), (False, (0.5, 0.02), (0.03, 0.5))],
)
def test_results_of_a_matched_palette_are_as_positive_as_its_set(nuclear, nucleus, tissue):
    he, ihc = sets(nucleus, tissue)
    palette = measure_palette([he], ihc, nuclear)
    spoilt = palette.model_copy(update={"share": 0.5 * palette.share})
    found = match_share(tiny_model(mpp=0.5), None, spoilt, config(), CPU, ihc)
    shares = []
    for real in ihc:
        twin = render_twin(real, "nuclear" if nuclear else "cytoplasmic", 0.5)
        of_twin = measure_palette([twin], ihc, nuclear)
        own = {key: getattr(of_twin, key) for key in ("dyes", "hematoxylin", "eosin", "basophilia")}
        made = [to_uint8(one.model_copy(update=own)(to_tensor(twin)))[0] for one in (found, spoilt)]
        nuclei = nuclei_of_he(twin, 16)
        counted = nuclei if nuclear else ~nuclei & tissue_mask(twin)
        shares.append([(dab_density(image)[counted] > WEAK).mean() for image in (real, *made)])
    wanted, matched, before = np.mean(shares, axis=0)
    assert found.gain > 1.3
    assert before < wanted
    assert matched == pytest.approx(wanted, abs=0.15)


def test_the_gain_stays_within_what_more_dab_can_mend():
    he, ihc = sets((0.2, 0.3), (0.04, 0.01))
    palette = measure_palette([he], ihc, nuclear=True).model_copy(update={"share": 0.01})
    assert match_share(tiny_model(mpp=0.5), None, palette, config(), CPU, ihc).gain > 0.9 * GAINS[1]


def test_each_marker_that_has_images_gets_its_own(tmp_path):
    he, ihc = sets((0.2, 0.3), (0.04, 0.01))
    write_image(tmp_path / "one.png", ihc[0])
    images = [TileImage(tmp_path / "one.png", 0.5, 1, 1.0)]
    model = tiny_model(("HER2", "Ki67"), mpp=0.5)
    made = matched_palettes(model, config(), CPU, [he], images)
    assert list(made) == ["Ki67"]
    assert made["Ki67"].nuclear
    with pytest.raises(ConfigError, match="states no 'mpp'"):
        matched_palettes(tiny_model(("Ki67",), mpp=None), config(), CPU, [he], images)


def test_a_model_without_an_estimator_is_matched_unguided(tmp_path):
    he, ihc = sets((0.2, 0.3), (0.04, 0.01))
    write_image(tmp_path / "one.png", ihc[0])
    model = replace(tiny_model(("Ki67",), mpp=0.5), estimator=None)
    assert usual(model).energy.guidance == "none"
    assert usual(tiny_model()) == preset("fast")
    images = [TileImage(tmp_path / "one.png", 0.5, 0, 1.0)]
    assert list(matched_palettes(model, usual(model), CPU, [he], images)) == ["Ki67"]


def test_a_set_without_tissue_is_told():
    he, ihc = sets((0.2, 0.3), (0.04, 0.01))
    palette = measure_palette([he], ihc, nuclear=True)
    with pytest.raises(DataError, match="expected stained tissue"):
        match_share(
            tiny_model(mpp=0.5), None, palette, config(), CPU, [np.full((128, 128, 3), 250, np.uint8)]
        )
