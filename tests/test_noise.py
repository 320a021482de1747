"""Noise keys: one endless field for each name, and whole numbers in their ranges. `test_diffusion` has its statistics."""

import threading

import pytest
import torch

from miudiff.noise import CELL, LOOK, STREAMS, Ahead, NoiseKey, normal

SHAPE = (2, 70, 90)


@pytest.mark.parametrize("x", [-CELL - 1, -1, 0, 5, 3 * CELL - 2])
@pytest.mark.parametrize("y", [-2 * CELL, -7, 1, CELL])
def test_windows_agree_where_they_overlap_on_every_side_of_the_origin(x, y):
    one = NoiseKey(3, "slide").at(x, y).normal("step", 4, SHAPE)
    other = NoiseKey(3, "slide").at(x + 20, y - 30).normal("step", 4, SHAPE)
    assert torch.equal(one[:, :40, 20:], other[:, 30:, :70])


def test_a_field_does_not_repeat_itself_on_the_other_side_of_the_origin():
    cells = [
        NoiseKey(3, "slide").at(CELL * column, CELL * row).normal("step", 0, (1, CELL, CELL))
        for row in (-2, -1, 0, 1)
        for column in (-2, -1, 0, 1)
    ]
    flat = torch.stack(cells).flatten(1)
    correlation = torch.corrcoef(flat) - torch.eye(len(flat))
    assert correlation.abs().max() < 0.09  # 5.7 standard deviations of 4096 numbers


def test_a_key_far_out_on_a_slide_has_noise_like_any_other():
    noise = NoiseKey(0, "slide", x=2**31, y=2**31 + 5).normal("start", 0, (3, 64, 64))
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("high", [1, 2, 32, 1000])
def test_integers_fill_their_range_and_never_leave_it(high):
    draws = NoiseKey(1).integers("grid", 0, 20 * high, high)
    assert draws.dtype == torch.int64
    assert draws.min() >= 0
    assert draws.max() < high
    assert len(draws.unique()) >= 0.99 * high
    assert draws.double().mean().item() == pytest.approx((high - 1) / 2, abs=high * 0.3 / 20**0.5)


@pytest.mark.parametrize("length", [1, 2, 97])
def test_a_permutation_has_every_number_once(length):
    order = NoiseKey(1).permutation("patches", 5, length)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(length))


@pytest.mark.parametrize(("count", "high"), [(1, 1), (5, 5), (30, 100_000)])
def test_distinct_integers_never_repeat(count, high):
    draws = NoiseKey(1).distinct("patches", 5, count, high)
    assert draws.dtype == torch.int64
    assert len(draws.unique()) == count
    assert draws.min() >= 0
    assert draws.max() < high


def test_uniform_numbers_lie_between_zero_and_one_and_are_even():
    draws = NoiseKey(1).uniform("time", 0, 4000)
    assert draws.min() >= 0
    assert draws.max() < 1
    assert torch.histc(draws, 4, 0, 1).tolist() == pytest.approx([1000] * 4, abs=150)


def test_orders_differ_by_seed_name_place_stream_and_step():
    key = NoiseKey(1, "a")
    orders = [key.permutation("patches", 5, 50), NoiseKey(2, "a").permutation("patches", 5, 50)]
    orders += [NoiseKey(1, "b").permutation("patches", 5, 50), key.at(0, 1).permutation("patches", 5, 50)]
    orders += [key.permutation("patches", 6, 50)]
    orders += [key.permutation(name, 5, 50) for name in STREAMS if name != "patches"]
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)


def test_a_seed_and_a_name_do_not_run_into_each_other():
    first, second = (
        NoiseKey(1, "2").integers("batch", 0, 8, 1000),
        NoiseKey(12, "").integers("batch", 0, 8, 1000),
    )
    assert not torch.equal(first, second)


# Drawn ahead


KEYS = [NoiseKey(1, "a", 5, -7), NoiseKey(1, "b")]


def walk(keys, shape=(2, 3, 40, 72), repeats=2, steps=6):
    """What a method of several walks draws, in its order."""
    like, found = torch.empty(shape), []
    for repeat in range(repeats):
        found.append(normal(keys, "start", repeat, like))
        for index in reversed(range(steps)):
            found.append(normal(keys, "condition", repeat * steps + index, like))
            if index:
                found.append(normal(keys, "step", repeat * steps + index, like))
    return found


@pytest.mark.parametrize("threads", [1, 4])
def test_noise_that_is_drawn_ahead_is_the_same_bit_for_bit(threads):
    with Ahead(KEYS, threads, pinned=False) as ahead:
        assert list(ahead) == KEYS
        found = walk(ahead)
    plain = walk(KEYS)
    assert len(found) == len(plain)
    assert all(torch.equal(one, other) for one, other in zip(found, plain))


def test_a_batch_of_another_size_or_a_step_out_of_order_is_drawn_as_well():
    with Ahead(KEYS, 2, pinned=False) as ahead:
        for step, side in ((9, 40), (8, 64), (20, 64), (3, 64), (3, 64), (0, 64)):
            like = torch.empty(2, 3, side, side)
            assert torch.equal(normal(ahead, "step", step, like), normal(KEYS, "step", step, like))


class Noting:
    """A key that notes what is drawn, in which thread."""

    def __init__(self):
        self.drawn, self.threads = [], set()

    def normal(self, stream, step, shape):
        self.drawn.append(step)
        self.threads.add(threading.current_thread())
        return torch.full(shape, float(step))


def test_the_next_steps_are_drawn_before_they_are_asked_for_and_no_more_are_held():
    key, like = Noting(), torch.empty(1, 3, 8, 8)
    with Ahead([key], 1, pinned=False) as ahead:
        for step in (50, 49, 48):
            assert (normal(ahead, "step", step, like) == step).all()
            assert len(ahead._coming) == LOOK
    assert key.drawn == sorted(set(key.drawn), reverse=True)  # each once, in the walk's order
    assert min(key.drawn) >= 48 - LOOK
    assert threading.current_thread() not in key.threads


def test_the_last_step_of_a_walk_which_draws_nothing_is_not_drawn():
    key, like = Noting(), torch.empty(1, 3, 8, 8)
    with Ahead([key], 1, pinned=False) as ahead:
        for step in (2, 1):
            normal(ahead, "step", step, like)
    assert key.drawn == [2, 1]


def test_threads_end_with_the_walk_also_when_it_fails():
    key, like = Noting(), torch.empty(1, 3, 8, 8)

    def fail():
        with Ahead([key], 3, pinned=False) as ahead:
            normal(ahead, "step", 50, like)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert key.threads
    assert not any(thread.is_alive() for thread in key.threads)


def test_a_key_that_fails_in_a_thread_fails_the_walk():
    class Broken(Noting):
        def normal(self, stream, step, shape):
            raise ValueError("no noise")

    with pytest.raises(ValueError, match="no noise"), Ahead([Broken()], 1, pinned=False) as ahead:
        normal(ahead, "step", 5, torch.empty(1, 3, 8, 8))
