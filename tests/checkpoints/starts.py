"""Tiny autoregressive folders with random weights, written by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.checkpoints.helpers import write_tokenizer

BEGIN, END, IMAGE = 256, 257, 258
NAMED = {BEGIN: "<|begin|>", END: "<|endoftext|>", IMAGE: "<image>"}
TEMPLATE = (
    "{% for m in messages %}<|begin|>{{ m['role'] }}: {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<|endoftext|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant: {% endif %}"
)
# As processors of pictures have it: the content is a list of parts.
PARTS_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: "
    "{% for part in m['content'] | selectattr('type', 'equalto', 'image') %}<image>\n{% endfor %}"
    "{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }} {% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # or every logit is near 0
    "bos_token_id": BEGIN,
    "eos_token_id": END,
    "pad_token_id": None,
}
TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def decoder_config(kind: str, **over: Any) -> Any:
    from transformers import AutoConfig

    own = ("gemma", "gemma3_text", "glm4", "qwen3", "seed_oss")
    more = {"head_dim": 8} if kind in own else {}
    return AutoConfig.for_model(kind, **{**SIZES, "vocab_size": 259, **more, **over})


def write_decoder(folder: Path, kind: str = "llama", **over: Any) -> Any:
    """Make `folder` a tiny decoder with its tokenizer; returns transformers' own network."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(decoder_config(kind, **over)).eval()
    network.save_pretrained(folder)
    write_words(folder)
    return network


def write_words(folder: Path, template: str | None = TEMPLATE, **given: Any) -> None:
    given = {"bos_token": "<|begin|>", "chat_template": template, **given}
    write_tokenizer(folder, 259, NAMED, **given)


def write_llava(folder: Path, kind: str = "llava", tower: str = "clip", **over: Any) -> Any:
    """Make `folder` a tiny LLaVA; returns transformers' own network."""
    import transformers as library

    strategy = "default" if tower == "clip" else "full"
    more: dict[str, Any] = {"vision_feature_select_strategy": strategy}
    if kind != "llava":
        more["image_grid_pinpoints"] = [[28 * h, 28 * w] for h in (1, 2) for w in (1, 2)]
    if kind == "llava_onevision":
        more |= {"vision_feature_layer": -1, "vision_aspect_ratio": "anyres_max_9"}
    names = {"llava": "Llava", "llava_next": "LlavaNext", "llava_onevision": "LlavaOnevision"}
    config = getattr(library, f"{names[kind]}Config")(
        text_config=decoder_config("llama").to_dict(),
        vision_config=dict(TOWER, model_type=f"{tower}_vision_model"),
        image_token_index=IMAGE,
        **{**more, **over},
    )
    torch.manual_seed(0)
    network = getattr(library, f"{names[kind]}ForConditionalGeneration")(config).eval()
    network.save_pretrained(folder)
    write_words(folder, PARTS_TEMPLATE)
    return network
