"""iLLaDA: transformers' Llama without a causal mask, its output table that of its words."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

import mmdiff
from mmdiff.checkpoints.illada import text
from mmdiff.errors import CheckpointError, InputError
from tests.checkpoints.helpers import tiny, write, write_tokenizer
from tests.checkpoints.published_configs import PUBLISHED


@torch.no_grad()
def test_logits_are_those_of_a_llama_that_sees_everything(tmp_path):
    tensors = write(tmp_path, "illada")
    others = ("architectures", "layer_norm_eps", "mask_token_id", "model_type")
    sizes = {key: value for key, value in tiny("illada").items() if key not in others}
    network = LlamaForCausalLM(LlamaConfig(**sizes))
    network.load_state_dict(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]})
    ids = torch.tensor([[5, 9, 60, 60, 3]])
    everything = torch.zeros(1, 1, 5, 5)
    expected = network.eval()(input_ids=ids, attention_mask=everything).logits
    ours = mmdiff.load(tmp_path, device="cpu")(input_ids=ids).logits
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_table_stored_twice_is_read_once(tmp_path):
    tensors = write(tmp_path, "illada")
    twice = {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(load_file(tmp_path / "model.safetensors") | twice, tmp_path / "model.safetensors")
    assert mmdiff.load(tmp_path, device="cpu").config.tie_word_embeddings


def test_facts():
    assert text(PUBLISHED["illada"])["mask_token_id"] == 5
    with pytest.raises(CheckpointError, match="tie_word_embeddings=False is not supported"):
        text(PUBLISHED["illada"] | {"tie_word_embeddings": False})
    with pytest.raises(CheckpointError, match="lacks the key 'rope_theta'"):
        text({key: value for key, value in PUBLISHED["illada"].items() if key != "rope_theta"})


def test_without_a_chat_template_there_is_no_prompt(tmp_path):
    write(tmp_path, "illada")
    write_tokenizer(tmp_path, 64, {60: "<[MASK]>", 61: "<|endoftext|>"})
    model = mmdiff.load(tmp_path, device="cpu")
    with pytest.raises(InputError, match="has no chat template"):
        model.answer(None, "why?")
