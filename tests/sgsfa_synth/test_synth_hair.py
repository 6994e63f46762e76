from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sgsfa_synth.body import body_model, nearest_skin, shaped
from sgsfa_synth.hair import above_hairline, azimuth, covered_scalp, hair_pieces
from sgsfa_synth.identity import Hair
from sgsfa_synth.mesh import Label

MODEL = body_model()
REST = shaped(MODEL, MODEL.samples[2])
SHORT = Hair("short", (0.1, 0.1, 0.1), 0.0, 1.0, 0.2, 0.0, False, 0.8)


def at(x: float, y: float, z: float) -> np.ndarray:
    return np.array([[x, y, z]], np.float32)


def test_azimuth_is_symmetric_from_forehead_to_nape() -> None:
    assert azimuth(at(0, -0.15, 0.85))[0] == pytest.approx(0)
    assert azimuth(at(0, 0.05, 0.85))[0] == pytest.approx(np.pi)
    assert azimuth(at(0.08, -0.05, 0.8))[0] == pytest.approx(azimuth(at(-0.08, -0.05, 0.8))[0])


def test_the_hairline_leaves_face_and_ears_free() -> None:
    crown, forehead, brow, ear = (
        at(0, -0.05, 0.912),
        at(0, -0.145, 0.86),
        at(0.03, -0.145, 0.815),
        at(0.08, -0.05, 0.78),
    )
    assert above_hairline(crown, SHORT)[0] > 0.02
    for bare in (forehead, brow, ear):
        assert above_hairline(bare, SHORT)[0] < 0
    fringe = replace(SHORT, style="bob", fringe=True)
    assert above_hairline(forehead, fringe)[0] > 0 > above_hairline(brow, fringe)[0]


def test_no_hair_is_expected_on_the_body() -> None:
    covered = covered_scalp(MODEL, SHORT)
    assert (covered[MODEL.template[:, 2] < 0.68] < 0).all()
    assert (covered > 0).any()


@pytest.mark.parametrize("style", ["crop", "short", "curly", "bob", "long", "ponytail", "bun"])
def test_hair_is_on_the_head(style: str) -> None:
    pieces = hair_pieces(MODEL, REST, replace(SHORT, style=style), under_hat=False, clearance=0.02, texture=1)
    assert len(pieces) == (1 if style in ("crop", "short", "curly") else 2)
    for piece in pieces:
        assert (piece.label == Label.HAIR).all()
        assert np.isfinite(piece.rest).all()
        near, _ = nearest_skin(piece.rest - (REST.heads - MODEL.heads)[MODEL.bone["head"]], count=1)
        off = np.linalg.norm(piece.rest - REST.vertices[near[:, 0]], axis=1)
        assert off.min() < 0.02, "it starts at the head"
        assert off.max() < 0.16, "and hangs close"


def test_bald_means_none_and_hats_press_hair_flat() -> None:
    assert hair_pieces(MODEL, REST, replace(SHORT, style="bald"), under_hat=False, clearance=0.0, texture=1) == []
    free = hair_pieces(MODEL, REST, SHORT, under_hat=False, clearance=0.0, texture=1)[0]
    flat = hair_pieces(MODEL, REST, SHORT, under_hat=True, clearance=0.0, texture=1)[0]
    assert flat.rest[:, 2].max() < free.rest[:, 2].max()
