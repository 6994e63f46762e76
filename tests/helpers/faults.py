"""Fault injection at the level of system calls: `sgsfa` commands whose files fail, vanish or are cut short."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("faults.c")


@dataclass(frozen=True)
class Result:
    """What a command did: exit code (negative: killed by a signal), output, and the number of calls that matched."""

    args: tuple[str, ...]
    code: int
    out: str
    err: str
    count: int | None

    def __str__(self) -> str:
        return f"sgsfa {' '.join(self.args)}\nexit code {self.code}\n{self.out}\n{self.err}"


def build_shim(folder: Path) -> Path:
    """Compile the library that makes system calls fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    library = folder / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SOURCE, "-ldl"], check=True)
    return library


class FaultServer:
    """Forks `sgsfa` commands from one process that has imported everything."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder, self._numbers = process, folder, itertools.count()

    def run(self, cwd: Path, /, *args: str, **fault: Any) -> Result:
        """Run one command in `cwd`; faults as in `fault_server`."""
        return self.together([(cwd, args, fault)])[0]

    def together(self, commands: Sequence[tuple[Path, Sequence[str], dict[str, Any]]]) -> list[Result]:
        """Run commands at the same time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        requests = []
        for cwd, args, fault in commands:
            fault = dict(fault)
            env = fault.pop("env", {})
            out = str(self._folder / f"{next(self._numbers)}")
            requests.append({"args": list(args), "cwd": str(cwd), "out": out, "fault": fault, "env": env})
        self._process.stdin.write(json.dumps(requests) + "\n")
        self._process.stdin.flush()
        answers = json.loads(self._process.stdout.readline())
        return [
            Result(
                tuple(request["args"]),
                answer["code"],
                Path(f"{request['out']}.out").read_text(),
                Path(f"{request['out']}.err").read_text(),
                answer["count"],
            )
            for request, answer in zip(requests, answers, strict=True)
        ]


@contextmanager
def fault_server(folder: Path) -> Iterator[FaultServer]:
    """Start a server of faulty commands; its output goes into `folder`."""
    environment = os.environ | {
        "LD_PRELOAD": str(build_shim(folder)),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    command = [sys.executable, "-m", "tests.helpers.fault_server"]
    with subprocess.Popen(
        command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield FaultServer(process, folder)
        finally:
            assert process.stdin is not None
            process.stdin.close()
