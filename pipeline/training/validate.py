"""Testing the network on a test set during training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pipeline.config import ModelConfig, Precision
from pipeline.datasets.images import decode_batches
from pipeline.datasets.records import Dataset, Record
from pipeline.errors import DataError
from pipeline.formats.features import Features
from pipeline.matching.distance import distance_blocks
from pipeline.matching.metrics import RankStream
from pipeline.model.embed import embed
from pipeline.runtime.parallel import worker_count
from pipeline.runtime.progress import Progress, Task
from pipeline.training.calibrate import Calibration

_BATCH = 64


class TestSet:
    """Query and gallery of a test set, embedded and ranked with the default matching rule.

    Args:
        dataset: The test set.
        model: The network's configuration.
        device: Where the network is.
        amp: Precision of the forwards.
        keep: Keeps the weights of the best network so far, with its thresholds.
        calibrated: Finds visibility thresholds for the network as it is now; its second argument is `test`'s `pause`.
        progress: Where to report.

    Raises:
        DataError: There are no queries or no gallery.
    """

    __test__ = False  # not a test, whatever pytest takes its name for

    def __init__(
        self,
        dataset: Dataset,
        model: ModelConfig,
        device: torch.device,
        amp: Precision,
        keep: Callable[[nn.Module, int, Calibration], None],
        calibrated: Callable[[nn.Module, Callable[[], None]], Calibration],
        progress: Progress,
    ) -> None:
        self._dataset, self._model, self._device, self._amp = dataset, model, device, amp
        self._progress = progress
        self._query, self._gallery = dataset.split("query"), dataset.split("gallery")
        if not (self._query and self._gallery):
            raise DataError(
                f"{dataset.name} has {len(self._query)} queries and {len(self._gallery)} gallery images",
                where=dataset.root,
                hint="name a test set in data.tests, or set train.eval_every=0",
            )
        self._calibrated, self._keep = calibrated, keep
        self._calibration: Calibration | None = None

    def test(self, model: nn.Module, pause: Callable[[], None]) -> dict[str, float]:
        """Rank-1, mAP and mINP as fractions; images that cannot be read are left out.

        Args:
            model: In evaluation mode.
            pause: Called now and then; an exception of it ends the test.
        """
        self._calibration = self._calibrated(model, pause)
        with self._progress.task("test", total=len(self._query) + len(self._gallery)) as task:
            query = self._embed(model, self._query, task, pause)
            gallery = self._embed(model, self._gallery, task, pause)
        stream = RankStream(query.pids, gallery.pids, query.camids, gallery.camids)
        for block in distance_blocks(query, gallery, device=self._device):
            pause()
            stream.update(block)
        result = stream.compute()
        return {"rank1": result.rank(1), "mAP": result.mAP, "mINP": result.mINP}

    def keep(self, model: nn.Module, epoch: int) -> None:
        """Keep the network that was tested last."""
        assert self._calibration is not None, "test comes first"
        self._keep(model, epoch, self._calibration)

    def _embed(self, model: nn.Module, records: tuple[Record, ...], task: Task, pause: Callable[[], None]) -> Features:
        assert self._calibration is not None
        paths = [self._dataset.path_of(record) for record in records]
        found, kept = [], []
        for batch in decode_batches(
            paths, self._model.height, self._model.width, batch=_BATCH, threads=worker_count(-1)
        ):
            pause()
            if len(batch.index):
                images = torch.from_numpy(batch.images).to(self._device)
                found.append(embed(model, images, amp=self._amp))
                kept += [records[i] for i in batch.index.tolist()]
            task.advance(len(batch.index) + len(batch.failed))
        if not found:
            raise DataError("none of the test images can be read", where=self._dataset.root)
        return Features.from_arrays(
            torch.cat([each.parts for each in found]).cpu(),
            torch.cat([each.global_feature for each in found]).cpu(),
            torch.cat([each.visibility for each in found]).cpu(),
            thresholds=self._calibration.thresholds,
            pids=[record.pid for record in kept],
            camids=[record.camid for record in kept],
        )
