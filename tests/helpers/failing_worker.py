"""A process of `torchrun sgsfa train` in which one process fails while the other waits as within a GPU's kernel.

    torchrun failing_worker.py RANK KIND COMMAND...

Process RANK raises at its third step, a user error (`user`) or an internal error (`defect`); the other one never comes
back from its third step, as with NCCL, whose kernels know nothing of broken connections. With NCCL also taking the
group down waits for the others.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch.distributed as dist
from torch import Tensor

from pipeline.errors import DeviceError
from pipeline.runtime.process_group import rank_info
from pipeline.training import step
from sgsfa_cli.main import run


def main() -> None:
    rank, kind = int(sys.argv[1]), sys.argv[2]
    del sys.argv[1:3]
    exchange, calls = step.mean_over_processes, []

    def third(values: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) < 3:
            return exchange(values)
        if rank_info().rank != rank:
            time.sleep(3600)
        raise DeviceError("planted for users") if kind == "user" else ValueError("planted for developers")

    def waiting(*_: Any) -> None:
        time.sleep(3600)

    step.mean_over_processes = third
    dist.destroy_process_group = waiting
    run()


if __name__ == "__main__":
    main()
