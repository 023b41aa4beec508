"""The model and processor a recipe starts from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from mmdiff.encoders.vision import build_vision
from mmdiff.errors import SettingError, TrainingError
from mmdiff.model import MMDiffConfig, MMDiffModel
from mmdiff.processing import ImageSettings, Processor, TextSettings
from mmdiff.training.sources import open_source

if TYPE_CHECKING:
    from mmdiff.training.recipe import NewModel, Recipe

END, MASK, IMAGE, USER, ASSISTANT = "<|end|>", "<|mask|>", "<|image|>", "<|user|>", "<|assistant|>"
SPECIAL = (END, MASK, IMAGE, USER, ASSISTANT)
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}<|end|>"
    "{% else %}<|user|>{{ m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build(recipe: Recipe) -> MMDiffModel:
    """A model with its processor, in float32."""
    if isinstance(recipe.model, str):
        from mmdiff.loading import load

        model = load(recipe.model, device="cpu", dtype=torch.float32)
        if getattr(model.config, "block_size", 1) is not None:  # or DiffusionGemma, which has none
            raise TrainingError(
                f"{recipe.model}: a block-diffusion checkpoint, which decodes but cannot be "
                "trained yet; start from another one"
            )
        if model.three_axes:
            raise TrainingError(
                f"{recipe.model}: positions on three axes decode but cannot be trained yet; "
                "start from another checkpoint"
            )
        return model
    text = open_source(recipe).text(recipe.seed)
    return new_model(recipe.model, fit_tokenizer(text, recipe.model.vocab_size), recipe.seed)


def settle(recipe: Recipe, model: MMDiffModel) -> Recipe:
    """The recipe with its `conversation` said, and the model's config saying the same.

    Raises SettingError where the model cannot be trained so, InputError where its chat template
    rewrites earlier turns.
    """
    config, said = model.config, recipe.conversation
    by_turn = config.turn_causal if said is None else said == "by_turn"
    if by_turn and config.attention_layout != "prefix":
        raise SettingError(
            "conversation=by_turn needs a model with attention_layout: prefix; this one has "
            f"{config.attention_layout}"
        )
    if recipe.lora and by_turn != config.turn_causal:
        raise SettingError(
            "lora: adapters cannot change how a model sees conversations; leave conversation out"
        )
    if by_turn and model.processor is not None:
        talk = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
        model.processor.turn_ends(model.processor.prompt_ids(talk), talk)
    config.turn_causal = by_turn
    return replace(recipe, conversation="by_turn" if by_turn else "by_answer")


def fit_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """A lower-casing byte-level BPE: any text has ids, and frequent words are one token."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    # Every word starts with its space, the first one too, so a word has one id wherever it stands.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        mask_token=MASK,
        additional_special_tokens=[IMAGE, USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def new_model(spec: NewModel, tokenizer: Any, seed: int) -> MMDiffModel:
    """A randomly initialised model around a tokenizer."""
    vision = build_vision(spec.vision_config)
    used = len(tokenizer)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL}
    config = MMDiffConfig(
        text_config={**spec.text_config, "vocab_size": -(-used // 8) * 8},
        vision_config=vision.spec(),
        projector=spec.projector,
        attention_layout=spec.attention_layout,
        picture_apart=spec.attention_layout != "full",
        mask_token_id=ids[MASK],
        image_token_id=ids[IMAGE],
        forbidden_ids=[ids[USER], ids[ASSISTANT]],
        vocab_used=used,
        eos_token_id=ids[END],
        pad_token_id=ids[END],
        decoding=spec.decoding,
    )
    torch.manual_seed(seed)
    model = MMDiffModel(config)
    image = ImageSettings.of(vision, model.image_tokens)
    model.processor = Processor(tokenizer, image, TextSettings(image_token=IMAGE))
    return model
