"""Every reader on a tree with the real names and counts."""

import errno
import itertools
import os
import shutil
from pathlib import Path, PurePosixPath

import pytest

from pipeline.datasets.layout import BOXES
from pipeline.datasets.records import Dataset
from pipeline.datasets.registry import kinds, open_dataset
from pipeline.errors import DataError
from tests.helpers.dataset_trees import (
    MakeTree,
    cuhk03_tree,
    duke_tree,
    market_names,
    market_tree,
    msmt17_names,
    occluded_duke_lists,
    occluded_reid_tree,
    p_duke_tree,
    partial_ilids_tree,
    partial_reid_tree,
)

SHARED = Path(os.environ.get("SGSFA_SHARED") or Path(__file__).parents[4] / "shared")

TREES = {
    "market1501": market_tree,
    "dukemtmc": duke_tree,
    "p-duke": p_duke_tree,
    "p-duke/supervised": p_duke_tree,
    "p-duke/transfer": p_duke_tree,
    "occluded-reid": occluded_reid_tree,
    "partial-reid": partial_reid_tree,
    "partial-reid/partial": partial_reid_tree,
    "partial-ilids": partial_ilids_tree,
    "cuhk03-np": cuhk03_tree,
    "cuhk03-np/labeled": cuhk03_tree,
    "cuhk03-np/detected": cuhk03_tree,
}
DEFAULTS = (
    "market1501",
    "dukemtmc",
    "p-duke/transfer",
    "cuhk03-np/detected",
    *[label for label in TREES if "partial" in label],
    "occluded-reid",
)
SMALL = ("occluded-reid", "partial-reid", "partial-reid/partial", "partial-ilids")


def sizes(dataset: Dataset) -> dict[str, int]:
    return {split: len(dataset.split(split)) for split in ("train", "query", "gallery")}


def published(label: str) -> dict[str, int]:
    name, _, variant = label.partition("/")
    info = next(info for info in kinds() if info.name == name)
    return {split: count.images for split, count in info.counts[variant].items()}


def message(spec: str, **options: bool) -> str:
    with pytest.raises(DataError) as caught:
        open_dataset(spec, **options)
    return str(caught.value)


@pytest.mark.parametrize("label", TREES)
def test_the_published_counts_pass(label: str, shared_tree: MakeTree) -> None:
    root = shared_tree(TREES[label]())
    dataset = open_dataset(f"{label}:{root}")
    assert {split: size for split, size in sizes(dataset).items() if size} == published(label)
    assert dataset.kind == label.partition("/")[0]
    assert all(dataset.path_of(record).is_file() for record in dataset.records[::97])
    # Gallery order breaks ties, so it must not depend on the file system.
    names = [record.path for record in dataset.split("gallery")]
    assert names == sorted(names)


@pytest.mark.parametrize("label", TREES)
def test_one_folder_more_is_found(label: str, make_tree: MakeTree) -> None:
    if label not in SMALL:
        tree = {folder: list(names)[:2] for folder, names in TREES[label]().items()}
    else:
        tree = TREES[label]()
    nested = {f"archive/v1/{folder}": names for folder, names in tree.items()}
    root = make_tree(nested)
    dataset = open_dataset(f"{label}:{root}", expect_counts=False)
    assert (root / "archive" / "v1") in (dataset.root, dataset.root.parent)
    assert dataset.records


@pytest.mark.parametrize("label", DEFAULTS)
def test_one_image_less_is_reported(label: str, shared_tree: MakeTree) -> None:
    root = shared_tree(TREES[label]())
    dataset = open_dataset(f"{label}:{root}")
    for split in published(label):
        record = dataset.split(split)[-1]
        kept = dataset.path_of(record).rename(root.with_name("kept"))
        text = message(f"{label}:{root}")
        assert f"{split}: found {published(label)[split] - 1:,} images" in text
        assert f"expected: {published(label)[split]:,} images" in text
        # The folder that was looked in, at whatever depth the images lie.
        assert str(dataset.root / PurePosixPath(record.path).parts[0]) in text
        if label in SMALL and label != "partial-ilids":
            assert f"identity {record.pid} has 4 of 5" in text
        assert len(open_dataset(f"{label}:{root}", expect_counts=False).split(split)) == published(label)[split] - 1
        kept.rename(dataset.path_of(record))
    open_dataset(f"{label}:{root}")


@pytest.mark.parametrize("label", DEFAULTS)
def test_a_doubled_image_is_reported_by_name(label: str, shared_tree: MakeTree) -> None:
    root = shared_tree(TREES[label]())
    dataset = open_dataset(f"{label}:{root}")
    path = dataset.path_of(dataset.split("query")[0])
    copies = [path.with_suffix(".bmp")]
    if not label.startswith(("occluded-reid", "p-duke")):
        # The names inside an identity's folder are free.
        copies += [path.with_stem(f"{path.stem} (1)"), path.with_stem(f"{path.stem}_copy")]
    for copy in copies:
        os.link(path, copy)
        assert copy.name in message(f"{label}:{root}")
        copy.unlink()


def test_an_image_in_two_queries_of_a_camera_is_named(shared_tree: MakeTree) -> None:
    root = shared_tree(market_tree())
    os.link(root / "query/0800_c1s1_000000_00.jpg", root / "query/0800_c1s1_000007_00.jpg")
    text = message(f"market1501:{root}")
    (root / "query/0800_c1s1_000007_00.jpg").unlink()
    assert "two queries of one camera: query/0800_c1s1_000000_00.jpg, query/0800_c1s1_000007_00.jpg" in text


def test_market_drops_junk_and_keeps_distractors(shared_tree: MakeTree) -> None:
    dataset = open_dataset(f"market1501:{shared_tree(market_tree())}")
    assert min(record.pid for record in dataset.records) == 0
    assert sum(record.pid == 0 for record in dataset.split("gallery")) == 2_798
    assert "3,819 junk images (-1) of bounding_box_test dropped" in dataset.notes
    assert any("2,798 distractors" in note for note in dataset.notes)
    assert {record.camid for record in dataset.records} == set(range(1, 7))


@pytest.mark.parametrize("name", ["0002_c7s1_000451_03.jpg", "0002_c0s1_000451_03.jpg", "2_c1s1_000451_03.jpg",
                                  "0002_c1_000451_03.jpg", "-2_c1s1_000451_03.jpg", "readme.png"])  # fmt: skip
def test_market_names_that_do_not_parse_are_named(name: str, make_tree: MakeTree) -> None:
    tree = {"bounding_box_train": ["0002_c1s1_000451_03.jpg", name], "query": [], "bounding_box_test": []}
    assert name in message(f"market1501:{make_tree(tree)}", expect_counts=False)


def test_missing_folders_are_all_named(make_tree: MakeTree) -> None:
    root = make_tree({"bounding_box_train": ["0002_c1s1_000451_03.jpg"]})
    text = message(f"market1501:{root}")
    assert "query is missing" in text
    assert "bounding_box_test is missing" in text
    tolerant = open_dataset(f"market1501:{root}", expect_counts=False)
    assert len(tolerant.records) == 1
    assert any("query is missing" in note for note in tolerant.notes)


@pytest.mark.parametrize("info", [info for info in kinds() if info.name != "csv"], ids=lambda info: info.name)
def test_no_folder_an_empty_folder_and_a_file_are_refused(info: object, tmp_path: Path) -> None:
    name = getattr(info, "name", "")
    assert "does not exist" in message(f"{name}:{tmp_path / 'none'}")
    (tmp_path / "empty").mkdir()
    for options in ({}, {"expect_counts": False}):
        assert str(tmp_path / "empty") in message(f"{name}:{tmp_path / 'empty'}", **options)
    (tmp_path / "file").write_text("text")
    assert "is a file" in message(f"{name}:{tmp_path / 'file'}")


def test_sets_without_cameras_get_pseudo_cameras(make_tree: MakeTree) -> None:
    for label, tree in (("partial-reid", partial_reid_tree()), ("partial-ilids", partial_ilids_tree())):
        dataset = open_dataset(f"{label}:{make_tree(tree)}")
        assert {record.camid for record in dataset.split("query")} == {0}
        assert {record.camid for record in dataset.split("gallery")} == {1}
        assert any("no cameras" in note for note in dataset.notes)


def test_partial_reid_never_reads_a_shot_as_a_camera(shared_tree: MakeTree) -> None:
    root = shared_tree(partial_reid_tree())
    for label in ("partial-reid", "partial-reid/partial"):
        dataset = open_dataset(f"{label}:{root}")
        assert len({(record.pid, record.camid) for record in dataset.records}) == 120
        # With a shot for a camera, the camera rule would leave a query four of its five positives.
        for query in dataset.split("query"):
            left = [r for r in dataset.split("gallery") if r.pid == query.pid and r.camid != query.camid]
            assert len(left) == 5


def test_partial_reid_has_two_kinds_of_query(shared_tree: MakeTree) -> None:
    root = shared_tree(partial_reid_tree())
    default, partial = open_dataset(f"partial-reid:{root}"), open_dataset(f"partial-reid/partial:{root}")
    assert default.split("query")[0].path.startswith("occluded_body_images/")
    assert partial.split("query")[0].path.startswith("partial_body_images/")
    assert default.split("gallery") == partial.split("gallery")
    assert default.name != partial.name


def test_occluded_reid_reads_jpg_too(make_tree: MakeTree) -> None:
    assert len(open_dataset(f"occluded-reid:{make_tree(occluded_reid_tree('jpg'))}").records) == 2_000


def test_occluded_reid_wants_identity_folders(make_tree: MakeTree) -> None:
    tree = occluded_reid_tree()
    tree["whole_body_images"] = [*tree["whole_body_images"], "001_06.tif"]
    assert "001_06.tif" in message(f"occluded-reid:{make_tree(tree)}")


def test_partial_ilids_folders_may_be_spelt_otherwise(make_tree: MakeTree) -> None:
    tree = partial_ilids_tree()
    assert len(open_dataset(f"partial-ilids:{make_tree({'query': tree['Probe'], 'gallery': tree['Gallery']})}").records)


def test_p_duke_transfer_has_nothing_to_train_on(shared_tree: MakeTree) -> None:
    tree = {folder: names for folder, names in p_duke_tree().items() if folder.startswith("test")}
    dataset = open_dataset(f"p-duke/transfer:{shared_tree(tree)}")
    assert not dataset.split("train")
    assert any("transfer" in note for note in dataset.notes)


def test_cuhk03_is_read_from_the_boxes_folder_itself(shared_tree: MakeTree) -> None:
    root = shared_tree(cuhk03_tree())
    inner, outer = open_dataset(f"cuhk03-np/detected:{root}/detected"), open_dataset(f"cuhk03-np/detected:{root}")
    assert inner.records == outer.records
    assert "found 7,365 images" in message(f"cuhk03-np/labeled:{root}/detected")


def occluded_duke(make_tree: MakeTree, duke: dict[str, list[str]], lists: dict[str, list[str]]) -> Path:
    """Name lists beside a DukeMTMC-reID tree."""
    root = make_tree({f"DukeMTMC-reID/{folder}": names for folder, names in duke.items()})
    (root / "Occluded_Duke").mkdir()
    for split, names in lists.items():
        (root / "Occluded_Duke" / f"{split}.list").write_text("".join(f"{name}\n" for name in names))
    return root


@pytest.fixture
def small_occluded_duke(make_tree: MakeTree) -> Path:
    """The same with 2 training images, 2 queries, of which one is a gallery image, and 3 gallery images."""
    duke = {
        "bounding_box_train": ["0001_c2_f0046182.jpg", "0001_c3_f0046182.jpg", "0002_c1_f0044158.jpg"],
        "query": ["0005_c2_f0046985.jpg", "0009_c1_f0044946.jpg"],
        "bounding_box_test": ["0005_c1_f0046985.jpg", "0009_c3_f0044946.jpg", "7140_c8_f0000001.jpg"],
    }
    lists = {
        "train": duke["bounding_box_train"][:2],
        "query": ["0005_c1_f0046985.jpg", "0009_c1_f0044946.jpg"],
        "gallery": duke["bounding_box_test"],
    }
    return occluded_duke(make_tree, duke, lists)


def test_occluded_duke_is_read_by_its_lists(make_tree: MakeTree) -> None:
    root = occluded_duke(make_tree, duke_tree(), occluded_duke_lists())
    dataset = open_dataset(f"occluded-duke:{root}")
    assert sizes(dataset) == published("occluded-duke")
    assert dataset.root == root / "DukeMTMC-reID"
    assert any(note.startswith("1,870 of the 2,210 queries are gallery files too") for note in dataset.notes)
    queries = [record.path for record in dataset.split("query")]
    assert sum(path.startswith("query/") for path in queries) == 340
    assert sum(path.startswith("bounding_box_test/") for path in queries) == 1_870


def test_occluded_duke_lists_may_lie_beside_in_or_above_the_tree(small_occluded_duke: Path) -> None:
    root = small_occluded_duke
    expected = open_dataset(f"occluded-duke:{root}", expect_counts=False)
    assert sizes(expected) == {"train": 2, "query": 2, "gallery": 3}
    assert expected.split("query")[0].path == "bounding_box_test/0005_c1_f0046985.jpg"
    assert expected.split("query")[1].path == "query/0009_c1_f0044946.jpg"
    for target in (root / "Occluded_Duke", root / "DukeMTMC-reID", root):
        for file in sorted(root.rglob("*.list")):
            file.rename(target / file.name)
        assert open_dataset(f"occluded-duke:{target}", expect_counts=False).records == expected.records


def test_occluded_duke_lists_in_this_folder_find_the_tree_beside_it(
    small_occluded_duke: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_occluded_duke / "Occluded_Duke")
    assert sizes(open_dataset("occluded-duke:.", expect_counts=False)) == {"train": 2, "query": 2, "gallery": 3}
    (small_occluded_duke / "Occluded_Duke" / "sub").mkdir()
    monkeypatch.chdir(small_occluded_duke / "Occluded_Duke" / "sub")
    assert sizes(open_dataset("occluded-duke:..", expect_counts=False)) == {"train": 2, "query": 2, "gallery": 3}
    link = small_occluded_duke.parent / "linked"
    link.symlink_to(small_occluded_duke / "Occluded_Duke", target_is_directory=True)
    (small_occluded_duke / "DukeMTMC-reID").rename(small_occluded_duke.parent / "DukeMTMC-reID")
    assert sizes(open_dataset(f"occluded-duke:{link}", expect_counts=False)) == {"train": 2, "query": 2, "gallery": 3}


def test_occluded_duke_lists_without_images_ask_for_the_unpacked_data_set(small_occluded_duke: Path) -> None:
    shutil.rmtree(small_occluded_duke / "DukeMTMC-reID")
    with pytest.raises(DataError) as caught:
        open_dataset(f"occluded-duke:{small_occluded_duke}", expect_counts=False)
    assert caught.value.where == str(small_occluded_duke / "Occluded_Duke")
    assert "unzip DukeMTMC-reID" in (caught.value.hint or "")
    archive = small_occluded_duke / "DukeMTMC-reID.zip"
    archive.touch()
    with pytest.raises(DataError, match="unpack the archive"):
        open_dataset(f"dukemtmc:{archive}")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may look everywhere")
def test_a_closed_folder_beside_the_data_is_passed_over(make_tree: MakeTree) -> None:
    root = make_tree({folder: ["0001_c1s1_000151_01.jpg"] for folder in BOXES})
    closed = root / "lost+found"
    closed.mkdir(mode=0)
    assert open_dataset(f"market1501:{root}", expect_counts=False).root == root


def test_a_list_that_cannot_be_read_is_a_fault(small_occluded_duke: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path, *arguments: object, **options: object) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", closed)
    assert "the list cannot be read: Permission denied" in message(f"occluded-duke:{small_occluded_duke}")


def test_the_home_of_an_unknown_user_does_not_exist() -> None:
    assert "does not exist" in message("csv:~no-user-of-this-name/people.csv")


def test_occluded_duke_lists_name_what_is_missing_and_doubled(small_occluded_duke: Path) -> None:
    (small_occluded_duke / "DukeMTMC-reID/bounding_box_train/0001_c3_f0046182.jpg").unlink()
    with (small_occluded_duke / "Occluded_Duke/query.list").open("a") as stream:
        stream.write("0009_c1_f0044946.jpg\nsomeone.jpg\n\n")
    text = message(f"occluded-duke:{small_occluded_duke}")
    assert "1 of 2 listed images do not exist: 0001_c3_f0046182.jpg (line 2)" in text
    assert "query.list, line 3: 0009_c1_f0044946.jpg is listed already" in text
    assert "query.list, line 4: the name 'someone.jpg' does not follow the layout" in text


def test_occluded_duke_lists_without_images_are_refused(small_occluded_duke: Path) -> None:
    shutil.rmtree(small_occluded_duke / "DukeMTMC-reID")
    assert "the name lists are here, but no folder" in message(f"occluded-duke:{small_occluded_duke}")


def test_occluded_duke_is_read_from_converted_folders(shared_tree: MakeTree) -> None:
    folders = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
    root = shared_tree({folders[split]: names for split, names in occluded_duke_lists().items()})
    dataset = open_dataset(f"occluded-duke:{root}")
    assert sizes(dataset) == published("occluded-duke")
    assert any(note.startswith("1,870 of the 2,210 queries are gallery files too") for note in dataset.notes)


def test_dukemtmc_itself_is_not_taken_for_occluded_duke(shared_tree: MakeTree) -> None:
    text = message(f"occluded-duke:{shared_tree(duke_tree())}")
    assert "found 16,522 images" in text
    assert "15,618" in text


def msmt17(root: Path, counts: dict[str, int], train_ids: int, test_ids: int) -> dict[str, list[str]]:
    train = msmt17_names(range(train_ids), counts["train"] + counts["val"])
    test = msmt17_names(range(test_ids), counts["query"] + counts["gallery"])
    lists = {
        "train": train[: counts["train"]],
        "val": train[counts["train"] :],
        "query": test[: counts["query"]],
        "gallery": test[counts["query"] :],
    }
    for name, lines in lists.items():
        text = "".join(f"{line} {int(line[:4])}\n" for line in lines)
        (root / f"list_{name}.txt").write_text(text)
    return lists


def test_msmt17_tells_train_and_test_identities_apart(make_tree: MakeTree) -> None:
    for folders in (("train", "test"), ("mask_train_v2", "mask_test_v2")):
        root = make_tree({folders[0]: msmt17_names(range(4), 12), folders[1]: msmt17_names(range(5), 30)})
        msmt17(root, {"train": 8, "val": 4, "query": 10, "gallery": 20}, 4, 5)
        dataset = open_dataset(f"msmt17:{root}", expect_counts=False)
        assert sizes(dataset) == {"train": 12, "query": 10, "gallery": 20}
        assert {record.pid for record in dataset.split("train")} == set(range(4))
        assert {record.pid for record in dataset.split("gallery")} == set(range(10_000, 10_005))
        assert dataset.split("train")[0].camid == 1
        assert not any("identities are in train" in note for note in dataset.notes)
        shutil.rmtree(root)


def test_msmt17_lists_name_what_is_wrong(make_tree: MakeTree) -> None:
    root = make_tree({"train": msmt17_names(range(2), 4), "test": msmt17_names(range(2), 6)})
    lists = msmt17(root, {"train": 2, "val": 2, "query": 2, "gallery": 4}, 2, 2)
    (root / "test" / lists["gallery"][0]).unlink()
    with (root / "list_query.txt").open("a") as stream:
        stream.write(f"{lists['query'][0]} 0\n{lists['query'][1]} 7\nno-name 3\n")
    text = message(f"msmt17:{root}", expect_counts=False)
    assert "listed already" in text
    assert "listed as identity '7'" in text
    assert "no-name" in text
    assert lists["gallery"][0] in message(f"msmt17:{root}")


@pytest.mark.slow
def test_msmt17_with_its_real_counts(make_tree: MakeTree) -> None:
    counts = {"train": 30_248, "val": 2_373, "query": 11_659, "gallery": 82_161}
    tree = {"train": msmt17_names(range(1_041), 32_621), "test": msmt17_names(range(3_060), 93_820)}
    root = make_tree(tree)
    msmt17(root, counts, 1_041, 3_060)
    assert sizes(open_dataset(f"msmt17:{root}")) == published("msmt17")


def test_hidden_files_are_passed_over_and_others_noted(make_tree: MakeTree) -> None:
    tree = partial_reid_tree()
    tree["whole_body_images"] = [*tree["whole_body_images"], "Thumbs.db", "._001_001.jpg", ".DS_Store"]
    dataset = open_dataset(f"partial-reid:{make_tree(tree)}")
    assert any("Thumbs.db" in note for note in dataset.notes)
    assert len(dataset.records) == 600


def test_two_data_sets_below_one_folder_are_ambiguous(make_tree: MakeTree) -> None:
    tree = {f"{top}/{folder}": names for top, (folder, names) in itertools.product("ab", partial_reid_tree().items())}
    assert "2 folders fit: a, b" in message(f"partial-reid:{make_tree(tree)}")


def test_open_dataset__ambiguous_root_stays_an_error_without_counts(make_tree: MakeTree) -> None:
    root = make_tree({f"{top}/{folder}": market_names([3], 6) for top in ("v15", "cropped") for folder in BOXES})
    text = message(f"market1501:{root}", expect_counts=False)
    assert "cropped, v15" in text
    assert str(root / "cropped") in text


def test_open_dataset__unreadable_folder_stays_an_error_without_counts(
    make_tree: MakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree({folder: market_names([3], 6) for folder in BOXES})
    original = os.walk

    def closed(folder: Path, **options: object) -> object:
        if Path(folder).name == "query":
            options["onerror"](PermissionError(errno.EACCES, "Permission denied", str(folder)))  # type: ignore[operator]
            return iter(())
        return original(folder, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "walk", closed)
    assert "Permission denied" in message(f"market1501:{root}", expect_counts=False)


def test_open_dataset__missing_listed_images_are_one_line_reported_once(
    make_tree: MakeTree, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_tree({"train": msmt17_names(range(2), 4), "test": msmt17_names(range(2), 600)})
    lists = msmt17(root, {"train": 2, "val": 2, "query": 2, "gallery": 598}, 2, 2)
    for name in lists["gallery"][1:]:
        (root / "test" / name).unlink()
    for _ in range(2):
        dataset = open_dataset(f"msmt17:{root}", expect_counts=False)
        lost = [note for note in dataset.notes if "do not exist" in note]
        assert len(lost) == 1
        assert "597 of 598" in lost[0]
        assert lists["gallery"][1] in lost[0]
        assert len(lost[0]) < 600
    assert sum("597 of 598" in text for text in caplog.messages) == 1


def test_market1501__renamed_folders_get_a_hint_from_what_exists(make_tree: MakeTree) -> None:
    root = make_tree({folder: market_names([3], 6) for folder in ("train", "query", "gallery")})
    with pytest.raises(DataError) as caught:
        open_dataset(f"market1501:{root}")
    assert "gallery, query, train" in caught.value.message
    assert "rename or link train to bounding_box_train" in (caught.value.hint or "")
    (root / "train").rename(root / "bounding_box_train")
    (root / "gallery").rename(root / "bounding_box_test")
    assert open_dataset(f"market1501:{root}", expect_counts=False).records


def test_market1501__images_in_a_folder_per_person_are_described(make_tree: MakeTree) -> None:
    folders = {"bounding_box_train": market_names([3], 6), "bounding_box_test": market_names([4], 6)}
    root = make_tree({**folders, **{f"query/000{pid}": market_names([pid], 2) for pid in (4, 5, 6, 7)}})
    text = message(f"market1501:{root}", expect_counts=False)
    assert "query holds 4 folders with images" in text
    assert "directly in it" in text


def test_msmt17__version_2_without_lists_is_described(make_tree: MakeTree) -> None:
    root = make_tree({f"MSMT17_V2/mask_{part}_v2": msmt17_names(range(2), 4) for part in ("train", "test")})
    text = message(f"msmt17:{root}", expect_counts=False)
    assert "lists are missing" in text
    assert str(root / "MSMT17_V2") in text
    assert "train is missing" not in text


def test_msmt17__listed_names_match_in_another_spelling(make_tree: MakeTree) -> None:
    root = make_tree({"train": msmt17_names(range(2), 4), "test": msmt17_names(range(2), 6)})
    lists = msmt17(root, {"train": 2, "val": 2, "query": 2, "gallery": 4}, 2, 2)
    image = root / "test" / lists["query"][0]
    image.rename(image.with_suffix(".JPG"))
    dataset = open_dataset(f"msmt17:{root}", expect_counts=False)
    assert dataset.path_of(dataset.split("query")[0]).is_file()
    assert len(dataset.split("query")) == 2


def test_cuhk03__raw_archive_names_the_new_protocol(make_tree: MakeTree) -> None:
    root = make_tree({"cuhk03_release": []})
    (root / "cuhk03_release").mkdir(parents=True)
    (root / "cuhk03_release" / "cuhk-03.mat").touch()
    text = message(f"cuhk03-np:{root}")
    assert "cuhk-03.mat" in text
    assert "CUHK03-NP" in text


def test_cuhk03__raw_archive_beside_complete_folders_is_ignored(shared_tree: MakeTree) -> None:
    root = shared_tree(cuhk03_tree())
    raw = root / "cuhk-03.mat"
    raw.touch()
    try:
        assert open_dataset(f"cuhk03-np:{root}").split("query")
    finally:
        raw.unlink()


def test_parse_spec__folder_without_kind_is_a_folder_of_images(make_tree: MakeTree) -> None:
    root = make_tree({"": ["a.jpg"], "more": ["b.jpg"]})
    assert open_dataset(str(root)).kind == "folder"
    assert len(open_dataset(str(root)).records) == 2


def test_parse_spec__folder_that_may_be_a_data_set_names_the_kinds(make_tree: MakeTree) -> None:
    root = make_tree({folder: market_names([3], 6) for folder in BOXES})
    text = message(str(root))
    for spec in (f"market1501:{root}", f"dukemtmc:{root}", f"occluded-duke:{root}", f"folder:{root}"):
        assert spec in text
    assert "cuhk03" not in text


def test_parse_spec__csv_file_without_kind_is_a_table(make_tree: MakeTree) -> None:
    root = make_tree({"": ["a.jpg"]})
    (root / "set.csv").write_text("path,pid,camid,split\na.jpg,1,1,train\n")
    assert open_dataset(str(root / "set.csv")).kind == "csv"
    assert "is a file" in message(str(root / "a.jpg"))
    assert "does not exist" in message(str(root / "none"))


def test_find_root__copies_of_a_mac_archive_are_no_second_data_set(make_tree: MakeTree) -> None:
    tree = {f"set/{folder}": market_names([3], 6) for folder in BOXES}
    forks = {f"__MACOSX/set/{folder}": ["._0003_c1s1_000000_00.jpg"] for folder in BOXES}
    root = make_tree({**{f"unpacked/{name}": files for name, files in tree.items()}, **forks})
    assert len(open_dataset(f"market1501:{root}", expect_counts=False).records) == 18


def test_folder__mac_copies_are_not_images(make_tree: MakeTree) -> None:
    root = make_tree({"": ["a.jpg", "._a.jpg"], "__MACOSX": ["._a.jpg", "b.jpg"]})
    assert [record.path for record in open_dataset(f"folder:{root}").records] == ["a.jpg"]


@pytest.mark.parametrize(("name", "word"), [("a.heic", "JPEG"), ("crops.zip", "unpack"), ("walk.mp4", "videos")])
def test_folder__without_images_says_what_it_holds_and_what_to_do(tmp_path: Path, name: str, word: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError) as caught:
        open_dataset(f"folder:{tmp_path}")
    assert name in caught.value.message
    assert word in (caught.value.hint or "")


def test_market1501__identities_with_a_folder_each_in_the_training_images(make_tree: MakeTree) -> None:
    folders = {f"bounding_box_train/{pid:04}": market_names([pid], 2) for pid in (2, 7, 10)}
    root = make_tree({**folders, "query": market_names([4], 6), "bounding_box_test": market_names([4], 6)})
    assert "bounding_box_train holds 3 folders with images, such as 0002" in message(f"market1501:{root}")


def test_veri__vehicle_layout_is_described(make_tree: MakeTree) -> None:
    root = make_tree({f"image_{part}": ["0002_c002_00030600_0.jpg"] for part in ("train", "query", "test")})
    text = message(f"market1501:{root}")
    assert "image_query, image_test, image_train" in text
    assert "none of bounding_box_train" in text


def test_a_folder_is_read_with_its_sub_folders(make_tree: MakeTree) -> None:
    root = make_tree({"": ["b.jpg", "a.JPG"], "deep/er": ["c.jpg", "行人.jpg"]})
    (root / "notes.txt").write_text("text")
    (root / "loop").symlink_to(root, target_is_directory=True)
    dataset = open_dataset(f"folder:{root}")
    assert [record.path for record in dataset.records] == ["a.JPG", "b.jpg", "deep/er/c.jpg", "deep/er/行人.jpg"]
    assert {(record.pid, record.camid, record.split) for record in dataset.records} == {(-1, -1, "all")}


def test_a_name_that_is_not_utf8_is_refused(make_tree: MakeTree) -> None:
    root = make_tree({"": ["a.jpg"]})
    os.link(root / "a.jpg", os.fsencode(root) + b"/\xff\xfe.jpg")
    assert "not UTF-8" in message(f"folder:{root}")


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("market:/x", ["unknown kind", "did you mean 'market1501'?"]),
        ("Occluded_Duke:/x", ["did you mean 'occluded-duke'?"]),
        ("partialreid:/x", ["did you mean 'partial-reid'?"]),
        ("zzz:/x", ["unknown kind", "market1501"]),
        ("partial-reid/partail:/x", ["no variant 'partail'", "partial-reid/partial"]),
        ("market1501/x:/x", ["no variant 'x'"]),
        ("market1501", ["KIND:PATH"]),
        ("market1501:", ["KIND:PATH"]),
        (":/x", ["KIND:PATH"]),
    ],
)
def test_a_wrong_specification_is_explained(spec: str, parts: list[str]) -> None:
    text = message(spec)
    assert all(part in text for part in parts)


def test_kinds_have_all_that_the_list_shows() -> None:
    infos = kinds()
    assert len({info.name for info in infos}) == len(infos) == 12
    for info in infos:
        assert info.summary
        assert info.layout
        assert info.cameras
        assert info.source
        assert set(info.counts) - {""} <= set(info.variants)


@pytest.mark.skipif(
    not (SHARED / "data/market1501/bounding_box_train").is_dir(),
    reason="no Market-1501 images under SGSFA_SHARED (default: beside the repository)",
)
def test_the_real_market_training_images() -> None:
    root = SHARED / "data/market1501"
    dataset = open_dataset(f"market1501:{root}", expect_counts=False)
    assert len(dataset.split("train")) == 12_936
    assert len({record.pid for record in dataset.split("train")}) == 751
    assert not any("found" in note for note in dataset.notes)
    listed = open_dataset(f"csv:{root / 'dev_split.csv'}")
    assert {(r.path, r.pid, r.camid) for r in listed.records} == {(r.path, r.pid, r.camid) for r in dataset.records}
