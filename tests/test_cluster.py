"""Windows stained by actors under Ray: the same bytes as here, also when a worker is killed on the way."""

import logging
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from miudiff.cluster import LOCAL, Cluster
from miudiff.errors import ClusterError, ConfigError, SlideError
from miudiff.noise import NoiseKey
from slide_run import PlaceStainer, make_slide, translate
from test_slide_runner import damaged

pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Ray runs on Linux and macOS")


class Telling(PlaceStainer):
    """Leaves its process' number in a folder, so that the test can kill it."""

    def __init__(self, folder, seconds):
        super().__init__(seconds=seconds)
        (folder / str(os.getpid())).touch()


@pytest.fixture(scope="module", autouse=True)
def machine():
    """A Ray of this machine's own, started once."""
    import ray

    here = str(Path(__file__).parent)
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join((here, *sys.path))}},
    )
    yield
    ray.shutdown()


@pytest.fixture
def cluster_of():
    """Makes clusters of two workers."""
    made = []

    def make(load, **options):
        made.append(Cluster(LOCAL, 2, load, **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


def test_two_workers_stain_as_one_process_does_and_tell_what_they_cannot_read(cluster_of, tmp_path):
    source = make_slide(tmp_path / "he.tif", 700, 1100)
    here = translate(source, tmp_path / "here")
    engine = cluster_of(PlaceStainer, batch=3).stained(NoiseKey(0, "slide"))
    there = translate(source, tmp_path / "there", engine=engine)
    assert there.read_bytes() == here.read_bytes()
    with pytest.raises(SlideError, match=r"damaged\.tif: the region .* cannot be read"):
        translate(damaged(tmp_path), tmp_path / "out", engine=engine)


def test_the_work_of_a_killed_worker_is_done_again(cluster_of, tmp_path):
    source = make_slide(tmp_path / "he.tif", 700, 1100)
    here = translate(source, tmp_path / "here")
    (tmp_path / "workers").mkdir()
    cluster = cluster_of(partial(Telling, tmp_path / "workers", 0.15), batch=2)
    killed = []

    def kill():
        time.sleep(1.0)
        pid = int(sorted(os.listdir(tmp_path / "workers"))[0])
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    there = translate(source, tmp_path / "there", engine=cluster.stained(NoiseKey(0, "slide")))
    thread.join()
    assert killed
    assert len(os.listdir(tmp_path / "workers")) == 3  # two, and the one that took the dead one's place
    assert there.read_bytes() == here.read_bytes()


def test_more_workers_than_there_is_room_for_are_told(monkeypatch):
    monkeypatch.setattr("miudiff.cluster.START", 5.0)
    with pytest.raises(ClusterError, match="--workers: 3 workers are not up after 5 s"):
        Cluster(LOCAL, 3, PlaceStainer)


def broken():
    raise ConfigError("no such model")


def test_a_stainer_that_does_not_load_is_told_in_one_line(cluster_of):
    with pytest.raises((ClusterError, ConfigError), match="no such model") as caught:
        cluster_of(broken)
    assert "\n" not in str(caught.value)
