from __future__ import annotations

import cv2
import numpy as np
import pytest

from benchmarks.synth_difficulty import (
    MIN_PIXELS,
    MISSING,
    ClassColours,
    class_colours,
    oracle_distances,
    without_cameras,
)
from sgsfa_synth.mesh import Label


def drawn(seed: int, count: int) -> ClassColours:
    random = np.random.default_rng(seed)
    shown = random.random((count, len(Label))) < 0.6
    shown[:, Label.BACKGROUND] = False
    colours = random.normal(0, 20, (count, len(Label), 3)) * shown[..., None]
    return ClassColours(colours.astype(np.float32), shown)


def test_colours_are_means_over_the_true_class() -> None:
    image = np.zeros((128, 64, 3), np.uint8)
    labels = np.zeros((128, 64), np.uint8)
    image[:64], labels[:64] = (200, 30, 40), Label.UPPER_CLOTHES
    image[64:, :32], labels[64:, :32] = (20, 30, 160), Label.PANTS
    image[64:, 32:], labels[64:, 32:] = (60, 70, 220), Label.PANTS
    labels[0, : MIN_PIXELS - 1] = Label.HAT
    found = class_colours([(image, labels)])
    assert np.flatnonzero(found.shown[0]).tolist() == [Label.UPPER_CLOTHES, Label.PANTS]
    lab = cv2.cvtColor((image / np.float32(255)).astype(np.float32), cv2.COLOR_RGB2LAB)
    for label in (Label.UPPER_CLOTHES, Label.PANTS):
        np.testing.assert_allclose(found.colours[0, label], lab[labels == label].mean(0), rtol=1e-4)
    assert not found.colours[0, Label.HAT].any()


def test_each_class_loses_its_mean_in_each_camera() -> None:
    raw = drawn(0, 30)
    cameras = np.arange(30) % 3
    centred = without_cameras(raw, cameras)
    np.testing.assert_array_equal(centred.shown, raw.shown)
    for row in range(30):
        for label in range(len(Label)):
            mates = (cameras == cameras[row]) & raw.shown[:, label]
            wanted = raw.colours[row, label] - raw.colours[mates, label].mean(0) if raw.shown[row, label] else 0
            np.testing.assert_allclose(centred.colours[row, label], wanted, atol=1e-4)


def test_distances_against_a_loop() -> None:
    queries, gallery = drawn(1, 4), drawn(2, 5)
    out = oracle_distances(queries, gallery)
    for q in range(4):
        for g in range(5):
            both = [k for k in range(len(Label)) if queries.shown[q, k] and gallery.shown[g, k]]
            lacking = int((queries.shown[q] != gallery.shown[g]).sum())
            apart = [float(np.linalg.norm(queries.colours[q, k] - gallery.colours[g, k])) for k in both]
            assert out[q, g] == pytest.approx(sum(apart) / max(len(apart), 1) + MISSING * lacking, rel=1e-5)
