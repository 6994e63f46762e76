"""Masks, training, features and metrics for a CSV with path,pid,camid,split: train_on_a_csv.py DATASET.csv."""

import sys
from pathlib import Path

import sgsfa


def main(table: str, workdir: str = "run", epochs: str = "60", height: str = "256") -> None:
    """Train on the split `train` of `table`, and evaluate on its splits `query` and `gallery`."""
    folder = Path(workdir)
    folder.mkdir(exist_ok=True)
    dataset = sgsfa.open_dataset(table)
    sgsfa.build_masks(folder / "masks.h5", dataset)
    settings = {
        "train.epochs": int(epochs),
        "train.identities": 4,
        "model.backbone": "mobilenet_v2",
        "model.weights": "builtin",
        "model.height": int(height),
        "model.width": int(height) // 2,
    }
    trained = sgsfa.train(folder / "model", dataset, masks=folder / "masks.h5", settings=settings)
    print(f"{trained.steps} steps on {trained.images} images of {trained.identities} identities")
    sgsfa.extract(folder / "features.h5", dataset, folder / "model" / "model.safetensors")
    result = sgsfa.evaluate(folder / "features.h5", dataset)
    result.save(folder / "results", dataset)
    print(result.table())


if __name__ == "__main__":
    main(*sys.argv[1:])
