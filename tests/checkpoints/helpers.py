"""The published layouts, told by their key lists alone, and tiny folders with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.checkpoints.published_configs import PUBLISHED

Json = dict[str, Any]
Shapes = dict[str, tuple[int, ...]]
SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "image_size": 384,
    "patch_size": 14,
}
TINY_TOWER = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
TINY_IDS = {"vocab_size": 64, "mask_token_id": 60, "eos_token_id": 61, "pad_token_id": 61}
TINY_LLADA = TINY_IDS | {
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 2,
    "mlp_hidden_size": 48,
    "embedding_size": 64,
    "max_sequence_length": 64,
}
TINY_QWEN = TINY_IDS | {
    "bos_token_id": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
TINY_QWEN_TOWER = {
    "depth": 2,
    "fullatt_block_indexes": [1],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": 20,
    "window_size": 56,
}

TINY_SDAR = TINY_QWEN | {"head_dim": 8}

GEMMA_TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "global_head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 8,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
    "max_position_embeddings": 128,
}
GEMMA_VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "position_embedding_size": 16,
}


def tiny(name: str) -> dict[str, Any]:
    """The published config.json of a family with tiny sizes."""
    config = dict(PUBLISHED[name])
    if "text_config" in config:
        pinpoints = [[28 * h, 28 * w] for h in (1, 2) for w in (1, 2)]
        tower = config["vision_config"] | TINY_TOWER
        small = {"vision_config": tower, "image_token_index": 59, "image_grid_pinpoints": pinpoints}
        return config | small | {"text_config": config["text_config"] | TINY_SDAR}
    if "block_size" in config:
        return config | TINY_SDAR
    config |= TINY_LLADA if "d_model" in config else TINY_QWEN
    if "codebook_size" in config:
        config |= {"llm_vocab_size": 40, "codebook_size": 16, "new_vocab_size": 64}
    if "mm_vision_tower" in config:
        config["vision_config"] = TINY_TOWER
    if name.startswith("lavida"):
        config["image_grid_pinpoints"] = [[28, 56], [56, 28], [56, 56]]
    if name == "dimple":
        config |= {"image_token_id": 59, "mrope_section": [2, 1, 1]}
        config["vision_config"] = config["vision_config"] | TINY_QWEN_TOWER
    return config


def shapes(config: dict[str, Any]) -> Shapes:
    """Every key of the published weights with its shape."""
    if "text_config" in config:
        return onevision(config)
    if "d_model" in config:
        made = olmo(config)
    else:
        dreamlike = any(word in config["model_type"].lower() for word in ("dream", "dimple"))
        made = llama(config, biases=dreamlike)
    if "mm_vision_tower" in config:
        made |= pictures(config)
    if "mrope_section" in config:
        made |= qwen_pictures(config)
    return made


def olmo(config: dict[str, Any]) -> Shapes:
    """LLaDA's own layout."""
    width, inner, rows = config["d_model"], config["mlp_hidden_size"], config["embedding_size"]
    made: Shapes = {
        "model.transformer.wte.weight": (rows, width),
        "model.transformer.ln_f.weight": (width,),
        "model.transformer.ff_out.weight": (rows, width),
    }
    for i in range(config["n_layers"]):
        layer = f"model.transformer.blocks.{i}."
        for name in ("attn_norm", "ff_norm"):
            made[f"{layer}{name}.weight"] = (width,)
        for name in ("q_proj", "k_proj", "v_proj", "attn_out"):
            made[f"{layer}{name}.weight"] = (width, width)
        for name in ("ff_proj", "up_proj"):
            made[f"{layer}{name}.weight"] = (inner, width)
        made[f"{layer}ff_out.weight"] = (width, inner)
    return made


def llama(config: dict[str, Any], *, biases: bool) -> Shapes:
    """The layout of Llama, with `biases` of Qwen2, with "head_dim" in the config of Qwen3."""
    width, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config.get("head_dim") or width // config["num_attention_heads"]
    full, part = (config[f"num_{kind}_heads"] * head for kind in ("attention", "key_value"))
    made: Shapes = {"model.embed_tokens.weight": (rows, width), "model.norm.weight": (width,)}
    if not config.get("tie_word_embeddings"):
        made["lm_head.weight"] = (rows, width)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm"):
            made[f"{layer}{name}.weight"] = (width,)
        for name, out in (("q_proj", full), ("k_proj", part), ("v_proj", part)):
            made[f"{layer}self_attn.{name}.weight"] = (out, width)
            if biases:
                made[f"{layer}self_attn.{name}.bias"] = (out,)
        if "head_dim" in config:
            made |= {f"{layer}self_attn.{name}_norm.weight": (head,) for name in "qk"}
        made[f"{layer}self_attn.o_proj.weight"] = (width, full)
        for name in ("gate_proj", "up_proj"):
            made[f"{layer}mlp.{name}.weight"] = (inner, width)
        made[f"{layer}mlp.down_proj.weight"] = (width, inner)
    return made


def onevision(config: dict[str, Any]) -> Shapes:
    """LLaVA-OneVision's layout: SDAR-VL."""
    language = llama(config["text_config"], biases=False)
    made = {f"language_model.{key}": shape for key, shape in language.items()}
    tower = config["vision_config"]
    made |= siglip("vision_tower.vision_model.", tower, tower["num_hidden_layers"])
    width = config["text_config"]["hidden_size"]
    made |= linears("multi_modal_projector.linear_{}", (1, 2), tower["hidden_size"], width)
    return made | {"image_newline": (width,)}


def linears(name: str, numbers: tuple[int, int], inner: int, outer: int) -> Shapes:
    """The two maps of a projector."""
    made: Shapes = {}
    for number, width in zip(numbers, (inner, outer), strict=True):
        made[name.format(number) + ".weight"] = (outer, width)
        made[name.format(number) + ".bias"] = (outer,)
    return made


def pictures(config: dict[str, Any]) -> Shapes:
    """The SigLIP tower without its last layer, the projector and the newline vector."""
    tower = config.get("vision_config", SO400M)
    language = config.get("d_model") or config["hidden_size"]
    layers = tower["num_hidden_layers"] - 1
    made = siglip("model.vision_tower.vision_tower.vision_model.", tower, layers)
    made |= linears("model.mm_projector.{}", (0, 2), tower["hidden_size"], language)
    return made | {"model.image_newline": (language,)}


def siglip(top: str, tower: dict[str, Any], layers: int) -> Shapes:
    """A SigLIP tower of `layers` layers under `top`."""
    width, inner, patch = tower["hidden_size"], tower["intermediate_size"], tower["patch_size"]
    made: Shapes = {
        f"{top}embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{top}embeddings.patch_embedding.bias": (width,),
        f"{top}embeddings.position_embedding.weight": ((tower["image_size"] // patch) ** 2, width),
    }
    square = [f"self_attn.{name}_proj" for name in "qkv"] + ["self_attn.out_proj"]
    maps = dict.fromkeys(square, (width, width))
    maps |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    norms = [f"{top}post_layernorm."]
    for i in range(layers):
        layer = f"{top}encoder.layers.{i}."
        norms += [f"{layer}layer_norm1.", f"{layer}layer_norm2."]
        for name, shape in maps.items():
            made |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
    for norm in norms:
        made |= {f"{norm}weight": (width,), f"{norm}bias": (width,)}
    return made


def qwen_pictures(config: dict[str, Any]) -> Shapes:
    """Qwen2.5-VL's tower and Dimple's projector."""
    tower, language = config["vision_config"], config["hidden_size"]
    width, inner, out = tower["hidden_size"], tower["intermediate_size"], tower["out_hidden_size"]
    patch, merged = tower["patch_size"], width * tower["spatial_merge_size"] ** 2
    made: Shapes = {
        "visual.patch_embed.proj.weight": (width, 3, tower["temporal_patch_size"], patch, patch),
        "visual.merger.ln_q.weight": (width,),
    }
    maps = {
        "visual.merger.mlp.0": (merged, merged),
        "visual.merger.mlp.2": (out, merged),
        "img_projector.linear_1": (language, out),
        "img_projector.linear_2": (language, language),
    }
    for i in range(tower["depth"]):
        layer = f"visual.blocks.{i}."
        made |= {f"{layer}norm{n}.weight": (width,) for n in (1, 2)}
        maps |= {f"{layer}attn.qkv": (3 * width, width), f"{layer}attn.proj": (width, width)}
        maps |= {f"{layer}mlp.{name}_proj": (inner, width) for name in ("gate", "up")}
        maps |= {f"{layer}mlp.down_proj": (width, inner)}
    for name, shape in maps.items():
        made |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return made


def random_weights(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(shape, generator=generator).mul(0.2).to(dtype)
        for key, shape in shapes(config).items()
    }


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Make `folder` a tiny checkpoint in the layout of family `name`; returns its tensors."""
    config = tiny(name)
    tensors = random_weights(config, dtype)
    save_file(tensors, write_config(folder, config) / "model.safetensors")
    return tensors


def write_gemma(
    folder: Path, text: Json | None = None, vision: Json | None = None, **top: Any
) -> None:
    """Make `folder` a tiny DiffusionGemma, its sizes changed by these."""
    import transformers

    ids = {"boi_token_id": 60, "eoi_token_id": 61, "image_token_id": 62, "canvas_length": 6}
    config = transformers.DiffusionGemmaConfig(
        text_config=GEMMA_TEXT | (text or {}),
        vision_config=GEMMA_VISION | (vision or {}),
        **ids | top,
    )
    torch.manual_seed(0)
    network = transformers.DiffusionGemmaForBlockDiffusion(config).eval()
    with torch.no_grad():
        network.lm_head.weight.mul_(20)  # or every draw is a coin toss
    network.save_pretrained(folder)


def write_shards(folder: Path, parts: list[dict[str, Tensor]]) -> list[Path]:
    """Put the weights of `folder` into one shard per part, with an index."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    names = [f"model-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
    where: dict[str, str] = {}
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name)
        where |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return [folder / name for name in names]


def write_tokenizer(folder: Path, rows: int, named: dict[int, str], **given: Any) -> None:
    """A byte tokenizer of `rows` ids, those in `named` being special tokens; `given` are settings
    of transformers' class beside or instead of the end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = dict(enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())))
    words = {i: named.get(i) or letters.get(i) or f"unused{i}" for i in range(rows)}
    tokenizer = Tokenizer(models.BPE({word: i for i, word in words.items()}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(named.values()))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{"eos_token": "<|endoftext|>", **given}
    )
    fast.save_pretrained(folder)
