"""The pages: links lead somewhere, and what the page on artifacts shows works."""

import re
from pathlib import Path

import pytest

from pipeline.store.manifest import Manifest
from pipeline.store.store import ArtifactStore

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "artifacts" / "README.md"})

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", flags=re.MULTILINE)


def anchor(heading):
    """As GitHub makes one of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    dead = []
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, part = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        headings = HEADING.findall(target.read_text(encoding="utf-8")) if target.suffix == ".md" and part else []
        if not target.exists() or (part and part not in map(anchor, headings)):
            dead.append(link)
    assert not dead


def test_the_lines_shown_read_a_manifest(tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "formats-artifacts.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    manifest = {"decisive": {"train.epochs": 3}, "inputs": {}}
    with ArtifactStore(tmp_path / "artifacts").build("train", "run", "0" * 64, manifest=manifest) as work:
        (work.path / "sub").mkdir()
        (work.path / "sub" / "a.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert "{'train.epochs': 3}" in capsys.readouterr().out


def test_the_page_names_every_key_of_a_manifest():
    page = (ROOT / "docs" / "formats-artifacts.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", page))
    assert set(Manifest.__dataclass_fields__) <= named
