"""The scripts in `examples/` and the notebook run on a few rendered images."""

from __future__ import annotations

import csv
import importlib.util
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipeline.config import SynthConfig
from tests.helpers.checkpoints import make_checkpoint

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
pytestmark = pytest.mark.slow


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from sgsfa_synth.dataset import render_dataset

    root = tmp_path_factory.mktemp("rendered") / "people"
    render_dataset(root, SynthConfig(ids=8, cameras=2, shots=2, height=64, width=32, jobs=1))
    return root


@pytest.fixture(scope="module")
def table(people: Path) -> Path:
    path = people.parent / "dataset.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "pid", "camid", "split"))
        for image in sorted(people.glob("*/*.jpg")):
            if image.parent.name in ("train", "query", "gallery"):
                pid, camid = int(image.name[:5]) + 1, int(image.name[7:9])
                writer.writerow((image.relative_to(people.parent).as_posix(), pid, camid, image.parent.name))
    return path


def test_examples__are_short_and_listed() -> None:
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 5
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for script in scripts:
        assert len(script.read_text(encoding="utf-8").splitlines()) <= 40
        assert script.name in readme


def test_masks_of_a_folder(people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("masks_of_a_folder").main(str(people / "query"), str(tmp_path / "masks.h5"))
    assert capsys.readouterr().out.count("covers") == 4


def test_train_on_a_csv_and_compare_rules(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("train_on_a_csv").main(str(table), str(tmp_path / "run"), epochs="1", height="64")
    assert "Rank-1" in capsys.readouterr().out
    example("compare_matching_rules").main(str(tmp_path / "run" / "features.h5"))
    assert capsys.readouterr().out.count("rank-1") == 5


def test_search_a_gallery(people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = next((people / "query").glob("*.jpg"))
    checkpoint = make_checkpoint(tmp_path / "model.safetensors")
    example("search_a_gallery").main(str(query), str(people / "query"), str(checkpoint))
    assert query.name in capsys.readouterr().out


def test_onnx_in_a_video_loop(people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    import sgsfa

    model = tmp_path / "model.onnx"
    sgsfa.export(model, make_checkpoint(tmp_path / "model.safetensors"), single_vector=True)
    crops = tmp_path / "crops"
    shutil.copytree(people / "query", crops)
    example("onnx_in_a_video_loop").main(str(model), str(crops))
    assert capsys.readouterr().out.count("person") == len(list(crops.iterdir()))


@pytest.mark.timeout(900)
def test_images_to_ranking__the_notebook_runs_and_shows_its_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / "images_to_ranking.ipynb", as_version=4)
    assert_shows_a_ranking(notebook)
    for cell in notebook.cells:
        cell.update({"outputs": []} if cell.cell_type == "code" else {})
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    surroundings = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=800, kernel_name="python3", resources=surroundings).execute()
    assert_shows_a_ranking(notebook)


def assert_shows_a_ranking(notebook: Any) -> None:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert "Rank-1" in "".join(output.get("text", "") for output in outputs)
    assert any("image/jpeg" in output.get("data", {}) for output in outputs)
