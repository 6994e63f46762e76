from __future__ import annotations

import pytest
import torch

from pipeline.runtime.distributed import World


@pytest.mark.parametrize(
    ("place", "asked", "given"),
    [
        (World(), "cuda", "cuda:0"),
        (World(rank=5, size=8, local_rank=1), "cuda", "cuda:1"),
        (World(rank=5, size=8, local_rank=1), "cuda:3", "cuda:3"),
        (World(rank=1, size=2, local_rank=1), "cpu", "cpu"),
        (World(), "mps", "mps"),
    ],
)
def test_a_gpu_always_has_its_number(place: World, asked: str, given: str) -> None:
    # Without it `torch.cuda.set_device` refuses it.
    assert place.device(torch.device(asked)) == torch.device(given)
