"""Windows stained by actors under Ray: the same bytes as here, also when a worker is killed on the way."""

import os
import signal
import threading
import time

import pytest

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


@pytest.fixture(scope="module")
def cluster_of(tmp_path_factory):
    """Makes clusters of two workers; Ray itself is started once."""
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(make_slide.__code__.co_filename).rsplit("/", 1)[0], os.environ.get("PYTHONPATH", "")]
    )
    from miudiff.cluster import LOCAL, Cluster

    made = []

    def make(load, **options):
        made.append(Cluster(LOCAL, 2, load, **options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


def test_two_workers_stain_as_one_process_does(cluster_of, tmp_path):
    source = make_slide(tmp_path / "he.tif", 700, 1100)
    here = translate(source, tmp_path / "here")
    cluster = cluster_of(PlaceStainer, batch=3)
    there = translate(source, tmp_path / "there", engine=cluster.stained(NoiseKey(0, "slide")))
    assert there.read_bytes() == here.read_bytes()


def test_the_work_of_a_killed_worker_is_done_again(cluster_of, tmp_path):
    from functools import partial

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


def test_what_a_worker_cannot_read_is_told_as_it_is_here(cluster_of, tmp_path):
    cluster = cluster_of(PlaceStainer)
    with pytest.raises(SlideError, match=r"damaged\.tif: the region .* cannot be read"):
        translate(damaged(tmp_path), tmp_path / "out", engine=cluster.stained(NoiseKey(0, "slide")))


def broken():
    raise ConfigError("no such model")


def test_a_stainer_that_does_not_load_is_told_in_one_line(cluster_of):
    with pytest.raises((ClusterError, ConfigError), match="no such model") as caught:
        cluster_of(broken)
    assert "\n" not in str(caught.value)
