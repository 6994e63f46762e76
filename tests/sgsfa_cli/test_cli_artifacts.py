def listed(sgsfa_json):
    return sgsfa_json("artifacts", "list")["artifacts"]


def test_list__shows_every_artifact(sgsfa, sgsfa_json):
    assert listed(sgsfa_json) == []
    assert "no artifacts" in sgsfa("artifacts", "list").stdout
    sgsfa("run")
    found = listed(sgsfa_json)
    assert {artifact["stage"] for artifact in found} == {"masks", "train", "extract", "eval"}
    assert all(artifact["state"] == "complete" and len(artifact["fingerprint"]) == 64 for artifact in found)
    assert "mine" in sgsfa("artifacts", "list").stdout


def test_verify__finds_changed_files(sgsfa, sgsfa_json, folder):
    sgsfa("artifacts", "verify", code=2)
    sgsfa("run")
    assert sgsfa("artifacts", "verify").stdout.count("intact") == 4
    broken = next((folder / "artifacts" / "train").iterdir())
    (broken / "made.txt").write_text("trein")
    assert "made.txt" in sgsfa("artifacts", "verify", code=3).stdout
    sound = next((folder / "artifacts" / "masks").iterdir())
    assert sgsfa_json("artifacts", "verify", str(sound))["artifacts"][0]["intact"] is True


def test_verify__does_not_advise_to_delete_a_folder_of_photographs(sgsfa, folder):
    (folder / "photos").mkdir()
    for name in ("photos", "nowhere"):
        text = sgsfa("artifacts", "verify", name, code=2).stderr
        assert name in text
        assert "delete" not in text


def test_prune__asks_and_keeps_what_is_used(sgsfa, sgsfa_json):
    sgsfa("run", "--set", "train.epochs=3")
    sgsfa("run")
    assert len(listed(sgsfa_json)) == 7
    assert "Would be removed" in sgsfa("artifacts", "prune", "--dry-run").stdout
    assert "Nothing was removed" in sgsfa("artifacts", "prune", input="n\n").stdout
    assert len(listed(sgsfa_json)) == 7
    assert "--yes" in sgsfa("artifacts", "prune", input="", code=2).stderr
    assert "--yes" in sgsfa_json("artifacts", "prune", input="", code=2)["error"]["hint"]
    report = sgsfa_json("artifacts", "prune", "--yes")
    assert report["removed"] is True
    assert len(report["removals"]) == 3
    assert sgsfa_json("run")["idle"] is True
    assert sgsfa_json("artifacts", "prune")["removals"] == []


def test_prune__needs_to_know_what_to_keep(sgsfa, folder):
    sgsfa("run")
    (folder / "sgsfa.toml").rename(folder / "mine.toml")
    assert "--preset" in sgsfa("artifacts", "prune", "--yes", code=2).stderr
    text = sgsfa("artifacts", "prune", "-c", "mine.toml", "--set", "train.epochs=3", input="n\n").stdout
    assert "mine.toml, --set train.epochs=3" in text


def test_broken_artifacts__are_listed_verified_and_pruned(sgsfa, sgsfa_json, folder):
    sgsfa("run")
    broken = next((folder / "artifacts" / "train").iterdir())
    (broken / "manifest.json").write_text("{")
    assert {found["stage"]: found["state"] for found in listed(sgsfa_json)}["train"] == "broken"
    assert "manifest" in sgsfa("artifacts", "verify", code=3).stdout
    sgsfa("artifacts", "verify", str(broken), code=3)
    assert "stale" in sgsfa("status").stdout
    sgsfa("artifacts", "prune", "--yes")
    assert not broken.exists()
    assert "Finished" in sgsfa("run").stdout


def test_prune__leaves_other_runs_alone_unless_asked(sgsfa, sgsfa_json, folder):
    sgsfa("run", "--set", "name=theirs")
    (folder / "sgsfa.toml").write_text((folder / "sgsfa.toml").read_text() + "flip = true\n")
    sgsfa("run")
    assert sgsfa_json("artifacts", "prune", "--yes")["removals"] == []
    assert len(sgsfa_json("artifacts", "prune", "--all-runs", "--yes")["removals"]) == 4
