"""How long a run is said to take: near what it takes, without a trace in the result; and the windows a preview chooses."""

from types import SimpleNamespace

import numpy as np
import pytest

import miudiff.slides.pace as pace
from miudiff import estimate
from miudiff.images import write_image
from miudiff.methods.presets import preset
from miudiff.methods.refinement import Refinement
from miudiff.methods.sdedit import Reverse
from miudiff.slides.choice import densest, only
from miudiff.slides.encoding import Compression
from miudiff.slides.frame import Frame
from miudiff.slides.overview import TissueMap
from miudiff.slides.pace import seconds_beside
from miudiff.slides.reader import open_slide
from miudiff.slides.sight import Sight
from miudiff.stainer import VirtualStainer
from miudiff.translation import translate_files
from slide_run import GRID, make_slide, paint
from tiny import CPU, tiny_model


def stainer(*changes, **how):
    words = ("reverse.steps=6", *changes)
    return VirtualStainer(tiny_model(), preset("fast", words), CPU, glass="stain", **how)


class Clock:
    """Goes only when it is told to, so that other work on the machine does not matter."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        for module in (estimate, pace):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def paid(self, function, seconds):
        """A function that takes so many seconds by this clock, a number or one of its arguments."""

        def slow(*words, **names):
            self.now += seconds(*words) if callable(seconds) else seconds
            return function(*words, **names)

        return slow


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def slowed(stainer, clock):
    """Every step of the network takes half a second for each image of a batch."""
    reverse = stainer.reverse
    reverse.transition = clock.paid(reverse.transition, lambda y, *rest: 0.5 * len(y))
    return stainer


def slide(tmp_path, height=400, width=400):
    source = open_slide(make_slide(tmp_path / "he.tif", height, width))
    return Sight(source, Frame(width, height, width, height, *GRID))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_window_takes_the_time_of_its_steps(clock, batch):
    slow = slowed(stainer(batch=batch), clock)
    assert estimate.seconds_per_window(slow, (64, 64), batch) == pytest.approx(6 * 0.5)
    assert clock.now < batch * 6 * 0.5  # some of the steps are taken
    assert slow.reverse.watch is None


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_a_walk_of_few_steps_takes_the_time_of_its_steps(clock, steps):
    slow = slowed(stainer(f"reverse.steps={steps}"), clock)
    assert estimate.seconds_per_window(slow, (64, 64), 1) == pytest.approx(steps * 0.5)


def test_refined_steps_are_counted_at_their_own_price(clock, monkeypatch):
    refining = slowed(stainer("refinement.loss=pixels", "refinement.start=75"), clock)
    refined = refining.method.refined_steps
    assert 0 < refined < 6
    monkeypatch.setattr(Refinement, "step", clock.paid(Refinement.step, 2.0))
    monkeypatch.setattr(Reverse, "transition", clock.paid(Reverse.transition, 0.5))
    monkeypatch.delattr(refining.reverse, "transition")
    found = estimate.seconds_per_window(refining, (64, 64), 1)
    assert found == pytest.approx(6 * 0.5 + refined * 2.0)


def test_what_is_beside_the_network_is_added_on_a_processor_and_hidden_on_an_accelerator():
    assert estimate.Pace(2.0, 1.0, 0.5, False).seconds(10, 4) == pytest.approx(32)
    assert estimate.Pace(2.0, 1.0, 0.5, True).seconds(10, 4) == pytest.approx(20)
    assert estimate.Pace(2.0, 1.0, 0.5, True).seconds(1, 40) == pytest.approx(21)


def test_a_slow_disk_is_part_of_the_pace_of_a_slide(tmp_path, clock, monkeypatch):
    sight = slide(tmp_path)
    windows, none = sight.parted()
    assert not none
    assert seconds_beside(sight, Compression(), windows) == 0
    reader = type(sight.slide)
    monkeypatch.setattr(reader, "read", clock.paid(reader.read, 0.25))
    assert seconds_beside(sight, Compression(), windows) == pytest.approx(0.25)
    assert seconds_beside(sight, Compression(), []) == 0
    monkeypatch.setattr(Compression, "encode", clock.paid(Compression.encode, 0.6))
    assert seconds_beside(sight, Compression(), windows) == pytest.approx(0.25 + 0.6 * 4 / 3)


def test_a_pace_has_the_network_and_what_shares_its_processor(tmp_path, clock, monkeypatch):
    sight = slide(tmp_path)
    monkeypatch.setattr(Compression, "encode", clock.paid(Compression.encode, 0.6))
    found = estimate.pace_of(slowed(stainer(), clock), sight, Compression(), *sight.parted())
    assert found == pytest.approx((3.0, 0.8 / CPU.threads, 0.0, False))


def test_the_line_before_a_folder_of_images_tells_its_time_and_leaves_no_trace(tmp_path, clock, monkeypatch):
    for name in ("a.png", "b.png"):
        write_image(tmp_path / "in" / name, paint(200, 150))
    lines: list[str] = []
    slow = slowed(stainer(), clock)
    translate_files(slow, tmp_path / "in", tmp_path / "out", mpp=1.0, seed=0, say=lines.append)
    windows = slow.steps(200, 150) // 6 * 2
    assert f"about {windows * 3:.0f} s for {windows} windows of 2 images" in lines
    monkeypatch.setattr("miudiff.translation.tell_images", lambda *rest: None)
    translate_files(stainer(), tmp_path / "in", tmp_path / "quiet", mpp=1.0, seed=0)
    for name in ("a.png", "b.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "quiet" / name).read_bytes()


def test_few_windows_are_not_measured(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", paint(64, 64))
    monkeypatch.setattr(estimate, "seconds_per_window", None)
    estimate.tell_images(stainer(), [tmp_path / "a.png"], lambda path: 1.0, pytest.fail)
    sight = slide(tmp_path, 160, 160)
    estimate.tell_slide(stainer(), sight, Compression(), *sight.parted(), pytest.fail)


def test_a_preview_takes_the_densest_windows_spread_over_the_tissue():
    frame = Frame(1100, 700, 1100, 700, *GRID)
    every = [window for row in range(len(frame.tops)) for window in frame.row(row)]
    share = np.full((70, 110), 128, np.uint8)
    share[10:14, 10:14] = 0  # dense in the left part
    share[50:54, 90:94] = 0  # and in the right
    chosen = densest(frame, every, TissueMap(share, 10, 10), 2)
    left, right = sorted(chosen, key=lambda at: at.left)
    assert left.left <= 100 < 140 <= left.left + 160
    assert left.top <= 100 < 140 <= left.top + 160
    assert right.left <= 900 < 940 <= right.left + 160
    assert right.top <= 500 < 540 <= right.top + 160
    assert densest(frame, every, TissueMap(share, 10, 10), 40) == every


@pytest.mark.parametrize("count", [1, 2, 3, 7, 20, 39, 40])
def test_a_preview_takes_as_many_windows_as_it_is_given_and_none_twice(count):
    frame = Frame(1100, 700, 1100, 700, *GRID)
    every = [window for row in range(len(frame.tops)) for window in frame.row(row)]
    share = np.random.default_rng(0).integers(0, 256, (70, 110), np.uint8)
    chosen = densest(frame, every, TissueMap(share, 10, 10), count)
    assert len(set(chosen)) == count
    assert chosen == densest(frame, every, TissueMap(share, 10, 10), count)
    assert chosen == sorted(chosen)


def test_only_the_chosen_windows_are_needed_and_shown(tmp_path):
    sight = slide(tmp_path)
    windows, _ = sight.parted()
    few = only(sight, [windows[0], windows[4]])
    assert few.parted()[0] == [windows[0], windows[4]]
    shown = few.asked_for(few.frame.box(0, 0, 400, 400))
    assert shown[:156, :156].all()  # up to the margin, but from the border of the slide
    assert not shown[:116, 160:].any()
    assert shown[windows[4].top + 4, windows[4].left + 4]
    assert not shown[windows[4].top + 3, windows[4].left + 100 :].any()
