from pathlib import Path

from pipeline.formats.provenance import Provenance
from pipeline.formats.resume import conflict

PATH = Path("some/file")
RECORDED = Provenance({"batch_size": 8, "flip": True, "seed": 1})


def test_conflict__equal_records_and_incidental_differences_may_be_resumed() -> None:
    smaller = Provenance({**RECORDED.values, "batch_size": 4})
    assert conflict("mask file", PATH, RECORDED, Provenance(RECORDED.values)) is None
    assert conflict("mask file", PATH, RECORDED, smaller) is not None
    assert conflict("mask file", PATH, RECORDED, smaller, incidental=lambda each: each.key == "batch_size") is None


def test_conflict__names_the_file_and_each_difference_that_counts() -> None:
    current = Provenance({"batch_size": 4, "flip": False, "seed": 2})
    error = conflict("mask file", PATH, RECORDED, current, incidental=lambda each: each.key == "batch_size")
    assert error is not None
    assert error.where == str(PATH)
    assert all(text in error.message for text in ("mask file", "flip changed from true to false", "seed changed"))
    assert "batch_size" not in error.message
