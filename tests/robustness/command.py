"""The command line in a process of its own: many commands one after the other, each bounded in time and its memory measured.

A command must end by itself, in a known exit code, without a traceback; `Ended.wrong` says what it did instead.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
CODES = (0, 2, 3, 130)

SERVER = """
import contextlib, io, json, os, sys, traceback
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
import torch
from miudiff.cli import main
torch.set_num_threads(1)
answers = os.fdopen(os.dup(1), "w")

def peak():
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) // 1024
    except OSError:
        return 0

for line in sys.stdin:
    words = [os.fsdecode(bytes.fromhex(word)) for word in json.loads(line)]
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is measured anew
    before, code, out, err = peak(), None, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
    answers.write(json.dumps([code, out.getvalue(), err.getvalue(), peak() - before]) + "\\n")
    answers.flush()
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Exit code; None after a traceback or a hang.
        out: What it wrote on stdout.
        err: What it wrote on stderr.
        memory: MiB by which it grew at most; 0 where the system does not tell.
        hung: It had to be killed.
    """

    code: int | None
    out: str
    err: str
    memory: int
    hung: bool = False

    def wrong(self, most_memory: int = 1500) -> str:
        """What no command may do, "" if it did none of that."""
        if self.hung:
            return "did not end"
        if "Traceback" in self.err or self.code not in CODES:
            return f"code {self.code}: {self.err[-600:]}"
        if self.code == 2 and not self.err.startswith("miudiff: "):
            return f"code 2 without a line on stderr: {self.err[-300:]!r}"
        if self.memory > most_memory:
            return f"took {self.memory} MiB"
        return ""


class CommandLine:
    """`miudiff` in another process, which is started anew after a hang or a crash.

    Args:
        seconds: After so long a command counts as hung.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self.seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, *words: str | Path) -> Ended:
        """Run one command."""
        process = self._running()
        assert process.stdin
        assert process.stdout
        line = json.dumps([os.fsencode(str(word)).hex() for word in words]) + "\n"
        process.stdin.write(line.encode())
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], self.seconds)
        if not ready:
            self.close()
            return Ended(None, "", "", 0, hung=True)
        answer = process.stdout.readline()
        if not answer:
            code = process.wait()
            self._process = None
            return Ended(code, "", f"the process died (code {code})", 0)
        return Ended(*json.loads(answer))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@dataclass
class Tally:
    """Counts of one trial, told at the end of the test run."""

    seed: int
    tried: int = 0
    wrong: list[str] | None = None

    def add(self, what: str, wrong: str) -> None:
        """Count one case; `wrong` is empty where it went well."""
        self.tried += 1
        self.wrong = self.wrong or []
        if wrong:
            self.wrong.append(f"{what}: {wrong}")

    def check(self) -> None:
        """Fail if any case did, and name the first ones."""
        wrong = self.wrong or []
        shown = "\n".join(wrong[:20])
        assert not wrong, f"seed {self.seed}: {len(wrong)} of {self.tried} went wrong\n{shown}"
