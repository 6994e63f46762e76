"""The pages' shell and Python blocks run, in order, in a folder with a small rendered data set.

Commands that accept `--set` get small sizes. Commands that need foreign data or other programs are left out.
"""

import re
import shlex
import shutil
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pipeline.datasets.images import fitted
from sgsfa import api as sgsfa_api
from sgsfa_cli.main import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^( *)```(sh|python)\n(.*?)^ *```", flags=re.MULTILINE | re.DOTALL)
FOREIGN = re.compile(
    "/data/|/shared/|schp:|onnx:|photos-parsed|resnet50.pth|timm:|tcp://|SLURM|preset (demo|transfer|finetune)|-duke"
    "|market1501|hub (push|pull)"
)
BUILTIN = re.compile(r"load_model\(\)|gallery photos|compare a.jpg b.jpg *(#|$)")
"""Examples that use the model in this package."""
SMALL = [
    *("synth.ids=8", "synth.cameras=2", "synth.shots=2", "synth.height=64", "synth.width=32", "synth.jobs=1"),
    *("model.backbone=resnet18", "model.weights=none", "model.height=64", "model.width=32", "model.part_dim=32"),
    *("train.epochs=1", "train.identities=2", "train.instances=2", "matching.figures=1"),
]
ACCEPT_SET = re.compile(
    r"sgsfa (run|status|init|train|report(?!.*features)|masks build(?! folder| \w+:)|extract(?!.*--out)"
    r"|eval(?!.*--features))"
)


def sgsfa(line, codes=(0,)):
    words = shlex.split(line, comments=True)[1:]
    if ACCEPT_SET.match(line):
        words += [word for setting in SMALL for word in ("--set", setting)]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, words, catch_exceptions=False)
    assert result.exit_code in codes, f"{line}\n{result.output}"


def small_config(path=None, *, preset=None, settings=None, load=sgsfa_api.load_config):
    small = dict(setting.split("=") for setting in SMALL if preset is not None)
    values = {key: int(value) if value.isdigit() else value for key, value in small.items()}
    return load(path, preset=preset, settings={**(settings or {}), **values})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with everything that the examples name: images, data set, masks, checkpoint, features, artifacts."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sgsfa("sgsfa run --preset strong")
        artifacts = folder / "artifacts"
        shutil.copytree(next(artifacts.glob("synth/*/dataset")), folder, dirs_exist_ok=True)
        shutil.copytree(folder / "query", folder / "photos")
        images = sorted(folder.glob("query/*.jpg"))
        for name, image in zip(("a", "b", "person", "query"), images * 4, strict=False):
            shutil.copy(image, folder / f"{name}.jpg")
        shutil.copy(next(artifacts.glob("train/*/model.safetensors")), folder)
        shutil.copy(next(artifacts.glob("masks/*/masks.h5")), folder)
        for name in ("features", "a", "b"):
            shutil.copy(next(artifacts.glob("extract/*/*/features.h5")), folder / f"{name}.h5")
        shutil.copy(next(artifacts.glob("eval/*/*/result.json")), folder)
    return folder


def blocks(page):
    """Return (language, code) of the blocks of a page that can run here."""
    found = []
    for indent, language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        text = "\n".join(line.removeprefix(indent) for line in code.replace("\\\n", " ").splitlines())
        if language == "python":
            found.append((language, text))
            continue
        lines = [line for line in text.splitlines() if line.startswith("sgsfa ") and not FOREIGN.search(line)]
        found += [(language, line) for line in lines]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_page__blocks_run(page, world, tmp_path, monkeypatch):
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sgsfa_api, "load_config", small_config)
    for language, code in blocks(page):
        if BUILTIN.search(code) and not (ROOT / "pipeline/model/reid/builtin.safetensors").is_file():
            continue
        if language == "python":
            exec(compile(code, page.name, "exec"), {})
        else:
            sgsfa(code)


@pytest.mark.parametrize("shape", [(80, 40), (70, 40), (40, 40), (33, 57), (99, 30), (300, 90), (128, 64)])
def test_export_page__prepares_images_as_extraction_does(shape, tmp_path, monkeypatch):
    fed = []

    class Session:
        def __init__(self, path):
            pass

        def get_inputs(self):
            return [types.SimpleNamespace(shape=["batch", 64, 32, 3])]

        def get_outputs(self):
            return []

        def run(self, names, given):
            fed.append(given["images"])
            return []

    monkeypatch.setitem(sys.modules, "onnxruntime", types.SimpleNamespace(InferenceSession=Session))
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    # Readers go by the content: a PNG keeps the exact pixels.
    Path("person.jpg").write_bytes(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())
    ((_, code),) = (block for block in blocks(ROOT / "docs/tasks/export.md") if block[0] == "python")
    exec(compile(code, "export.md", "exec"), {})
    np.testing.assert_array_equal(fed[0][0], fitted(pixels, 64, 32, "pad")[0])
