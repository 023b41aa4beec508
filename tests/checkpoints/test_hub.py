"""Hub ids without a network: found in the cache, or one line that says how to get them."""

import socket
from pathlib import Path

import huggingface_hub
import pytest

import mmdiff
from mmdiff.checkpoints import hub
from mmdiff.cli.info import describe
from mmdiff.errors import CheckpointError
from mmdiff.loading import resolve
from tests.checkpoints.helpers import write

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The hub's cache in a folder of its own, and a network that must not be touched."""

    def refuse(*_):
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def cached(cache):
    """owner/name as a download leaves it."""
    repo = cache / "models--owner--name"
    write(repo / "snapshots" / COMMIT, "llada")
    (repo / "refs").mkdir()
    for name in ("main", "v1.0"):
        (repo / "refs" / name).write_text(COMMIT)
    return repo / "snapshots" / COMMIT


@pytest.mark.parametrize("ending", ["", "@main", "@v1.0", f"@{COMMIT}"])
def test_a_cached_model_is_found(cached, ending):
    assert resolve(f"owner/name{ending}").resolve() == cached.resolve()


def test_the_commit_is_recorded_and_kept(cached, tmp_path):
    model = mmdiff.load("owner/name", device="cpu")
    assert model.config.revision == COMMIT
    assert describe(cached)["revision"] == COMMIT
    model.save_pretrained(tmp_path / "saved")
    assert mmdiff.load(tmp_path / "saved", device="cpu").config.revision == COMMIT


def test_a_folder_of_ones_own_has_no_commit(tmp_path):
    write(tmp_path / "mine", "llada")
    assert mmdiff.load(tmp_path / "mine", device="cpu").config.revision is None
    assert hub.commit(Path("snapshots") / COMMIT) == COMMIT
    assert hub.commit(Path("snapshots") / "main") is None
    assert hub.commit(Path(COMMIT)) is None


def one_line(name, *words, **options):
    with pytest.raises(CheckpointError) as caught:
        resolve(name, **options)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    for word in (repr(name), *words):
        assert word in text


def test_what_is_not_there_says_how_to_get_it():
    name = "GSAI-ML/LLaDA-8B-Instruct"
    one_line(name, f"hf download {name}", f"mmdiff.load({name!r}, download=True)")
    one_line(f"{name}@v2", f"hf download {name} --revision v2", "download=True")
    one_line("mmdiff/tny", "Did you mean mmdiff/tiny?")


def test_another_revision_is_not_there(cached):
    one_line("owner/name@v2", "--revision v2")


def test_a_download_without_a_network():
    one_line("owner/other", "cannot be fetched", "HF_HUB_OFFLINE", download=True)


def test_an_incomplete_download_is_one_line(cached):
    (cached / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="the weights are missing"):
        mmdiff.load("owner/name", device="cpu")


def test_what_is_asked_of_the_hub(cached, monkeypatch):
    asked = []

    def download(repo, **options):
        asked.append((repo, options))
        return str(cached)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    mmdiff.load("owner/name@v2", device="cpu", download=True)
    resolve("owner/name")
    (repo, first), (_, second) = asked
    assert (repo, first["revision"], first["local_files_only"]) == ("owner/name", "v2", False)
    assert (second["revision"], second["local_files_only"]) == (None, True)
    assert "*.safetensors" in first["allow_patterns"]
    assert not any(pattern.endswith((".bin", ".py")) for pattern in first["allow_patterns"])


@pytest.mark.parametrize(
    "name",
    [
        "owner",
        "a/b/c",
        "../x",
        "owner/..",
        "/owner/name",
        "owner/",
        "owner/name@",
        "owner/name@../x",
    ],
)
def test_names_that_are_no_hub_ids(monkeypatch, name):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(CheckpointError, match=r"neither a folder nor a built-in name \(|no config"):
        resolve(name)


def test_a_path_is_never_a_hub_id(cached):
    with pytest.raises(CheckpointError, match=r"neither a folder nor a built-in name \(mmdiff"):
        resolve(Path("owner/name"))
