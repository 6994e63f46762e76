"""A process of a distributed run whose batch normalisation is frozen; started by test_training_distributed.

Frozen, because its statistics are taken over each process's own images, which is the one thing that the number of
processes is meant to change.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.config import LossConfig
from pipeline.datasets.records import Dataset
from pipeline.runtime.process_group import broadcast, process_group
from pipeline.training import run, setup
from tests.helpers.training import make_masks, make_people, small_model, small_training

build = setup.build_model


def frozen(*arguments: Any, **options: Any) -> nn.Module:
    model = build(*arguments, **options)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
    return model


def main() -> None:
    setup.build_model = frozen
    out = Path(sys.argv[1])
    with process_group() as ranks:
        train(out, make_people(out / "people") if ranks.is_main else None)


def train(out: Path, made: Dataset | None) -> None:
    dataset = broadcast(made)
    assert dataset is not None
    config = small_training(
        identities=4,
        epochs=10,
        epoch_length="identities",
        gather=True,
        ema=0,
        occlude=0.5,
        eval_every=5,
        occluded_copies=0.5,
    )
    masks = broadcast(None if made is None else make_masks(out / "masks.h5", dataset, failed=3))
    assert masks is not None
    run.train(
        out / "run",
        dataset=dataset,
        masks=masks,
        model=small_model(necks=True, global_dim=8),
        loss=LossConfig(triplet_on="parts"),
        config=config,
        tests=[dataset],
    )


if __name__ == "__main__":
    main()
