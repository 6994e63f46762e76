"""Trees with the names and counts of the real data sets; all images are links to one tiny JPEG."""

import os
from collections.abc import Callable, Iterable, Mapping
from itertools import islice, product
from pathlib import Path

from PIL import Image

MakeTree = Callable[[Mapping[str, Iterable[str]]], Path]

# A file system allows 65,000 links or so to one file.
_LINKS = 30_000


def link_tree(root: Path, folders: Mapping[str, Iterable[str]]) -> Path:
    """Make the files named in `folders` below `root`."""
    made: set[Path] = set()
    source = root.with_name(f"{root.name}-0.jpg")
    for number, path in enumerate(root / folder / name for folder, names in folders.items() for name in names):
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        if number % _LINKS == 0:
            source = root.with_name(f"{root.name}-{number}.jpg")
            Image.new("RGB", (16, 32), (120, 90, 60)).save(source)
        os.link(source, path)
    return root


def market_names(pids: Iterable[int], count: int, *, scene: int = 1) -> list[str]:
    """`count` names, spread over the identities first, then over cameras."""
    pids = list(pids)
    every = ((shot, camera, pid) for shot, camera, pid in product(range(100), range(1, 7), pids))
    return [
        f"{pid:04}_c{camera}s{scene}_{shot:06}_00.jpg" if pid >= 0 else f"-1_c{camera}s{scene}_{shot:06}_00.jpg"
        for shot, camera, pid in islice(every, count)
    ]


def duke_names(pids: Iterable[int], count: int, *, first: int = 0) -> list[str]:
    pids = list(pids)
    every = product(range(100), range(1, 9), pids)
    return [f"{pid:04}_c{camera}_f{first + shot:07}.jpg" for shot, camera, pid in islice(every, count)]


def market_tree() -> dict[str, list[str]]:
    train, test = range(2, 753), range(800, 1550)
    return {
        "bounding_box_train": market_names(train, 12_936),
        "query": market_names(test, 3_368),
        "bounding_box_test": [
            *market_names(test, 13_115, scene=2),
            *[f"0000_c1s1_{number:06}_00.jpg" for number in range(2_798)],
            *[f"-1_c1s1_{number:06}_00.jpg" for number in range(3_819)],
        ],
    }


DUKE_TEST = range(5000, 5702)
DUKE_OTHERS = range(6000, 6408)


def duke_tree() -> dict[str, list[str]]:
    return {
        "bounding_box_train": duke_names(range(1, 703), 16_522),
        "query": duke_names(DUKE_TEST, 2_228, first=9_000),
        "bounding_box_test": [*duke_names(DUKE_TEST, 16_000), *duke_names(DUKE_OTHERS, 1_661)],
    }


def occluded_duke_lists() -> dict[str, list[str]]:
    """The image lists that go with `duke_tree`: 1,870 queries are gallery files, the other 340 were queries."""
    tree = duke_tree()
    searched = set(DUKE_TEST[:519])
    gallery = tree["bounding_box_test"]
    moved = [name for name in gallery if int(name[:4]) in searched][:1_870]
    kept = [name for name in tree["query"] if int(name[:4]) in searched][:340]
    return {"train": tree["bounding_box_train"][:15_618], "query": [*moved, *kept], "gallery": gallery}


def shots(pids: Iterable[int], each: int, pattern: str) -> list[str]:
    return [pattern.format(pid=pid, shot=shot) for pid in pids for shot in range(1, each + 1)]


def spread(pids: Iterable[int], count: int, pattern: str) -> list[str]:
    """`count` names of `ID/...`, as evenly as they go."""
    pids = list(pids)
    return [pattern.format(pid=pid, shot=shot) for shot, pid in islice(product(range(10_000), pids), count)]


def p_duke_tree() -> dict[str, list[str]]:
    name = "{pid:04}/{pid:04}_c1_f{shot:07}.jpg"
    return {
        "train/occluded_body_images": spread(range(1, 666), 5_000, name),
        "train/whole_body_images": spread(range(1, 666), 7_927, name),
        "test/occluded_body_images": spread(range(1000, 1634), 2_163, name),
        "test/whole_body_images": spread(range(1000, 1634), 9_053, name),
    }


def occluded_reid_tree(suffix: str = "tif") -> dict[str, list[str]]:
    names = shots(range(1, 201), 5, "{pid:03}/{pid:03}_{shot:02}." + suffix)
    return {"occluded_body_images": names, "whole_body_images": names}


def partial_reid_tree() -> dict[str, list[str]]:
    names = shots(range(1, 61), 5, "{pid:03}_{shot:03}.jpg")
    return {f"{body}_body_images": names for body in ("occluded", "partial", "whole")}


def partial_ilids_tree() -> dict[str, list[str]]:
    names = [f"{pid:03}.jpg" for pid in range(1, 120)]
    return {"Probe": names, "Gallery": names}


def cuhk03_tree() -> dict[str, list[str]]:
    def boxes(train: int, gallery: int) -> dict[str, list[str]]:
        def names(pids: range, count: int, first: int) -> list[str]:
            every = product(range(first, first + 50), (1, 2), pids)
            return [f"{pid:04}_c{camera}_{shot}.png" for shot, camera, pid in islice(every, count)]

        return {
            "bounding_box_train": names(range(701, 1468), train, 1),
            "query": names(range(1, 701), 1_400, 1),
            "bounding_box_test": names(range(1, 701), gallery, 2),
        }

    return {
        f"{kind}/{folder}": names
        for kind, sizes in (("labeled", (7_368, 5_328)), ("detected", (7_365, 5_332)))
        for folder, names in boxes(*sizes).items()
    }


def msmt17_names(pids: range, count: int) -> list[str]:
    every = product(range(1000), pids)
    return [
        f"{pid:04}/{pid:04}_{shot:03}_{shot % 15 + 1:02}_0303morning_{shot:04}_0.jpg"
        for shot, pid in islice(every, count)
    ]
