"""The command line: thin. The work is elsewhere, and is imported when a command runs, so `--help` is quick."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable

import cyclopts

from miudiff.cli import datasets, measuring, staining, training  # each adds its commands to the app
from miudiff.cli.app import app, complain
from miudiff.errors import MiudiffError

__all__ = ["app", "datasets", "main", "measuring", "staining", "training"]


def main(arguments: list[str] | None = None) -> None:
    """Run a command; one line and exit code 2 for a user's mistake, 130 for Ctrl-C."""
    # Before torch starts its threads: on a busy machine a spinning thread waits for one that has no core to run on, and a step
    # of the network takes many times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text in any encoding
    _log_to_stderr()
    sys.exit(
        _exit_code(
            lambda: app(
                _with_address(arguments), exit_on_error=False, print_error=False, result_action="return_value"
            )
        )
    )


class _Complain(logging.Handler):
    """Writes each record as one line on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(record.getMessage())


def _log_to_stderr() -> None:
    log = logging.getLogger("miudiff")
    if not any(isinstance(handler, _Complain) for handler in log.handlers):
        log.addHandler(_Complain())
        log.propagate = False


def _with_address(arguments: list[str] | None) -> list[str]:
    """`--cluster` without an address starts a cluster here."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for i, word in enumerate(words):
        if word == "--cluster" and (i + 1 == len(words) or words[i + 1].startswith("-")):
            words[i] = "--cluster=local"
    return words


def _exit_code(command: Callable[[], object]) -> int:
    try:
        result = command()
        return result if isinstance(result, int) else 0
    except MiudiffError as error:
        complain(str(error))
        return 2
    except cyclopts.CycloptsError as error:
        complain(" ".join(str(error).split()))
        return 2
    except KeyboardInterrupt:
        complain("interrupted; the same command goes on from here")
        return 130
    except OSError as error:  # a full disk, a lost mount, a folder without leave to write
        complain(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "))
        return 2
    except (RuntimeError, MemoryError) as error:
        from miudiff.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        complain(f"too little memory ({' '.join(str(error).split())[:120]}); free it, or take --device cpu")
        return 2
