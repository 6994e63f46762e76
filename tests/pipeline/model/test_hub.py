"""Pushing and pulling through the Hub's own client, against a local stand-in for its HTTP interface."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pipeline.errors import ConfigError, DataError, FormatError, UserError, WeightsError
from pipeline.formats.results import EvaluationResult, Interval, Scores
from pipeline.model.hub import Repository, model_card, pull, push
from pipeline.runtime.files import sha256_file
from sgsfa_cli.main import app
from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.hub_server import TOKEN, Hub, hub_server

DATA = "Own cameras, 2026, with the consent of the people shown."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model.safetensors")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    constants = pytest.importorskip("huggingface_hub.constants", reason="an extra")
    with hub_server() as served:
        # The client has read the environment already.
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


def result_of(checkpoint: Path) -> EvaluationResult:
    scores = Scores(0.8437, 0.9, 0.95, 0.975, 0.7312, 0.5, num_queries=40, num_valid_queries=38)
    protocol = {"rule": "shrunk", "visibility": "hard", "metric": "cosine", "flip": False}
    protocol |= {"query_expansion": 0, "rerank": False, "average_precision": "rank", "visible_fraction": "unknown"}
    return EvaluationResult(
        test_set="dev",
        metrics=scores,
        protocol=protocol,
        counts={"query_images": 40, "gallery_images": 1200},
        provenance={"checkpoint_sha256": sha256_file(checkpoint)},
        notes=("junk dropped",),
        intervals={"mAP": Interval(0.7312, 0.70, 0.76, 0.95)},
    )


def offer(hub: Hub, content: bytes, file: str = "model.safetensors", *, private: bool = False) -> None:
    hub.repos["me/net"] = {file: content}
    hub.private |= {"me/net"} if private else set()


def test_hub__push_and_pull_give_the_same_file(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    pushed = push("me/net", checkpoint, training_data=DATA, licence="apache-2.0")
    assert pushed == Repository(f"{hub.url}/me/net", private=True)
    assert hub.private == {"me/net"}
    out = pull("me/net", tmp_path / "new" / "pulled.safetensors")
    assert sha256_file(out) == sha256_file(checkpoint)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert any(line.startswith("PUT /lfs/") for line in hub.requests)


@pytest.mark.slow
def test_hub__the_commands_find_it_by_environment(checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="an extra")
    (tmp_path / "result.json").write_text("")
    result_of(checkpoint).save(tmp_path / "result.json")
    with hub_server() as hub:
        surroundings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}

        def sgsfa(*words: str) -> dict[str, Any]:
            command = [sys.executable, "-m", "sgsfa_cli", "hub", *words, "--json"]
            done = subprocess.run(command, capture_output=True, text=True, env=os.environ | surroundings, check=False)
            assert done.returncode == 0, done.stderr
            answer: dict[str, Any] = json.loads(done.stdout)
            return answer

        stated = ("--training-data", DATA, "--licence", "apache-2.0", "--results", str(tmp_path))
        sgsfa("push", "me/net", str(checkpoint), "--public", *stated)
        pulled = sgsfa("pull", "me/net", "--out", str(tmp_path / "pulled.safetensors"))
        assert pulled["sha256"] == sha256_file(checkpoint)
        assert not hub.private
        assert "73.1" in hub.repos["me/net"]["README.md"].decode()


def test_model_card__holds_data_schedule_figures_and_licence(checkpoint: Path, tmp_path: Path) -> None:
    result_of(checkpoint).save(tmp_path / "result.json")
    card = model_card("me/net", checkpoint, training_data=DATA, licence="cc-by-nc-4.0", results=tmp_path)
    assert card.startswith("---\nlicense: cc-by-nc-4.0\n")
    for text in (DATA, "84.4", "73.1", "70.0", "1,200 gallery images", "junk dropped", "sgsfa hub pull me/net"):
        assert text in card
    assert "Responsible use" in card
    assert sha256_file(checkpoint) in card


def test_model_card__takes_the_result_beside_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    own = tmp_path / "model.safetensors"
    own.write_bytes(checkpoint.read_bytes())
    assert "No evaluation was given." in model_card("me/net", own, training_data=DATA, licence="other")
    result_of(own).save(tmp_path / "result.json")
    assert "84.4" in model_card("me/net", own, training_data=DATA, licence="other")


def test_model_card__refuses_figures_of_another_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    replace(result_of(checkpoint), provenance={"checkpoint_sha256": "0"}).save(tmp_path / "result.json")
    with pytest.raises(FormatError, match="another checkpoint"):
        model_card("me/net", checkpoint, training_data=DATA, licence="other", results=tmp_path)


@pytest.mark.parametrize(("data", "licence", "named"), [(" ", "other", "training data"), (DATA, "my own", "'my own'")])
def test_model_card__wants_data_and_licence_stated(checkpoint: Path, data: str, licence: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        model_card("me/net", checkpoint, training_data=data, licence=licence)


def test_push__refuses_a_public_repository_unless_allowed(hub: Hub, checkpoint: Path) -> None:
    offer(hub, b"")
    with pytest.raises(ConfigError, match="public"):
        push("me/net", checkpoint, training_data=DATA, licence="other")
    assert hub.repos["me/net"] == {"model.safetensors": b""}
    assert not push("me/net", checkpoint, training_data=DATA, licence="other", private=False).private
    assert hub.repos["me/net"]["model.safetensors"] == checkpoint.read_bytes()


def test_push__an_existing_private_repository_stays_private(hub: Hub, checkpoint: Path) -> None:
    offer(hub, b"", private=True)
    assert push("me/net", checkpoint, training_data=DATA, licence="other", private=False).private


def test_push__a_public_repository_names_the_option(hub: Hub, checkpoint: Path) -> None:
    offer(hub, b"")
    stated = ["--training-data", DATA, "--licence", "other", "--json"]
    answer = CliRunner().invoke(app, ["hub", "push", "me/net", str(checkpoint), *stated])
    assert answer.exit_code == 2
    assert json.loads(answer.stdout)["error"]["hint"] == "make it private on its page; `--public` allows it"


@pytest.mark.parametrize("error", [ValueError("defect"), RuntimeError("defect"), NotImplementedError()])
def test_push__defects_are_no_errors_of_the_hub(
    hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_arguments: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", fail)
    with pytest.raises(type(error)) as caught:
        push("me/net", checkpoint, training_data=DATA, licence="other")
    assert caught.value is error
    assert hub.repos["me/net"] == {}


def test_push__explains_an_upload_that_breaks_off(hub: Hub, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = pytest.importorskip("huggingface_hub.errors", reason="an extra")

    def fail(**_options: Any) -> None:
        raise errors.HTTPError("connection reset")

    monkeypatch.setattr("huggingface_hub._commit_api.lfs_upload", fail)
    with pytest.raises(DataError, match="cannot be reached") as caught:
        push("me/net", checkpoint, training_data=DATA, licence="other")
    assert caught.value.cause == "connection reset"


@pytest.mark.parametrize(("status", "hint"), [(403, "HF_TOKEN"), (413, "")])
def test_push__reports_status_and_message_of_a_refused_upload(
    hub: Hub, checkpoint: Path, status: int, hint: str
) -> None:
    hub.upload_error = (status, "storage limit exceeded")
    with pytest.raises(DataError, match=rf"rejected the request \(HTTP {status}\)") as caught:
        push("me/net", checkpoint, training_data=DATA, licence="other")
    assert "storage limit exceeded" in (caught.value.cause or "")
    assert hint in (caught.value.hint or "")
    assert hub.repos["me/net"] == {}


def test_pull__explains_a_gated_repository(hub: Hub, tmp_path: Path) -> None:
    hub.gated.add("me/net")
    offer(hub, b"")
    with pytest.raises(DataError, match="must be requested on its page"):
        pull("me/net", tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("repo", "licence", "named"), [("net", "other", "OWNER/NAME"), ("me/net", "refused", "unknown")]
)
def test_push__explains_what_the_hub_refuses(hub: Hub, checkpoint: Path, repo: str, licence: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        push(repo, checkpoint, training_data=DATA, licence=licence)


def test_push__explains_a_missing_token_and_missing_rights(
    hub: Hub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="rejected the request") as refused:
        push("others/net", checkpoint, training_data=DATA, licence="other")
    assert "HF_TOKEN" in (refused.value.hint or "")
    hub.requests.clear()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no token") as missing:
        push("me/net", checkpoint, training_data=DATA, licence="other")
    assert "HF_TOKEN" in (missing.value.hint or "")
    assert hub.requests == [], "nothing is sent without a token"


def test_pull__explains_a_private_repository(
    hub: Hub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(hub, checkpoint.read_bytes(), private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(DataError, match="private") as caught:
        pull("me/net", tmp_path / "m.safetensors")
    assert "read" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("content", "options", "error"),
    [
        (pickle.dumps(print), {}, WeightsError),
        (b"\x08\0\0\0\0\0\0\0{}      ", {}, WeightsError),
        (b"<html>", {}, WeightsError),
        (b"", {"file": "pytorch_model.bin"}, ConfigError),
        (b"", {"file": "other.safetensors"}, WeightsError),
        (b"", {"revision": "v9"}, WeightsError),
    ],
    ids=["pickle", "other-safetensors", "page", "unsafe-name", "absent-file", "absent-revision"],
)
def test_pull__keeps_only_a_checkpoint(
    hub: Hub, tmp_path: Path, content: bytes, options: dict[str, str], error: type[UserError]
) -> None:
    offer(hub, content)
    with pytest.raises(error) as caught:
        pull("me/net", tmp_path / "m.safetensors", **options)
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in str(caught.value)


def test_pull__existing_files_are_not_overwritten(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_text("mine")
    with pytest.raises(FormatError, match="exists"):
        pull("me/net", tmp_path / "m.safetensors")
    assert hub.requests == []


def test_hub__without_network(hub: Hub, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    for call in (
        lambda: push("me/net", checkpoint, training_data=DATA, licence="other"),
        lambda: pull("me/net", tmp_path / "m.safetensors"),
    ):
        with pytest.raises(DataError, match="cannot be reached"):
            call()


def test_hub__invalid_names_and_the_missing_extra(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        pull("a/b/c", tmp_path / "m.safetensors")
    imported = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "huggingface_hub":
            raise ImportError(name=name)
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="not installed") as caught:
        pull("me/net", tmp_path / "m.safetensors")
    assert caught.value.hint == "pip install 'sgsfa[hub]'"
