"""A process of a distributed run whose second process fails while the leader is busy.

    torchrun ending_worker.py MODE

MODE `joining`: it fails before the processes are connected, which the leader waits for. `working`: in the joint work,
of which the leader does its share without a look at the other.
"""

from __future__ import annotations

import sys
import time

import typer

from pipeline.errors import WeightsError
from pipeline.runtime import distributed
from sgsfa_cli import console, torchrun


def fail(*_: object) -> None:
    raise WeightsError("planted", where="here", hint="pull it out")


def work() -> None:
    if distributed.world().rank == 1:
        fail()
    for _ in range(1200):
        time.sleep(0.05)


def main() -> None:
    from ending_worker import work  # by the name that the other process can import it by

    if sys.argv[1] == "joining" and not distributed.world().leader:
        distributed._join = fail
    if torchrun.joined():
        return
    try:
        with console.guard(), torchrun.leading():
            distributed.together(work)
    except typer.Exit as stop:
        torchrun.end(stop.exit_code)


if __name__ == "__main__":
    main()
