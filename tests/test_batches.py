"""Batches: filled across whoever asks, in order, begun before the last is fetched, as large as memory holds."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, active_count

import numpy as np
import pytest
import torch

from miudiff.device import Placement, batch_that_fits
from miudiff.errors import DeviceError, NonFiniteError
from miudiff.methods.batches import Batches
from miudiff.methods.presets import preset
from miudiff.noise import Ahead, NoiseKey
from miudiff.stainer import VirtualStainer
from tiny import CPU, tiny_model

GB = 2**30


class Negative:
    """Translates to the negative, a little darker by the key's place, and notes the batches."""

    def __init__(self, most=99):
        self.batches, self.most = [], most

    def __call__(self, he, keys):
        self.batches.append(len(he))
        if len(he) > self.most:
            raise MemoryError("too much")
        return -he - torch.tensor([key.x / 127.5 for key in keys]).view(-1, 1, 1, 1)


def windows(count, side=8):
    return [(np.full((side, side, 3), 100 + k, np.uint8), NoiseKey(0, "a", x=k)) for k in range(count)]


def batches_of(translate, count, placement=CPU, say=lambda line: None):
    return Batches(translate, None, placement, count, 64, say)


def check(found, given):
    assert len(found) == len(given)
    for ihc, (he, key) in zip(found, given):
        assert np.array_equal(ihc, 255 - he - key.x)


@pytest.mark.parametrize(("count", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (50, [7])])
def test_batches_are_filled_and_results_are_in_order(count, sizes):
    translate = Negative()
    check(list(batches_of(translate, count).stream(iter(windows(7)))), windows(7))
    assert translate.batches == sizes


def test_pieces_of_other_sizes_are_in_other_batches():
    given, translate = [*windows(2), *windows(3, 16), *windows(1)], Negative()
    check(list(batches_of(translate, 8).stream(given)), given)
    assert translate.batches == [2, 3, 1]


def test_pieces_that_may_not_share_a_batch_are_one_each():
    translate = Negative()
    check(list(batches_of(translate, 8).stream(windows(3), together=False)), windows(3))
    assert translate.batches == [1, 1, 1]


def test_on_a_processor_a_batch_is_given_before_the_next_is_asked_for():
    asked = []
    given = (asked.append(k) or window for k, window in enumerate(windows(6)))
    stream = batches_of(Negative(), 2).stream(given)
    next(stream)
    assert asked == [0, 1]


@pytest.fixture
def three_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_what_takes_one_pass_has_a_core_for_each_piece(three_cores):
    cores, negative, meet = [], Negative(), Barrier(3)

    def translate(he, keys):
        cores.append(torch.get_num_threads())
        if len(cores) <= 3:
            meet.wait(20)  # passed only if three are under way at a time
        return negative(he, keys)

    batches = batches_of(translate, None)
    assert batches.workers == 3
    check(list(batches.stream(windows(7))), windows(7))
    assert cores == [1] * 7
    assert torch.get_num_threads() == 3
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == 3
    check(list(batches.stream(windows(1), apart=False)), windows(1))
    assert cores[-1] == 3
    assert batches_of(negative, 2).workers == 1  # as the user asked
    assert VirtualStainer(tiny_model(), preset("fast"), CPU).at_once == 1  # a walk has its own


def test_a_piece_that_fails_apart_is_told_and_the_threads_end(three_cores):
    def translate(he, keys):
        return he * float("nan") if keys[0].x == 4 else he

    before = active_count()
    with pytest.raises(NonFiniteError):
        list(batches_of(translate, None).stream(windows(9)))
    stream = batches_of(translate, None).stream(windows(3))
    next(stream)
    stream.close()
    assert (torch.get_num_threads(), active_count()) == (3, before)


def test_an_accelerator_has_the_next_batch_before_the_last_is_fetched():
    asked, elsewhere = [], Placement(torch.device("mps"), "fp32", "tests")
    given = (asked.append(k) or window for k, window in enumerate(windows(6)))
    stream = batches_of(Negative(), 2, elsewhere).stream(given)
    found = [next(stream)]
    assert asked == [0, 1, 2, 3]
    check(found + list(stream), windows(6))


def test_where_memory_is_short_the_batch_is_halved_for_good_and_nothing_is_lost():
    translate, said = Negative(most=2), []
    batches = batches_of(translate, 8, say=said.append)
    check(list(batches.stream(windows(9))), windows(9))
    assert translate.batches == [8, 4, 2, 2, 2, 2, 1]
    assert [line.split(": ")[1] for line in said] == [f"going on with {k} tiles at once" for k in (4, 2)]
    assert batches.count == 2


def test_one_piece_that_is_too_large_is_told_in_one_line():
    with pytest.raises(DeviceError, match="a tile of 8 x 8") as caught:
        list(batches_of(Negative(most=0), 1).stream(windows(1)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("one", "two", "free", "fits"),
    [
        (1 * GB, 1.5 * GB, 80 * GB, 64),
        (1 * GB, 1.5 * GB, 16 * GB, 8),  # 1 + 14 x 0.5 is half of 16
        (1 * GB, 2 * GB, 8 * GB, 4),
        (5 * GB, 9 * GB, 8 * GB, 1),
        (1000, 1000, 10**9, 64),
    ],
)
def test_the_batch_is_the_power_of_two_that_takes_half_of_the_free_memory(one, two, free, fits):
    assert batch_that_fits(int(one), int(two), int(free), 64) == fits


@pytest.fixture
def as_on_cuda(monkeypatch):
    """A stainer that takes the processor for a CUDA device with so much free memory, at 1 MB a tile and 3 MB for none."""

    def make(free, batch=None):
        tried = []

        def peak(device, work):
            tried.append(work)
            work()
            return int((3 + len(tried)) * 1e6)

        monkeypatch.setattr("miudiff.methods.batches.peak_memory", peak)
        monkeypatch.setattr("miudiff.methods.batches.free_memory", lambda device: free)
        stainer = VirtualStainer(
            tiny_model(), preset("fast", ("reverse.start=60", "reverse.steps=5")), CPU, batch=batch or 1
        )
        stainer._batches._count = batch
        return stainer, tried

    return make


def test_the_batch_is_chosen_once_by_one_step_of_one_and_of_two_tiles_and_is_told(as_on_cuda):
    stainer, tried = as_on_cuda(free=2 * (4 + 8) * 10**6)
    said, steps = [], []
    stainer.say = said.append
    stainer.reverse.watch = watch = lambda report: steps.append(report.time)
    forward = stainer.reverse.score.forward
    networks = []
    stainer.reverse.score.forward = lambda y, *rest: networks.append(len(y)) or forward(y, *rest)
    assert stainer.batch == stainer.batch == 8
    assert len(tried) == 2
    assert networks == [1, 1, 2, 2]  # the second step ends it
    assert said == ["8 tiles at once, by the free memory of cpu"]
    assert stainer.reverse.watch is watch
    assert steps == []


def test_a_batch_that_is_given_is_taken(as_on_cuda):
    stainer, tried = as_on_cuda(free=10**12, batch=3)
    assert stainer.batch == 3
    assert tried == []


def test_an_images_tiles_share_batches_and_are_the_same_within_rounding():
    image = np.round(170 + 60 * np.sin(np.arange(150 * 130 * 3).reshape(150, 130, 3) / 99)).astype(np.uint8)
    config, sizes = preset("fast", ("reverse.start=60", "reverse.steps=2")), []
    one, many = (VirtualStainer(tiny_model(), config, CPU, glass="stain", batch=b) for b in (1, 4))
    translate = many.method.translate
    many.method.translate = lambda he, keys: sizes.append(len(he)) or translate(he, keys)
    first, second = (stainer.translate(image).astype(int) for stainer in (one, many))
    assert max(sizes) == 4
    assert np.abs(first - second).max() <= 1


def test_noise_is_drawn_ahead_for_accelerators_alone():
    elsewhere = Placement(torch.device("mps"), "fp32", "tests")
    keys = [NoiseKey(0)]
    with batches_of(Negative(), 1).ahead(keys) as plain:
        assert plain is keys
    with batches_of(Negative(), 1, elsewhere).ahead(keys) as ahead:
        assert isinstance(ahead, Ahead)
