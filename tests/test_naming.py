"""What the words of names mean."""

import pytest

from miudiff.naming import is_nuclear


@pytest.mark.parametrize(
    ("marker", "nuclear"),
    [("Ki-67", True), ("ER/PR", True), ("er + pr", True), ("HER2", False), ("Ki67/HER2", False), ("", False)],
)
def test_markers_are_nuclear_where_each_of_them_is(marker, nuclear):
    assert is_nuclear(marker) is nuclear
