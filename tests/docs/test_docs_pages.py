"""The pages: links resolve, and paths of pages that the code names exist."""

import re
from pathlib import Path

import pytest

from pipeline.formats.provenance import Provenance
from pipeline.store.manifest import Manifest
from pipeline.store.store import ArtifactStore

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    {*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("*/README.md"), ROOT / "benchmarks/results/README.md"}
)
GENERATED = {DOCS / "reference" / "commands.md", DOCS / "reference" / "configuration.md"}

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", flags=re.MULTILINE)


def anchor(heading):
    """Return the anchor that GitHub and MkDocs derive from a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def is_dead(page, link):
    name, _, part = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if target in GENERATED:
        return False
    headings = HEADING.findall(target.read_text(encoding="utf-8")) if target.suffix == ".md" and part else []
    return not target.exists() or bool(part and part not in map(anchor, headings))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page__links_resolve(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)]
    assert [link for link in links if is_dead(page, link)] == []


def test_code__pages_it_names_exist():
    sources = [
        path
        for folder in ("pipeline", "sgsfa_cli", "sgsfa_synth", "benchmarks", "tools")
        for path in (ROOT / folder).rglob("*")
    ]
    missing = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in sources
        if path.suffix in {".py", ".toml", ".md"}
        for name in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8"))
        if not (ROOT / name).exists() and ROOT / name not in GENERATED
    }
    assert missing == set()


def test_formats_artifacts__code_block_reads_a_manifest(tmp_path, monkeypatch, capsys):
    page = (DOCS / "formats" / "artifacts.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    provenance = Provenance({"train.epochs": 3})
    with ArtifactStore(tmp_path / "artifacts").build("train", "run", provenance) as workspace:
        (workspace.path / "sub").mkdir()
        (workspace.path / "sub" / "a.txt").write_text("a")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert "{'train.epochs': 3}" in capsys.readouterr().out


def test_formats_artifacts__names_every_manifest_key():
    page = (DOCS / "formats" / "artifacts.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", page))
    assert set(Manifest.__dataclass_fields__) <= named
