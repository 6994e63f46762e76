"""Evaluation on a test set during training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pipeline.datasets.images import decode_batches
from pipeline.datasets.records import Dataset, Record
from pipeline.errors import DataError
from pipeline.formats.features import Features
from pipeline.matching.distance import distance_blocks
from pipeline.matching.metrics import RankStream
from pipeline.model.checkpoint import save_checkpoint
from pipeline.model.embed import embed
from pipeline.runtime.parallel import worker_count
from pipeline.runtime.progress import Task
from pipeline.training.calibrate import UNCALIBRATED, Pause, calibrate
from pipeline.training.context import TrainContext

_BATCH = 64


class Evaluator:
    """Embeds and ranks the query and gallery of a test set with the default matching rule.

    The network of the best epoch so far is kept in the file `best`.

    Raises:
        DataError: There are no queries or no gallery.
    """

    def __init__(self, dataset: Dataset, context: TrainContext, best: Path) -> None:
        self._dataset, self._context, self._best = dataset, context, best
        self._query, self._gallery = dataset.split("query"), dataset.split("gallery")
        if not (self._query and self._gallery):
            raise DataError(
                f"{dataset.name} has {len(self._query)} queries and {len(self._gallery)} gallery images",
                where=dataset.root,
                hint="set data.tests to a test set, or train.eval_every=0",
            )
        self._calibration = UNCALIBRATED

    def evaluate(self, network: nn.Module, pause: Pause) -> dict[str, float]:
        """Return rank-1, mAP and mINP as fractions; images that cannot be read are left out."""
        self._calibration = calibrate(network, self._context, pause)
        total = len(self._query) + len(self._gallery)
        with self._context.progress.task("test", total=total) as task:
            query = self._embed(network, self._query, task, pause)
            gallery = self._embed(network, self._gallery, task, pause)
        stream = RankStream(query.pids, gallery.pids, query.camids, gallery.camids)
        for block in distance_blocks(query, gallery, device=self._context.device):
            pause()
            stream.update(block)
        result = stream.compute()
        return {"rank1": result.rank(1), "mAP": result.mAP, "mINP": result.mINP}

    def keep_best(self, network: nn.Module, epoch: int) -> None:
        """Save the network that was evaluated last."""
        save_checkpoint(self._best, network, self._calibration.complete(self._context.meta, epoch))

    def _embed(self, network: nn.Module, records: tuple[Record, ...], task: Task, pause: Pause) -> Features:
        paths = [self._dataset.path_of(record) for record in records]
        (height, width), fit = self._context.size, self._context.model.fit
        outputs, kept = [], []
        for batch in decode_batches(paths, height, width, batch=_BATCH, threads=worker_count(-1), fit=fit):
            pause()
            images, positions = batch.readable_images()
            if positions:
                pixels = torch.from_numpy(images).to(self._context.device)
                outputs.append(embed(network, pixels, amp=self._context.config.amp))
                kept += [records[i] for i in positions]
            task.advance(len(batch.images))
        if not outputs:
            raise DataError("no test image can be read", where=self._dataset.root)
        return Features.from_arrays(
            torch.cat([each.parts for each in outputs]).cpu(),
            torch.cat([each.global_feature for each in outputs]).cpu(),
            torch.cat([each.visibility for each in outputs]).cpu(),
            thresholds=self._calibration.thresholds,
            pids=[record.pid for record in kept],
            camids=[record.camid for record in kept],
        )
