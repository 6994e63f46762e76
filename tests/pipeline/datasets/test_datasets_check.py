import shutil
from pathlib import Path

import pytest
from PIL import Image

from pipeline.datasets.check import as_whole, check_dataset
from pipeline.datasets.faults import FaultKind
from pipeline.errors import DataError, Rejected
from tests.helpers.dataset_trees import MakeTree, partial_reid_tree


def table(folder: Path, rows: list[str]) -> str:
    (folder / "people.csv").write_text("path,pid,camid,split\n" + "".join(f"{row}\n" for row in rows))
    return f"csv:{folder / 'people.csv'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(40):
        Image.new("RGB", (16, 32 + number), (5 * number, 30, 40)).save(tmp_path / f"{number:02}.jpg")
    return tmp_path


@pytest.fixture
def spec(folder: Path) -> str:
    splits = ["train"] * 20 + ["query"] * 8 + ["gallery"] * 12
    rows = [
        f"{n:02}.jpg,{n // 20 * 100 + n % 4 + 1},{int(split == 'gallery')},{split}" for n, split in enumerate(splits)
    ]
    return table(folder, rows)


def test_a_sound_set_has_no_faults(spec: str, folder: Path) -> None:
    report = check_dataset(spec)
    assert report.sound
    assert as_whole(report) is None
    assert not report.rejected
    assert [(s.split, s.images, s.ids, s.cameras) for s in report.splits] == [
        ("train", 20, 4, 1), ("query", 8, 4, 1), ("gallery", 12, 4, 1),
    ]  # fmt: skip
    assert (report.images, report.decoded) == (40, 40)
    assert report.sizes is not None
    assert (report.sizes.smallest, report.sizes.median, report.sizes.largest) == ((32, 16), (52, 16), (71, 16))
    assert report.sizes.padded == sum(height > 3 * 16 for height in range(32, 72))


def test_single_bad_images_are_rejected_but_the_set_is_whole(spec: str, folder: Path) -> None:
    data = (folder / "03.jpg").read_bytes()
    (folder / "03.jpg").write_bytes(data[: len(data) // 2])
    (folder / "07.jpg").write_bytes(b"")
    report = check_dataset(spec)
    assert not report.sound
    assert as_whole(report) is None
    assert [rejected.path for rejected in report.rejected] == ["03.jpg", "07.jpg"]
    assert report.rejected[1] == Rejected("07.jpg", "the file is empty (0 bytes)")
    assert report.decoded == 38
    assert check_dataset(spec, decode=False).sound


def test_every_fault_is_listed(folder: Path) -> None:
    (folder / "05.jpg").write_text("text")
    spec = table(
        folder,
        ["00.jpg,1,1,train", "01.jpg,1,2,query", "02.jpg,1,3,gallery", "00.jpg,1,1,train", "none.jpg,2,1,train",
         "../a.jpg,2,1,train", "03.jpg,x,1,train", "04.jpg,2,1,nowhere", "05.jpg,9,1,gallery"],
    )  # fmt: skip
    report = check_dataset(spec)
    kinds = [fault.kind for fault in report.faults]
    assert kinds.count(FaultKind.ROW) == 3
    for kind in (FaultKind.DUPLICATE, FaultKind.MISSING, FaultKind.IDENTITIES, FaultKind.IMAGE):
        assert kinds.count(kind) == 1
    assert len(report.structural) == 6
    error = as_whole(report)
    assert isinstance(error, DataError)
    assert "6 faults" in str(error)


def test_counts_and_names_are_checked_together(make_tree: MakeTree) -> None:
    tree = partial_reid_tree()
    tree["whole_body_images"] = [*tree["whole_body_images"][1:], "Unbenannt.jpg"]
    root = make_tree(tree)
    report = check_dataset(f"partial-reid:{root}")
    assert [fault.kind for fault in report.faults] == [FaultKind.NAME, FaultKind.COUNTS]
    gallery = report.splits[1]
    assert (gallery.images, gallery.expected and gallery.expected.images) == (299, 300)
    assert any("images of query identical to another one" in note for note in report.notes)


def test_a_missing_folder_is_a_fault_not_an_exception(tmp_path: Path) -> None:
    report = check_dataset(f"market1501:{tmp_path / 'none'}")
    assert [fault.kind for fault in report.faults] == [FaultKind.MISSING]
    assert [(s.split, s.images) for s in report.splits] == [("train", 0), ("query", 0), ("gallery", 0)]
    assert report.sizes is None


def test_an_unknown_kind_is_an_exception(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="unknown kind"):
        check_dataset(f"markt:{tmp_path}")


def test_queries_without_a_gallery_are_a_fault(folder: Path) -> None:
    report = check_dataset(table(folder, ["00.jpg,1,1,query"]))
    assert any("no gallery" in fault.message for fault in report.faults)


def test_queries_without_a_match_are_noted(folder: Path) -> None:
    rows = ["00.jpg,1,1,query", "01.jpg,2,1,query", "02.jpg,1,1,gallery", "03.jpg,2,2,gallery"]
    report = check_dataset(table(folder, rows))
    assert report.sound
    assert any(note.startswith("1 query has no gallery image") and "00.jpg" in note for note in report.notes)


def test_a_set_without_matches_is_not_sound(folder: Path) -> None:
    """One camera for all, as sets of one's own often have: no query has anything to find."""
    report = check_dataset(table(folder, ["00.jpg,1,1,query", "01.jpg,2,1,query", "02.jpg,1,1,gallery"]))
    (fault,) = report.faults
    assert fault.message.startswith("none of the 2 queries has a gallery image")
    assert "leave out the column camid" in (fault.hint or "")


def test_equal_images_of_two_identities_are_noted(folder: Path) -> None:
    (folder / "01.jpg").write_bytes((folder / "00.jpg").read_bytes())
    report = check_dataset(table(folder, ["00.jpg,1,1,train", "01.jpg,2,1,train"]))
    assert any("01.jpg = 00.jpg" in note and "1 of them with another identity" in note for note in report.notes)


def test_a_plain_folder_has_no_identities(folder: Path) -> None:
    report = check_dataset(f"folder:{folder}")
    assert [(s.split, s.images, s.ids, s.cameras) for s in report.splits] == [("all", 40, 0, 0)]


def test_check_dataset__retrieval_set_without_cameras_is_sound(folder: Path) -> None:
    """Every image is query and gallery, as in wildlife sets; each query ignores itself only."""
    rows = [f"{n:02}.jpg,{n % 3 + 1},{split}" for split in ("query", "gallery") for n in range(6)]
    (folder / "set.csv").write_text("path,pid,split\n" + "\n".join(rows))
    report = check_dataset(f"csv:{folder / 'set.csv'}")
    assert report.sound
    assert [(split.images, split.cameras) for split in report.splits] == [(6, 0), (6, 0)]
    assert any("no column camid" in note for note in report.notes)


@pytest.mark.parametrize("cameras", [("0", "0"), ("0", "1")])
def test_check_dataset__images_that_are_query_and_gallery_get_a_hint_that_works(
    folder: Path, cameras: tuple[str, str]
) -> None:
    roles = list(zip(("query", "gallery"), cameras, strict=True))
    report = check_dataset(table(folder, [f"{n:02}.jpg,{n % 3 + 1},{c},{role}" for role, c in roles for n in range(6)]))
    assert not report.sound
    assert "leave out the column camid" in (report.faults[0].hint or "")


def test_check_dataset__identities_that_do_not_overlap_are_named(folder: Path) -> None:
    report = check_dataset(table(folder, ["00.jpg,7,1,query", "01.jpg,1007,2,gallery"]))
    (fault,) = report.faults
    assert "7" in fault.message
    assert "1007" in fault.message
    assert "camera" not in (fault.hint or "")


def test_check_dataset__copies_of_an_image_in_two_splits_are_noted(folder: Path) -> None:
    for split in ("query", "gallery"):
        shutil.copy(folder / "00.jpg", folder / f"{split}.jpg")
    spec = table(folder, ["00.jpg,1,1,train", "query.jpg,2,1,query", "gallery.jpg,2,2,gallery"])
    notes = check_dataset(spec).notes
    assert "1 image of query identical to one of train (query.jpg = 00.jpg); 1 of them with another identity" in notes
    assert "1 image of gallery identical to one of train" in str(notes)
    spec = table(folder, ["query.jpg,2,1,query", "gallery.jpg,2,2,gallery"])
    assert "1 image of gallery identical to one of query (gallery.jpg = query.jpg)" in check_dataset(spec).notes
    # One file in both roles is stated by the table itself.
    assert not check_dataset(table(folder, ["00.jpg,2,1,query", "00.jpg,2,1,gallery", "01.jpg,2,2,gallery"])).notes
