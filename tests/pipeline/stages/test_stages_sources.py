import shutil

import pytest

from pipeline.errors import ArtifactError, DataError
from pipeline.stages.sources import Sources


def test_tests__have_distinct_names(configure, people, tmp_path):
    other = tmp_path / "more" / "people" / people.name
    shutil.copytree(people.parent, other.parent)
    sources = Sources(configure(f"data.tests=['csv:{people}', 'csv:{other}']"))
    assert [test.name for test in sources.tests()] == ["people", "people-2"]


def test_tests__are_named_after_the_data_in_any_script(configure, people, tmp_path):
    other = tmp_path / "行人" / "行人.csv"
    shutil.copytree(people.parent, other.parent)
    (other.parent / people.name).rename(other)
    assert [test.name for test in Sources(configure(f"data.tests=['csv:{other}']")).tests()] == ["行人"]


def test_data_set__without_training_images(configure, people):
    people.write_text(people.read_text().replace("train", "gallery"))
    with pytest.raises(DataError, match="no training images"):
        Sources(configure()).training()


def test_data_set__without_query_images(configure, people, run, fakes):
    people.write_text(people.read_text().replace("query", "gallery"))
    sources = Sources(configure())
    with pytest.raises(DataError, match="no query images"):
        sources.test_records(configure().data.source)
    # Before the first stage, not after hours of training.
    with pytest.raises(DataError, match="no query images"):
        run(configure())
    assert fakes.took() == []
    assert run(configure(), until="train")[0] == ["masks", "train"]


def test_count_images__of_rendered_and_real_images(configure):
    sources = Sources(configure("synth.ids=2", "synth.cameras=3", "synth.shots=4"))
    assert sources.count_images("rendered") == 24
    assert sources.count_images(configure().data.source, "train") == 4
    assert "4 of 2" in sources.describe_training()


def test_folder__only_of_finished_stages(configure, tmp_path):
    sources = Sources(configure(), folders={"masks": tmp_path})
    assert sources.folder("masks") == tmp_path
    with pytest.raises(ArtifactError, match="train"):
        sources.folder("train")


def test_notes_of_a_data_set__are_logged(configure, people, caplog, monkeypatch):
    from dataclasses import replace

    from pipeline.datasets import registry

    real = registry.open_dataset
    noted = lambda spec, **options: replace(real(spec, **options), notes=("junk dropped",))  # noqa: E731
    monkeypatch.setattr(registry, "open_dataset", noted)
    with caplog.at_level("INFO", logger="sgsfa"):
        Sources(configure()).training()
    assert any("junk dropped" in message for message in caplog.messages)
