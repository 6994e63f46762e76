import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.helpers.dataset_trees import MakeTree, link_tree


@pytest.fixture
def make_tree(tmp_path: Path) -> Iterator[MakeTree]:
    """Make a tree of its own for a test."""
    yield lambda folders: link_tree(tmp_path / "data", folders)
    shutil.rmtree(tmp_path / "data", ignore_errors=True)


@pytest.fixture(scope="session")
def shared_tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeTree]:
    """Make a large tree once; a test that changes it puts it back."""
    base = tmp_path_factory.mktemp("trees")
    made: dict[int, Path] = {}

    def make(folders: Mapping[str, Iterable[str]]) -> Path:
        key = hash(tuple((folder, len(list(names))) for folder, names in folders.items()))
        if key not in made:
            made[key] = link_tree(base / f"data-{len(made)}", folders)
        return made[key]

    yield make
    shutil.rmtree(base)
