"""Several processes on one folder, and sources that change: nothing is made twice, and nothing is mixed."""

import contextlib
import json
import os

import numpy as np
import pytest
from PIL import Image

from miudiff.images import read_comment, write_image
from miudiff.locks import lock, lock_of
from miudiff.result_folder import NOTICE
from slide_run import paint

QUICK = ("--set", "reverse.start=4", "--set", "reverse.steps=2", "--device", "cpu", "--precision", "fp32")


@pytest.fixture
def he(tmp_path):
    folder = tmp_path / "he"
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        write_image(folder / name, np.roll(paint(64, 64), i, 0))
    return folder


@contextlib.contextmanager
def rival(folder, names, **changes):
    """Another process at work in `folder`, whose settings are those of the record there but for `changes`."""
    settings = json.loads((folder / "translation.json").read_text())["runs"][0] | changes
    with lock(folder / ".translation-elsewhere-1.lock") as file:
        file.write(json.dumps({"settings": settings, "names": names}))
        file.flush()
        yield


def test_an_image_that_another_process_is_making_is_left_to_it(he, tmp_path, translate):
    with lock(lock_of(tmp_path / "ihc" / "b.png")):
        code, out, _ = translate(he, tmp_path / "ihc")
    assert code == 0
    assert out.endswith("2 written, 0 there already, 0 failed, 1 left to another process\n")
    assert not (tmp_path / "ihc" / "b.png").exists()
    assert translate(he, tmp_path / "ihc")[1].endswith("1 written, 2 there already, 0 failed\n")
    assert sorted(json.loads((tmp_path / "ihc" / "translation.json").read_text())["images"]) == [
        "a.png",
        "b.png",
        "c.png",
    ]
    assert not list((tmp_path / "ihc").glob(".*")), "nothing is left behind"


def test_another_process_with_the_same_settings_shares_the_folder(he, tmp_path, translate):
    assert translate(he / "a.png", tmp_path / "ihc")[0] == 0
    with rival(tmp_path / "ihc", ["a.png", "b.png", "c.png"]):
        assert translate(he, tmp_path / "ihc")[0] == 0


def test_another_process_with_other_settings_keeps_this_one_out_of_its_images_alone(he, tmp_path, translate):
    assert translate(he / "a.png", tmp_path / "ihc")[0] == 0
    with rival(tmp_path / "ihc", ["a.png", "b.png"], seed=7):
        code, _, err = translate(he, tmp_path / "ihc")
        assert code == 2
        assert "another process is making it with another 'seed' (7, now 0)" in err
        assert translate(he / "c.png", tmp_path / "ihc")[0] == 0
    assert translate(he, tmp_path / "ihc")[0] == 0, "it is gone, and its images are free"


def test_what_a_killed_process_announced_keeps_nobody_out(he, tmp_path, translate):
    assert translate(he / "a.png", tmp_path / "ihc")[0] == 0
    killed = tmp_path / "ihc" / ".translation-elsewhere-1.lock"
    killed.write_text(json.dumps({"settings": {"seed": 7}, "names": ["b.png"]}))
    assert translate(he, tmp_path / "ihc")[0] == 0
    assert not killed.exists()


def test_a_result_whose_source_was_replaced_is_not_taken_for_its_own(he, tmp_path, translate):
    assert translate(he, tmp_path / "ihc")[0] == 0
    at = (he / "b.png").stat()
    pixels = np.asarray(Image.open(he / "b.png")).copy()
    pixels[5, 5] += 1
    write_image(he / "b.png", pixels)
    os.utime(he / "b.png", ns=(at.st_atime_ns, at.st_mtime_ns))
    code, _, err = translate(he, tmp_path / "ihc")
    assert code == 2
    assert f"b.png: was made with another source ({he / 'b.png'} has changed)" in err
    assert translate(he, tmp_path / "ihc", "--overwrite")[0] == 0


def test_a_moved_source_is_the_same_source(he, tmp_path, translate):
    assert translate(he, tmp_path / "ihc")[0] == 0
    he.rename(tmp_path / "moved")
    assert translate(tmp_path / "moved", tmp_path / "ihc")[1].endswith("3 there already, 0 failed\n")


def test_results_are_not_stained_again(he, tmp_path, translate):
    ihc = tmp_path / "ihc"
    assert translate(he / "a.png", ihc / "virtual.png")[0] == 0
    assert NOTICE in read_comment(ihc / "virtual.png")
    code, _, err = translate(ihc / "virtual.png", tmp_path / "twice")
    assert code == 2
    assert "is itself a virtual stain" in err
    write_image(ihc / "he.png", paint(64, 64))
    code, out, err = translate(ihc, tmp_path / "twice")
    assert (code, out.splitlines()[-1]) == (0, "1 written, 0 there already, 0 failed")
    assert "left out the virtual stains in it, 1 of 2 files" in err
    (ihc / "he.png").unlink()
    assert "holds virtual stains alone" in translate(ihc, tmp_path / "thrice")[2]


@pytest.mark.parametrize("name", ["v.png", "v.jpg", "v.tif", "v.ome.tif"])
def test_a_result_says_what_it_is_even_without_its_record(he, tmp_path, translate, name):
    assert translate(he / "a.png", tmp_path / "ihc" / name, "--mpp", 1)[0] == 0
    next((tmp_path / "ihc").glob("*.json")).unlink()
    assert NOTICE in read_comment(tmp_path / "ihc" / name)
    assert "is itself a virtual stain" in translate(tmp_path / "ihc" / name, tmp_path / "x.png")[2]


def test_names_as_long_as_the_disk_allows_and_odd_ones_are_all_written(tmp_path, translate):
    names = [b"x" * 251 + b".png", b"-dash.png", b"new\nline.png", b"not utf\xff.png", b"A.png", b"a.png"]
    folder = os.fsencode(tmp_path / "he")
    os.mkdir(folder)
    write_image(tmp_path / "plain.png", paint(64, 64))
    for name in names:
        with open(folder + b"/" + name, "wb") as file:
            file.write((tmp_path / "plain.png").read_bytes())
    code, _, err = translate(tmp_path / "he", tmp_path / "ihc")
    assert code == 0, err
    assert set(names) <= set(os.listdir(os.fsencode(tmp_path / "ihc")))
    assert translate(tmp_path / "he", tmp_path / "ihc")[1].endswith(f"{len(names)} there already, 0 failed\n")


@pytest.mark.parametrize(
    "record",
    [
        '{"runs": [{}], "images": {"a.png": {"run": 0.0}}}',
        '{"runs": [{}], "images": {"a.png": {"run": 1}}}',
        '{"runs": [{}], "images": {"a.png": {"run": true}}}',
        '{"runs": 5, "images": []}',
        "[" * 100_000,
        '{"runs": [], "images": {"\\ud800": {"run": 1e999}}}',
    ],
)
def test_a_record_that_is_none_is_one_line(he, tmp_path, translate, record):
    write_image(tmp_path / "ihc" / "a.png", paint(64, 64))
    (tmp_path / "ihc" / "translation.json").write_text(record)
    code, _, err = translate(he / "a.png", tmp_path / "ihc")
    assert code == 2
    assert err.startswith("miudiff: ")
    assert "translation.json" in err
    assert err.count("\n") == 1
