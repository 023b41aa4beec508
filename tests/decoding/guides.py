"""Small autoregressive models with random weights, as folders: guides for the tests."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def save_guide(folder, rows, tokenizer=None, end=None, seed=0):
    """A causal language model of `rows` ids in `folder`; (network in float64, folder)."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=None,
    )
    network = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # what it says depends on all it has read
        for weight in network.parameters():
            weight.mul_(10 if weight.ndim == 2 else 1)
    network.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return network.double(), str(folder)


def other_tokenizer(texts, rows):
    """A byte-level BPE with tokens and ids of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=rows,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
