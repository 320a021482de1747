"""Work that is begun before it is asked for: in order, so much and no more, and its threads end."""

import threading
import time

import pytest

from miudiff.ahead import begun_ahead


def test_items_come_in_order_with_what_was_made_of_them():
    with_results = [
        (item, made.result()) for item, made in begun_ahead(lambda n: n * n, iter(range(9)), 3, 2)
    ]
    assert with_results == [(n, n * n) for n in range(9)]


@pytest.mark.parametrize("most", [1, 2, 5])
def test_so_many_are_begun_and_no_more(most):
    asked = []
    begun = begun_ahead(lambda n: n, (asked.append(n) or n for n in range(20)), most)
    next(begun)
    assert len(asked) == most
    next(begun)
    assert len(asked) == most + 1
    begun.close()


def test_the_next_is_made_while_the_one_before_is_in_use():
    made = threading.Event()
    begun = begun_ahead(lambda n: made.set() if n else None, range(2), 2)
    next(begun)
    assert made.wait(10)
    begun.close()


def test_what_fails_fails_where_its_result_is_asked_for():
    begun = begun_ahead(lambda n: 1 // n, [1, 0, 2], 2)
    results = [made for _, made in begun]
    assert (results[0].result(), results[2].result()) == (1, 0)
    with pytest.raises(ZeroDivisionError):
        results[1].result()


def test_closed_early_it_begins_no_more_and_its_threads_end():
    seen = []

    def work(n):
        seen.append((n, threading.current_thread()))
        time.sleep(0.02)

    begun = begun_ahead(work, range(50), 40)
    next(begun)[1].result()
    begun.close()
    seen[0][1].join(10)
    assert not seen[0][1].is_alive()
    assert len(seen) < 40
