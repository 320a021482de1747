"""Mistakes that a user can make and mend. Each message says what was found, what was expected and the fix.

Programmers' mistakes stay `ValueError`; the command line turns a `MiudiffError` into one line and exit code 2.
"""

import errno


class MiudiffError(Exception):
    """A user's mistake, told in one line."""


class ConfigError(MiudiffError):
    """A configuration file or `key=value` is wrong."""


class DataError(MiudiffError):
    """An image, a folder or a dataset cannot be used as it is."""


def unwritable(path: object, error: OSError) -> DataError:
    """What to raise for a file or folder that an operating system's error keeps from being written."""
    full = error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))  # Windows has no quota
    fix = "; free some space, and the same command goes on" if full else ""
    return DataError(f"{path}: cannot be written ({error.strerror or error}){fix}")


class CheckpointError(MiudiffError):
    """Weights or a training state are missing, damaged or do not fit."""


class DeviceError(MiudiffError):
    """The device or precision that was asked for is not there."""


class SlideError(DataError):
    """A whole-slide image cannot be read or lacks what is needed."""


class BusyError(DataError):
    """Another process is at work on it."""


class NonFiniteError(MiudiffError):
    """Training or a translation met a NaN or an infinity.

    Args:
        here: Whether this process's own images gave it; else it may have come with another process's gradients.
        step: The step of training that met it, where one did.
    """

    def __init__(self, message: str, here: bool = True, step: int = -1) -> None:
        super().__init__(message)
        self.here, self.step = here, step


class PeerError(MiudiffError):
    """Another process of this run ended."""


class ClusterError(MiudiffError):
    """A machine or process of a cluster cannot do its part."""
