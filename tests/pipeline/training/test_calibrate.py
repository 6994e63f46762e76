"""Visibility thresholds, the metrics file and its picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import ModelConfig
from pipeline.model.visibility import visible_parts
from pipeline.parts import PARTS
from pipeline.training.calibrate import NEVER, Calibration, from_samples, roc_auc
from pipeline.training.curves import draw_curves
from pipeline.training.metrics_log import MetricsLog, read_metrics


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 200), st.integers(0, 30))
def test_thresholds__miss_two_percent_of_the_unmodified_images_that_show_a_part(
    seed: int, unmodified: int, occluded: int
) -> None:
    stream = np.random.default_rng(seed)
    predicted = stream.random((unmodified + occluded, 7), np.float32)
    true = stream.random((unmodified + occluded, 7)) < 0.6
    got = from_samples(torch.from_numpy(predicted), torch.from_numpy(true), reference=unmodified)
    for i, part in enumerate(PARTS):
        visible, shown = predicted[:, i] > got.thresholds[i], true[:, i]
        count = shown[:unmodified].sum()
        if count == 0:
            assert got.thresholds[i] == NEVER
        else:
            missed = (~visible[:unmodified] & shown[:unmodified]).sum()
            assert abs(missed - 0.02 * count) <= 1
        if shown.any() and not shown.all():
            assert got.accuracy[part] == pytest.approx((visible[shown].mean() + (~visible[~shown]).mean()) / 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 30))
def test_roc_auc__is_the_share_of_pairs_in_order(seed: int, count: int) -> None:
    stream = np.random.default_rng(seed)
    scores, labels = stream.integers(0, 5, count).astype(np.float32), stream.random(count) < 0.5
    labels[:2] = True, False
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[labels] for b in scores[~labels]]
    assert roc_auc(scores, labels) == pytest.approx(np.mean(pairs))


def test_thresholds__of_parts_that_are_always_visible() -> None:
    found = from_samples(torch.full((5, 7), 0.25), torch.ones(5, 7, dtype=torch.bool), reference=5)
    assert set(found.accuracy.values()) == {1.0}
    assert found.auc == {}
    nothing = from_samples(torch.zeros(5, 7), torch.ones(5, 7, dtype=torch.bool), reference=5)
    assert nothing.thresholds == (0.0,) * 7


@pytest.mark.parametrize(("hidden", "known"), [(1, False), (19, False), (20, True), (80, True), (81, False)])
def test_auc__needs_enough_samples_of_both_kinds(hidden: int, known: bool) -> None:
    true = torch.ones(100, 7, dtype=torch.bool)
    true[:hidden, PARTS.index("upper")] = False
    found = from_samples(torch.rand(100, 7), true, reference=100)
    assert set(found.auc) == ({"upper"} if known else set())


def test_calibration__names_parts_with_a_poor_auc() -> None:
    assert Calibration((0.0,) * 7, {}, {"head": 0.95, "shoes": 0.4}).weak == {"shoes": 0.4}


def person(head: bool, feet: bool) -> torch.Tensor:
    parts = torch.zeros(4, 16, 8)
    if head:
        parts[0, 2:4, 3:5] = 1
    parts[1, 4:8, 2:6] = 1
    parts[2, 8:13, 2:6] = 1
    if feet:
        parts[3, 13:15, 2:6] = 1
    else:
        parts[:, 8:] = 0
    return parts


def test_true_visibility_of_whole_and_cut_people() -> None:
    parts = torch.stack([person(True, True), person(True, False), person(False, True), torch.zeros(4, 16, 8)])
    got = visible_parts(parts, ModelConfig())
    names = [{part for part, shown in zip(PARTS, row, strict=True) if shown} for row in got.tolist()]
    assert names[0] == set(PARTS)
    # Rows 2 to 15 are divided 15, 23, 62 %: the bottom begins in row 7, which still shows the upper body.
    assert names[1] == {"head", "upper", "top", "middle", "bottom"}
    assert names[2] == {"upper", "lower", "shoes"}
    assert names[3] == set()
    # At test time `paper` begins a row below the head's maximum: the bottom strip lies below all that the second shows.
    below = visible_parts(parts, ModelConfig(head_row_test="max+1"))
    assert got[1, 6]
    assert not below[1, 6]
    assert visible_parts(parts, ModelConfig(head_row_test="max+1"), training=True).tolist() == got.tolist()
    by_head = visible_parts(parts, ModelConfig(body_height="head"))
    assert by_head[2].tolist() == got[2].tolist()


def fill(path: Path, steps: int) -> None:
    with MetricsLog(path) as log:
        for step in range(1, steps + 1):
            log.write("step", step=step, epoch=1 + (step - 1) // 2, values={"lr": 1e-3, "loss": 1 / step})
            if step % 2 == 0:
                values = {"loss": 1 / step, "lr": 1e-3, "visibility_accuracy": {"head": 0.5}}
                log.write("epoch", step=step, epoch=step // 2, values=values)
                log.write("evaluation", step=step, epoch=step // 2, values={"rank1": 0.1 * step, "mAP": 0.05 * step})


def test_lines_after_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    fill(path, 6)
    with path.open("a") as file:
        file.write('{"kind": "step", "st')
    with MetricsLog(path, step=3) as log:
        log.write("step", step=4, epoch=2, values={"loss": float("nan")})
    lines = list(read_metrics(path))
    assert [line["step"] for line in lines if line["kind"] == "step"] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if line["kind"] == "epoch"] == [2]
    assert lines[-1]["loss"] is None


def test_a_run_from_the_start_begins_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    fill(path, 4)
    with MetricsLog(path):
        pass
    assert list(read_metrics(path)) == []


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_curves_are_drawn_from_whatever_there_is(tmp_path: Path, steps: int) -> None:
    fill(tmp_path / "metrics.jsonl", steps)
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
