"""Autoregressive checkpoints that a diffusion model can start from: transformers' decoders, LLaVA.

They are no families of ours: `mmdiff.load` refuses them, since they predict the next token alone.
`mmdiff.checkpoints.start` makes diffusion models of them. A decoder whose weights are named like
Llama's is one line of DECODERS; another kind of folder is a `Family` registered in `STARTS`.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from mmdiff.checkpoints import dream, llava, sdar
from mmdiff.checkpoints.base import STARTS, Family, Json, need, refuse
from mmdiff.encoders.vision.tiles import Tiling
from mmdiff.errors import CheckpointError

# model_type -> the settings that let every cell see all others, in place of a sliding window; where
# the windowed layers rotate in their own way they stay, with a window wider than any row.
WHOLE = {"use_sliding_window": False, "sliding_window": None, "layer_types": None}
WIDE = {"sliding_window": 1 << 30}
DECODERS: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "ernie4_5": {},
    "gemma": {},
    "gemma3_text": WIDE,
    "glm4": {},
    "llama": {},
    "mistral": {"sliding_window": None},
    "olmo": {},
    "olmo2": {},
    "olmo3": WIDE,
    "phi3": {"sliding_window": None},
    "qwen2": WHOLE,
    "qwen3": WHOLE,
    "seed_oss": {},
    "smollm3": WHOLE,
    "starcoder2": {"sliding_window": None},
}
LLAVA = {"llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}
NOT_SIZES = (  # what a config.json says of the file or of generation, not of the network
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "is_causal",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
BUFFERS = ("model.layers.{}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")
# model_type -> how its features are chosen, and its pixels' mean and std
TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "clip_vision_model": ("default", llava.CLIP_STATISTICS),  # without the class token
    "siglip_vision_model": ("full", {}),
}
# LLaVA's own prompt (haotian-liu/LLaVA, conversation.py, vicuna_v1), where the tokenizer has none.
VICUNA = (
    "{% if messages[0]['role'] != 'system' %}A chat between a curious user and an artificial "
    "intelligence assistant. The assistant gives helpful, detailed, and polite answers to the "
    "user's questions. {% endif %}{% for m in messages %}{% if m['role'] == 'user' %}USER: "
    "{{ m['content'] }} {% elif m['role'] == 'assistant' %}ASSISTANT: {{ m['content'] }}"
    "{{ eos_token }}{% else %}{{ m['content'] }} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
OURS = {
    "language_model.model.": "backbone.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower.vision_model.": "vision.net.",
    "multi_modal_projector.linear_1.": "projector.layers.0.",
    "multi_modal_projector.linear_2.": "projector.layers.2.",
    "image_newline": "image_newline",
}
KEYS = (  # as stored, and as the modules are called in newer versions of transformers
    *OURS.items(),
    *((f"model.{theirs}", ours) for theirs, ours in OURS.items() if "language" not in theirs),
    ("model.language_model.", "backbone."),
    ("lm_head.", "lm_head."),
    ("vision_tower.", "vision.net."),
    ("model.vision_tower.", "vision.net."),
)


def text(config: Json) -> dict[str, Any]:
    """Arguments of `MMDiffConfig` for a decoder with its attention opened; CheckpointError for one
    that is not in DECODERS or holds quantised weights."""
    from transformers import AutoConfig

    kind = need(config, "model_type")[0]
    if kind not in DECODERS:
        known = ", ".join(DECODERS)
        raise CheckpointError(f"config.json: the decoder {kind!r} is not one of {known}")
    refuse(config, {"final_logit_softcapping": None})  # behind the head
    if config.get("quantization_config"):
        raise CheckpointError(
            "config.json: the weights are quantised; convert the model they were made of"
        )
    sizes = {k: v for k, v in config.items() if k not in NOT_SIZES and not k.endswith("_token_id")}
    # An embedding's padding row would never learn, and padding is end-of-text in our canvases.
    sizes |= DECODERS[kind] | {"pad_token_id": None}
    tied = config.get("tie_word_embeddings", AutoConfig.for_model(kind).tie_word_embeddings)
    return {"text_config": sizes, "tie_word_embeddings": bool(tied)}


def of_transformers(config: Json) -> dict[str, Any]:
    """LLaVA, LLaVA-NeXT and LLaVA-OneVision as transformers stores them."""
    language, tower = need(config, "text_config", "vision_config")
    image = config.get("image_token_index", config.get("image_token_id"))
    made = text({"model_type": "llama", **language})
    made["tie_word_embeddings"] |= bool(config.get("tie_word_embeddings", False))
    tower = {"model_type": "clip_vision_model", **tower}
    if config["model_type"] == "llava_onevision":
        refuse(config, sdar.PICTURES)
        seen = sdar.vision(config, known_sizes(tower))
    else:
        seen = vision(config, tower)
    return made | seen | {"image_token_id": image}


def vision(config: Json, tower: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `MMDiffConfig` for the picture side of LLaVA and LLaVA-NeXT. CheckpointError for
    a tower that is not in TOWERS or whose features are chosen otherwise."""
    from transformers import AutoConfig

    kind = tower["model_type"]
    if kind not in TOWERS:
        raise CheckpointError(f"config.json: the tower {kind!r} is not one of {', '.join(TOWERS)}")
    strategy, statistics = TOWERS[kind]
    fixed = {"multimodal_projector_bias": True, "projector_hidden_act": "gelu"}
    refuse(config, fixed | {"vision_feature_select_strategy": strategy})
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise CheckpointError(f"config.json: vision_feature_layer={layer} is not supported; one is")
    sizes = known_sizes(tower)
    whole = AutoConfig.for_model(**sizes)
    layer = layer - whole.num_hidden_layers - 1 if layer >= 0 else layer
    if layer == -1:  # all layers without the final norm: -2 of one layer more
        layer, sizes["num_hidden_layers"] = -2, whole.num_hidden_layers + 1
    side = whole.image_size
    points = config.get("image_grid_pinpoints")
    if points is None:
        tiling = Tiling(side, aspect="pad", **statistics)
    else:
        tiling = Tiling(
            side,
            aspect="anyres",
            pinpoints=tuple((width, height) for height, width in points),
            unpad=True,
            rounded=True,
            newline=True,
            **statistics,
        )
    spec = {
        "source": "transformers",
        "model_type": kind,
        "config": {k: v for k, v in sizes.items() if k != "model_type"},
        "select_layer": layer,
        "image_size": side,
        **{name: list(numbers) for name, numbers in statistics.items()},
    }
    return {
        "vision_config": spec,
        "projector": {"kind": "mlp2x_gelu"},
        "tiling": asdict(tiling),
    }


def known_sizes(tower: Json) -> dict[str, Any]:
    """A tower's config without what its network does not know, and with its `model_type`."""
    from transformers import CONFIG_MAPPING

    kind = tower["model_type"]
    if kind not in CONFIG_MAPPING:
        raise CheckpointError(f"config.json: transformers has no tower {kind!r}")
    known = CONFIG_MAPPING[kind]().to_dict().keys() - {"vision_use_head", *NOT_SIZES}
    return {k: v for k, v in tower.items() if k in known}


def of_llava(config: Json) -> dict[str, Any]:
    """LLaVA as its own project stores it: one config.json for the decoder and the pictures."""
    kind = LLAVA.get(config["model_type"], "llama")
    pictures = ("mm_", "image_", "vision_")
    language = {k: v for k, v in config.items() if not k.startswith(pictures)}
    return text(language | {"model_type": kind}) | llava.vision(config, pooled=False)


STARTS.register("decoder")(
    Family(
        title=f"decoders of transformers ({', '.join(DECODERS)})",
        recognise=lambda config: str(config.get("model_type")) in DECODERS,
        config=text,
        keys=dream.KEYS,
        unused=BUFFERS,
    )
)
STARTS.register("llava")(
    Family(
        title="LLaVA, LLaVA-NeXT and LLaVA-OneVision of transformers",
        recognise=lambda c: (
            c.get("model_type") in ("llava", "llava_next", "llava_onevision") and "text_config" in c
        ),
        config=of_transformers,
        keys=KEYS,
        unused=(
            "vision_tower.vision_model.embeddings.position_ids",
            *(f"language_model.{key}" for key in BUFFERS),
        ),
        after_images="\n",
    )
)
STARTS.register("llava-original")(
    Family(
        title="LLaVA's own folders",
        recognise=lambda c: c.get("model_type") in ("llava", *LLAVA) and "mm_vision_tower" in c,
        config=of_llava,
        keys=(*llava.KEYS, *dream.KEYS),
        unused=(*llava.UNUSED, llava.TOWER + "vision_model.embeddings.position_ids", *BUFFERS),
        template=VICUNA,
        after_images="\n",
    )
)
