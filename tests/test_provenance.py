"""What a result was made of: a digest that sees another source, and the words in which a difference is told."""

import os

import pytest

from miudiff import provenance
from miudiff.errors import DataError
from miudiff.provenance import SOURCE, difference, source_digest


def write(path, content, seconds=0):
    path.write_bytes(content)
    os.utime(path, (1e9 + seconds, 1e9 + seconds))
    return path


def test_a_small_source_is_known_by_its_content_alone(tmp_path):
    path = write(tmp_path / "a", b"tissue" * 1000)
    before = source_digest(path)
    assert source_digest(write(tmp_path / "b", b"tissue" * 1000, seconds=5)) == before
    assert source_digest(write(path, b"tissuE" + b"tissue" * 999)) != before


def test_a_large_source_is_known_by_samples_and_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "WHOLE", 1000)
    monkeypatch.setattr(provenance, "SAMPLE", 16)
    monkeypatch.setattr(provenance, "SAMPLES", 8)
    content = os.urandom(5000)
    path = write(tmp_path / "a", content)
    before = source_digest(path)
    assert source_digest(write(path, content)) == before
    assert source_digest(write(path, content, seconds=1)) != before, "changed between the samples, perhaps"
    assert source_digest(write(path, b"x" + content[1:])) != before
    assert source_digest(write(path, content[:-1] + b"x")) != before
    assert source_digest(write(path, content[:-1])) != before


def test_what_belongs_to_a_source_is_part_of_its_digest(tmp_path):
    path = write(tmp_path / "a.mrxs", b"index")
    assert source_digest(path, "pixels") != source_digest(path, "other pixels")


def test_a_source_that_is_gone_is_one_line(tmp_path):
    with pytest.raises(DataError, match="gone: cannot be read"):
        source_digest(tmp_path / "gone")


def test_a_difference_names_the_innermost_setting_both_values_and_the_source():
    before = {"seed": 0, "config": {"reverse": {"steps": 60, "start": 300}}, "source": "a.svs", SOURCE: "1"}
    assert difference(before, before) == ""
    now = before | {"config": {"reverse": {"steps": 10, "start": 300}}}
    assert difference(now, before) == "another 'config.reverse.steps' (60, now 10)"
    other = {"source": "b.svs", SOURCE: "2"}
    assert difference(before | other, before, ("source",)) == "another source (a.svs, now b.svs)"
    told = difference(now | other, before, ("source",))
    assert told == "another 'config.reverse.steps' (60, now 10) and another source (a.svs, now b.svs)"
    assert difference(before | {SOURCE: "2"}, before) == "another source (a.svs has changed)"


def test_a_setting_that_a_record_does_not_have_is_a_difference_unless_it_is_free():
    assert difference({"mode": "fuse"}, {}) == "another 'mode' (none, now \"fuse\")"
    assert difference({"mode": "fuse"}, {}, ("mode",)) == ""
