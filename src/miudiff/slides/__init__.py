"""Whole slides: read, staged, stitched and written; no networks in here."""
