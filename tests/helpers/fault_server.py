"""Runs `sgsfa` commands under injected faults, each in a forked child, so that PyTorch is imported once.

    LD_PRELOAD=faults.so python -m tests.helpers.fault_server

Reads one JSON object per line: `args`, `cwd`, `out` (prefix of the files that receive stdout and stderr), and the
arguments of `fault_set` in faults.c. Answers with `pid`, and when the child has ended with `code` and `count` (of the
calls that matched). Several lines may be sent before the first has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import pkgutil
import struct
import sys
from typing import Any

KINDS = {"open": 1, "write": 2, "read": 4, "rename": 8, "lock": 16}


def main() -> None:
    """Serve requests until standard input ends."""
    _import_everything()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        children = [_start(each) for each in request]
        print(json.dumps([_finish(*child) for child in children]), flush=True)


def _import_everything() -> None:
    """Import all modules once, before the first fork."""
    for package in ("pipeline", "sgsfa_synth", "sgsfa_cli"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                with contextlib.suppress(ImportError):  # optional packages
                    importlib.import_module(module.name)


def _start(request: dict[str, Any]) -> tuple[int, int]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(request, writer)
    os.close(writer)
    return pid, reader


def _finish(pid: int, reader: int) -> dict[str, Any]:
    data = os.read(reader, 8)
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    return {"code": os.waitstatus_to_exitcode(status), "count": struct.unpack("q", data)[0] if data else None}


def _child(request: dict[str, Any], writer: int) -> None:
    from sgsfa_cli.main import run

    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{request['out']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["cwd"])
    os.environ.update(request.get("env", {}))
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    shim.fault_count.restype = ctypes.c_long
    fault = request.get("fault", {})
    shim.fault_set(
        os.fsencode(fault.get("folder", "")),
        sum(KINDS[kind] for kind in fault.get("kinds", ())),
        ctypes.c_long(fault.get("first", 0)),
        ctypes.c_long(fault.get("last", 1 << 40)),
        fault.get("errno", 0),
        fault.get("signal", 0),
        os.fsencode(fault.get("vanish", "")),
        fault.get("jump", 0),
    )
    sys.argv = ["sgsfa", *request["args"]]
    code: object = 0
    try:
        run()
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(writer, struct.pack("q", shim.fault_count()))
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    main()
