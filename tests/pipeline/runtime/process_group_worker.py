"""One process of a run of two, started by torchrun from `test_process_group`.

    torchrun process_group_worker.py MODE

MODE `collectives`: use every collective, in two groups one after the other. `fail`: rank 1 raises while rank 0 waits.
"""

from __future__ import annotations

import sys

import typer

from pipeline.errors import WeightsError
from pipeline.runtime.process_group import barrier, broadcast, process_group, same_on_all_ranks
from sgsfa_cli import exit_codes, torchrun


def collectives() -> None:
    for _ in range(2):
        with process_group() as ranks, process_group():
            barrier()
            assert broadcast({"rank": ranks.rank}) == {"rank": 0}
            assert same_on_all_ranks(7)
            assert not same_on_all_ranks(ranks.rank)
    if ranks.is_main:
        print("done")


def fail() -> None:
    with process_group() as ranks:
        if not ranks.is_main:
            raise WeightsError("planted", where="here")
        barrier()


def main() -> None:
    try:
        with exit_codes.guard():
            {"collectives": collectives, "fail": fail}[sys.argv[1]]()
    except typer.Exit as stop:
        torchrun.leave(stop.exit_code)


if __name__ == "__main__":
    main()
