"""The line of long work: when it is said, and that its numbers are right."""

import pytest

from miudiff import progress
from miudiff.progress import EVERY, Progress, duration, speed


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes when it is told to."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_a_line_is_said_every_ten_seconds_and_never_for_what_is_done(clock):
    said = []
    tell = Progress("steps", said.append)
    for done in range(101):  # two a second
        tell(done, 100)
        clock(0.5)
    assert len(said) == 50 // EVERY - 1  # none at the beginning, none at the end
    assert said[0] == "  steps 20/100  2.0 steps/s  40 s left"
    assert said[-1] == "  steps 80/100  2.0 steps/s  10 s left"


def test_what_was_done_before_says_nothing_of_the_rate(clock):
    said = []
    tell = Progress("windows", said.append, "stained")
    clock(3600)  # what happens before the first call is no part of the work
    tell(900, 1000)
    clock(20)
    tell(902, 1000)
    assert said == ["  stained 902/1000  6.0 windows/min  16 min left"]


def test_where_nothing_gets_done_nothing_is_said(clock):
    said = []
    tell = Progress("steps", said.append)
    for _ in range(5):
        tell(3, 10)
        clock(60)
    assert said == []


def test_items_pass_through_and_are_counted(clock):
    said = []
    passed = []
    for item in Progress("images", said.append, "measured").over("abcd", 4):
        passed.append(item)
        clock(6)
    assert passed == list("abcd")
    assert said == ["  measured 2/4  10.0 images/min  12 s left"]


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h"), (3e5, "3.5 days")],
)
def test_a_time_is_told_in_the_unit_that_a_reader_would_take(seconds, told):
    assert duration(seconds) == told


@pytest.mark.parametrize(("rate", "told"), [(12.34, "12.3 x/s"), (0.2, "0.2 x/s"), (0.1, "6.0 x/min")])
def test_a_slow_rate_is_told_per_minute(rate, told):
    assert speed(rate, "x") == told
