"""A learned accept rule: rows on their own, every cell filled, folders read strictly."""

import pytest
import torch

from mmdiff.decoding.policy import CONFIG, WEIGHTS, Policy
from mmdiff.diffusion.schedule import uniform
from mmdiff.errors import CheckpointError, SettingError
from tests.decoding.helpers import answers, batch, fill, requests
from tests.decoding.plain_layers import said


@pytest.fixture
def folder(tmp_path):
    """A network with random weights, whose chances differ from cell to cell about a third."""
    torch.manual_seed(0)
    made = Policy(width=16, heads=2)
    with torch.no_grad():
        made.enter.weight.mul_(3)
        made.leave.bias.fill_(-0.7)
    made.save(tmp_path / "policy")
    return str(tmp_path / "policy")


@pytest.mark.parametrize("block_length", [None, 4])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_equals_its_rows_alone(model, folder, block_length, temperature):
    rule = {"accept": "policy", "policy": folder, "block_length": block_length}
    rule["temperature"] = temperature
    together = fill(model, *requests(model), seed=(5, 6, 7), **rule)
    assert not together.canvas.masked.any()
    for i, row in enumerate(requests(model)):
        alone = fill(model, row, seed=5 + i, **rule)
        assert answers(alone)[0] == answers(together)[i]
        assert int(alone.nfe[0]) == int(together.nfe[i])
    other = fill(model, *requests(model), seed=(8, 9, 10), **rule)
    assert other.nfe.tolist() != together.nfe.tolist() or answers(other) != answers(together)


@torch.inference_mode()
def test_policy_equals_the_rule_on_one_row(model, folder):
    """Cells by their own draws of the row's seed, the likeliest where none is drawn."""
    network, row, seed = Policy.load(folder).double(), requests(model)[0], 3
    view = batch(model, row)
    start, step = view.prompt_length, 0
    cells = view.shape[1] - start
    while bool(view.masked.any()):
        ids, chance = said(model, model.hidden(view, model.embed(view))[0, start:])
        masked = view.masked[:, start:]
        chance = torch.where(masked, torch.tensor([chance], dtype=torch.float64), 1.0)
        left = masked.sum(1) / cells
        odds = network(chance, masked, torch.ones_like(masked), left.double())[0]
        drawn = [
            c for c in masked[0].nonzero()[:, 0].tolist()
            if float(uniform(*(torch.tensor(n) for n in (seed, step, c, 1)))) < odds[c].sigmoid()
        ]  # fmt: skip
        best = int(torch.where(masked[0], odds, float("-inf")).argmax())
        for c in drawn or [best]:
            view.ids[0, start + c], view.masked[0, start + c] = ids[c], False
        step += 1
    filled = fill(model, row, accept="policy", policy=folder, seed=seed, cache="none")
    assert (answers(filled)[0], int(filled.nfe[0])) == (view.ids[0, start:].tolist(), step)


def test_padding_changes_nothing():
    torch.manual_seed(1)
    network = Policy(width=16, heads=4).double().eval()
    chance, masked = torch.rand(2, 5).double(), torch.rand(2, 5) > 0.4
    left, valid = torch.rand(2).double(), torch.ones(2, 5, dtype=torch.bool)
    alone = network(chance, masked, valid, left)
    wide = (torch.nn.functional.pad(x, (2, 1)) for x in (chance, masked, valid))
    torch.testing.assert_close(network(*wide, left)[:, 2:-1], alone)


def test_what_is_saved_is_loaded(folder, tmp_path):
    loaded = Policy.load(folder)
    assert (loaded.width, loaded.heads, loaded.training) == (16, 2, False)
    loaded.save(tmp_path / "again")
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "policy" / name).read_bytes()


def test_bad_folders_are_refused(model, folder, tmp_path):
    with pytest.raises(SettingError, match="use policy=FOLDER"):
        fill(model, requests(model)[0], accept="policy")
    with pytest.raises(CheckpointError, match=r"nowhere: holds no policy\.json"):
        fill(model, requests(model)[0], accept="policy", policy=str(tmp_path / "nowhere"))
    path = tmp_path / "policy"
    for name, text in (
        (CONFIG, '{"width": 32, "heads": 2}'),  # not the size of the weights
        (CONFIG, '{"width": 15}'),
        (CONFIG, "[]"),
        (WEIGHTS, "no tensors"),
    ):
        kept = (path / name).read_bytes()
        (path / name).write_text(text)
        with pytest.raises(CheckpointError, match=r"policy\.safetensors that fit"):
            Policy.load(path)
        (path / name).write_bytes(kept)
