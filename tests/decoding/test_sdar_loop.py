"""compat=sdar, random draws included, against SDAR's loop written out for one row of a table."""

from types import SimpleNamespace

import pytest
import torch

from mmdiff.decoding.loop import decode
from mmdiff.decoding.settings import make_decoding
from mmdiff.processing import collate, prompt_row
from tests.walk.block import STRATEGIES, TableModel

SIZE, MASK, PLACES = 12, 11, 40


def table(seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(SIZE, SIZE, generator=generator) * 2
    places = torch.randn(PLACES, SIZE, generator=generator) * 2
    places[:, MASK] = -1e4
    return tokens, places


def kept(logits, top_k, top_p):
    """-inf outside the top_k, and then outside the nucleus."""
    if top_k:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    for row in logits if top_p < 1 else ():
        chances, total = row.softmax(0).tolist(), 0.0
        for token in row.argsort(descending=True).tolist():
            if total > top_p:
                row[token] = -torch.inf
            total += chances[token]
    return logits


def by_hand(seed, prompt, blocks, length, steps, strategy, threshold, temperature, top_k, top_p):
    tokens, places = table(seed)
    first = len(prompt) // length
    ids = torch.tensor(prompt + [MASK] * ((first + blocks) * length - len(prompt)))
    counts = [length // steps + (i < length % steps) for i in range(steps)]
    for number in range(first, first + blocks):
        where = slice(number * length, (number + 1) * length)
        for count in counts:
            masked = ids[where] == MASK
            if not masked.any():
                break
            logits = (tokens[ids[where]] + places[where]) / temperature
            drawn = torch.multinomial(kept(logits.clone(), top_k, top_p).softmax(1), 1)[:, 0]
            chance = logits.softmax(1)[torch.arange(length), drawn]
            chance = torch.where(masked, chance, -torch.inf)
            sure = chance > threshold
            if strategy == "sequential":
                begin = int(masked.nonzero()[0])
                take = torch.arange(length)[begin : begin + count]
            elif strategy == "low_confidence_dynamic" and int(sure.sum()) >= count:
                take = sure.nonzero()[:, 0]
            else:
                take = chance.topk(count).indices
            ids[where][take] = drawn[take]
    return ids.tolist()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("length", "steps", "temperature", "top_k", "top_p"),
    [(4, 4, 1.0, 0, 1.0), (5, 2, 0.7, 3, 1.0), (6, 4, 1.3, 0, 0.8), (7, 3, 1.0, 5, 0.9)],
)
def test_seeded_runs_are_the_published_ones(strategy, length, steps, temperature, top_k, top_p):
    for seed in range(4):
        prompt = torch.randint(0, MASK, (3 + 3 * seed,)).tolist()
        cells = 3 * length - len(prompt) % length
        settings = make_decoding(
            {
                "max_new_tokens": cells,
                "block_length": length,
                "steps": 3 * steps,
                "schedule": "rate",
                "threshold": 0.4,
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "stop": "none",
                "compat": "sdar",
            },
            STRATEGIES[strategy],
        )
        tokens, places = table(seed)
        entry = SimpleNamespace(inputs={"T": tokens, "P": places}, ids={"mask": MASK})
        row = prompt_row(prompt, [MASK] * cells, [True] * cells)
        torch.manual_seed(seed)
        filled = decode(TableModel(entry), collate([row], pad_id=0), settings, None)
        torch.manual_seed(seed)
        options = (length, steps, strategy, 0.4, temperature, top_k, top_p)
        assert filled.canvas.ids[0].tolist() == by_hand(seed, prompt, 3, *options)
