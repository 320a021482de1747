"""What miudiff costs on this machine, each figure as a ratio against a named alternative measured in the same run.

`timing` times, `machine` says on what; `network`, `methods`, `slide_io` and `training` measure one thing each, and `report` runs
them all and prints the table. Nothing here is used by the package itself.
"""
