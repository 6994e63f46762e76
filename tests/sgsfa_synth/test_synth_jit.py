from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from sgsfa_synth.jit import njit

ROOT = Path(__file__).resolve().parents[2]


def test_njit__compiles_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("cannot cache function 'double': no locator available for file")

    monkeypatch.setattr(numba.core.dispatcher.Dispatcher, "enable_caching", refuse)

    @njit
    def double(number: int) -> int:
        return 2 * number

    assert double(21) == 42
    assert double.signatures  # type: ignore[attr-defined]


@pytest.mark.slow
def test_renderer__imports_from_a_read_only_package_without_a_home() -> None:
    mount = f"mount --bind {ROOT} {ROOT} && mount -o remount,ro,bind {ROOT}"
    script = f"{mount} && exec {sys.executable} -c 'import sgsfa_synth.scene'"
    command = ["unshare", "-rm", "sh", "-c", script]
    if shutil.which("unshare") is None or subprocess.run([*command[:2], "true"], check=False).returncode:
        pytest.skip("needs the right to mount")
    environment = os.environ | {"HOME": "/proc/nowhere", "TMPDIR": "/proc/nowhere", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
