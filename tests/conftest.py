from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.helpers.tiny_models import write_onnx, write_people

# A busy machine, or the first call of a library, says nothing about the code.
settings.register_profile("default-without-deadline", deadline=None)
settings.load_profile("default-without-deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none."""
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference material that is not part of the repository."""
    folder = Path(os.environ.get("SGSFA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"the reference material is not at {folder} (set SGSFA_SHARED)")
    return folder


@pytest.fixture(scope="session")
def tiny_parser(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A parser that is cheap, deterministic and loads in any process."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = write_onnx(tmp_path_factory.mktemp("tiny") / "tiny.onnx")
    path.with_name("tiny.onnx.toml").write_text('label_set = "lip-20"\n')
    return f"onnx:{path}"


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder of 40 small pictures, and their names. Tests must not change it."""
    root = tmp_path_factory.mktemp("people")
    return root, write_people(root, 40)


@pytest.fixture
def no_file_beyond() -> Iterator[Callable[[int], None]]:
    """Let no file grow beyond so many bytes, which is to a program what a full disk is."""
    resource = pytest.importorskip("resource", reason="this system has no limits on files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
