"""Settings and models for every test: offline, one thread per process."""

import copy
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest

import mmdiff  # noqa: F401  # mends a torchvision that does not fit before a test file meets it


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    """A folder holding the tiny random model."""
    from tests.helpers import tiny_checkpoint

    return str(tiny_checkpoint(tmp_path_factory.mktemp("model") / "random"))


@pytest.fixture(scope="session")
def _sharp_model():
    from tests.helpers import sharp_model

    return sharp_model()


@pytest.fixture
def model(_sharp_model, monkeypatch):
    """The sharp tiny model, with a config of its own that a test may change."""
    monkeypatch.setattr(_sharp_model, "config", copy.deepcopy(_sharp_model.config))
    return _sharp_model


# A loaded machine is no failure: examples have no time limit of their own.
hypothesis.settings.register_profile("mmdiff", deadline=None)
hypothesis.settings.load_profile("mmdiff")
