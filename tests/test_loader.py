"""The loader: one run's batches, however many processes read them; what was read ahead is shared."""

from functools import partial
from multiprocessing import active_children
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from miudiff.config import parse
from miudiff.data.tiles import DataConfig, Tiles, collate, find_images
from miudiff.diffusion.classifier_learner import draw_noise as draw_for_both
from miudiff.diffusion.learner import draw_noise
from miudiff.images import write_image
from miudiff.information.learner import MIConfig, draw_pairs
from miudiff.noise import NoiseKey
from miudiff.training import loader
from miudiff.training.loader import Share, batches, fitting_workers, reading


@pytest.fixture
def tiles(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        rng = np.random.default_rng(ord(name[0]))
        write_image(tmp_path / "ihc" / name, rng.integers(0, 255, (64, 64, 3), np.uint8))
    values = {
        "root": tmp_path,
        "size": 16,
        "mpp": 1.0,
        "scale_jitter": 0.2,
        "sources": [{"files": "ihc", "mpp": 1.0}],
    }
    config = parse(DataConfig, values, "test")
    return Tiles(find_images(config, ()), config, 3)


ALL = Share(2, 6, 4)


def read(tiles, draw, workers, share=ALL):
    return list(batches(tiles, share, collate, draw, workers, pinned=False))


DRAWS = {
    "score": partial(draw_noise, seed=5, levels=1000),
    "mi": partial(draw_pairs, config=MIConfig(), seed=5),
}


@pytest.mark.parametrize("task", DRAWS)
def test_batches_are_the_same_however_many_processes_read_them(tiles, task):
    alone = read(tiles, DRAWS[task], 0)
    assert len(alone) == 4
    for workers in (1, 2):
        for batch, other in zip(alone, read(tiles, DRAWS[task], workers), strict=True):
            assert batch.keys() == other.keys()
            assert all(torch.equal(batch[name], other[name]) for name in batch)


def fail_while_reading(loader):
    with reading(loader) as found:
        next(found)
        assert len(active_children()) == 2
        raise ValueError("stop")


def test_an_error_leaves_no_process_that_reads(tiles):
    """One that is left ignores SIGTERM, and the interpreter's end would wait for it for ever."""
    with pytest.raises(ValueError, match="stop"):  # its traceback holds the batches
        fail_while_reading(batches(tiles, ALL, collate, DRAWS["score"], 2, pinned=False))
    assert active_children() == []


def test_what_is_drawn_belongs_to_the_image_and_not_to_its_batch(tiles):
    whole = read(tiles, DRAWS["score"], 0)
    halves = [read(tiles, DRAWS["score"], 0, Share(2, 6, 4, rank, 2)) for rank in (0, 1)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert all(torch.equal(batch[name], torch.cat([first[name], second[name]])) for name in batch)
    batch = whole[0]
    assert torch.equal(batch["noise"][1], NoiseKey(5, "sample9").normal("batch", 0, (3, 16, 16)))
    assert int(batch["time"][1]) == int(NoiseKey(5, "sample9").integers("time", 0, 1, 1000))


def test_the_classifiers_two_stains_are_noised_apart(tiles):
    batch, _ = collate([tiles[i] for i in range(3)])
    drawn = draw_for_both(batch | {"he": batch["ihc"]}, 5, 1000)
    assert drawn["noise"].shape == (6, 3, 16, 16)
    assert not torch.equal(drawn["noise"][:3], drawn["noise"][3:])
    assert not torch.equal(drawn["time"][:3], drawn["time"][3:])


def test_processes_that_read_share_what_was_read_ahead(tiles):
    alone = read(tiles, DRAWS["score"], 0)
    fresh = Tiles(tiles.images, tiles.config.model_copy(update={"dihedral": True}), 3)
    fresh.read_ahead(2)
    for image in tiles.images:
        image.path.unlink()  # nobody can read it again
    for batch, other in zip(alone, read(fresh, DRAWS["score"], 2), strict=True):
        assert torch.equal(batch["ihc"], other["ihc"])


@pytest.mark.parametrize(
    ("device", "cores", "processes", "shared", "expected"),
    [
        ("cpu", 64, 1, 10**12, 0),
        ("cuda", 16, 1, 10**12, 8),
        ("cuda", 16, 4, 10**12, 3),
        ("cuda", 1, 1, 10**12, 0),
        ("cuda", 16, 1, 64 * 2**20, 2),  # a container's, and batches of 8 MB
        ("cuda", 16, 1, 2**20, 0),
    ],
)
def test_as_many_processes_read_as_cores_and_shared_memory_allow(
    monkeypatch, tmp_path, device, cores, processes, shared, expected
):
    monkeypatch.setattr(loader, "cores", lambda: cores)
    monkeypatch.setattr(loader, "SHARED", tmp_path)
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda _: SimpleNamespace(free=shared))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert fitting_workers(torch.device(device), 8 * 2**20) == expected
