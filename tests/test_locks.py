"""Locks: one process at a time, let go however it ends, and never left behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

from miudiff.locks import is_held, lock, lock_of

SOURCE = Path(__file__).parent.parent / "src"
HOLD = """
import sys, time
from pathlib import Path
from miudiff.locks import lock
with lock(Path(sys.argv[1])) as held:
    print("held" if held else "refused", flush=True)
    time.sleep(60)
"""


def holder(path):
    """Another process that holds `path`, once it does."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().strip() == "held"
    return process


def test_a_lock_is_refused_while_another_process_holds_it_and_free_once_that_one_is_killed(tmp_path):
    path = tmp_path / "new" / "lock"
    other = holder(path)
    try:
        assert is_held(path)
        with lock(path) as held:
            assert held is None
    finally:
        other.kill()
        other.wait()
    assert not is_held(path)
    with lock(path) as held:
        assert held is not None
    assert not path.exists(), "a lock leaves no file behind"


def test_waiting_for_a_lock_ends_when_its_holder_does(tmp_path):
    other = holder(tmp_path / "lock")
    began = time.monotonic()
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {other.pid}"])
    with lock(tmp_path / "lock", wait=True) as held:
        assert held is not None
    other.wait()
    assert time.monotonic() - began < 30


def test_a_lock_that_its_holder_removes_is_not_shared_with_who_opened_it_before(tmp_path):
    path = tmp_path / "lock"
    with lock(path) as first:
        assert first is not None
        path.unlink()  # as its holder does when it lets go
        with lock(path) as second:
            assert second is not None
            assert is_held(path)


def test_a_lock_of_a_name_as_long_as_the_disk_allows_has_a_short_one(tmp_path):
    with lock(lock_of(tmp_path / ("x" * 255))) as held:
        assert held is not None
