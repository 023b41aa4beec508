"""What is marked exact is: speculation and kept keys give the ids of the plain loop."""

import pytest
import torch

from mmdiff.model import MMDiffConfig, MMDiffModel

VOCABULARY, CELLS, ROWS = 80, 12, 25
SIZES = {"vocab_size": VOCABULARY, "intermediate_size": 48, "max_position_embeddings": 128}
FAST = "freedave:drafts=4"
# Network, config, and what must change nothing: settings beside the rule's.
MODELS = {
    "full": (
        {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2},
        {"attention_layout": "full", "shift": True},
        [{"speculate": FAST}, {"speculate": "freedave:drafts=2"}],
    ),
    "prefix": (
        {"model_type": "qwen2", "hidden_size": 24, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2},
        {"attention_layout": "prefix", "shift": True},
        [{"cache": "prefix"}, {"speculate": FAST}, {"cache": "prefix", "speculate": FAST}],
    ),
    "block": (
        {"model_type": "qwen3", "hidden_size": 32, "head_dim": 8, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 1},
        {"attention_layout": "block", "block_size": 4},
        [{"cache": "block"}, {"speculate": FAST}],
    ),
    "causal": (
        {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2},
        {"attention_layout": "causal", "shift": True},
        [{"speculate": "assd"}, {"speculate": FAST, "cache": "prefix"}],
    ),
}  # fmt: skip
RULES = [
    {},
    {"accept": "threshold:value=0.3", "block_length": 4},
    {"temperature": 1.0, "order": "margin", "steps": 6},
]
LEFT = [{}, {"temperature": 0.7}, {"block_length": 4, "stop": "block", "stop_ids": (7, 9)}]


def random_model(name):
    """Large weights in float64: answers depend on every cell they should, and no two choices lie
    within rounding of each other."""
    text, config, ways = MODELS[name]
    torch.manual_seed(len(name))
    model = MMDiffModel(MMDiffConfig(text_config=SIZES | text, mask_token_id=0, **config))
    model = model.double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_((1.5 if weight.shape[0] == VOCABULARY else 8) if weight.ndim == 2 else 1)
    return model, ways


def prompts(count, seed):
    """(ids, mask) of `count` random prompts, padded on the left."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (count, 14), generator=chance)
    length = torch.randint(3, 15, (count, 1), generator=chance)
    return ids, torch.arange(14) >= 14 - length


def compare(name, count):
    """Calls of the plain loop, and of each way, over `count` prompts."""
    model, ways = random_model(name)
    calls = [0] * (len(ways) + 1)
    for start in range(0, count, ROWS):
        ids, mask = prompts(min(ROWS, count - start), start)
        for rule in LEFT if name == "causal" else RULES:
            order = {"order": "left_to_right"} if name == "causal" else {}
            seeds = list(range(start, start + len(ids)))
            settings = {"max_new_tokens": CELLS, "stop": "none", "seed": seeds, **order, **rule}
            plain = model.generate(ids, mask, cache="none", **settings)
            calls[0] += int(plain.nfe.sum())
            for number, way in enumerate(ways, start=1):
                made = model.generate(ids, mask, **{"cache": "none", **way}, **settings)
                assert torch.equal(made.sequences, plain.sequences), (rule, way)
                assert bool((made.nfe <= plain.nfe).all()), (rule, way)
                calls[number] += int(made.nfe.sum())
    return calls


@pytest.mark.parametrize("name", MODELS)
def test_a_few_prompts(name):
    compare(name, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_200_prompts(name):
    plain, *others = compare(name, 200)
    for way, calls in zip(MODELS[name][2], others, strict=True):
        assert calls < plain if "speculate" in way else calls == plain
