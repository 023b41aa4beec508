"""The model `mmdiff` of lmms-eval (0.7 and later), found by its entry point `lmms_eval.models`:

    python -m lmms_eval --model mmdiff --model_args pretrained=FOLDER,steps=16 --tasks mmmu_val

Every decoding setting is a model argument and so part of lmms-eval's cache keys; settings of the
checkpoint and new weights in an old folder are not, so keep a cache for each checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mmdiff.errors import InputError, require
from mmdiff.loading import DEFAULT, load

api = require("lmms_eval.api.model", "lmms", "the lmms-eval plug-in")
instances = require("lmms_eval.api.instance", "lmms", "the lmms-eval plug-in")

MOST_CELLS = 128  # of an answer, where a task asks for the thousands that a causal model may use


def manifest() -> Any:
    """What lmms-eval registers."""
    registry = require("lmms_eval.models.registry_v2", "lmms", "the lmms-eval plug-in")
    return registry.ModelManifest(model_id="mmdiff", chat_class_path="mmdiff.eval.lmms.Chat")


class Chat(api.lmms):  # type: ignore[name-defined]
    """A model behind lmms-eval's chat interface. Arguments beside the first four are decoding
    settings; `max_new_tokens` among them is every task's, else it is the task's own but at most
    `most_cells`."""

    is_simple = False

    def __init__(
        self,
        pretrained: str = DEFAULT,
        batch_size: int | str = 1,
        device: str | None = None,
        most_cells: int = MOST_CELLS,
        dtype: str | None = None,
        max_batch_size: int | None = None,
        **decoding: Any,
    ) -> None:
        from accelerate import PartialState

        super().__init__()
        state = PartialState()
        if state.num_processes > 1:
            device = str(state.device)
        self._rank, self._world_size = state.process_index, state.num_processes
        self.model = load(pretrained, device=device, dtype=dtype)
        self.model.decoding(decoding)  # refuses unknown settings at once
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else int(max_batch_size or 1)
        self.most_cells, self.decoding = int(most_cells), decoding

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """A GenerationResult for each request, in order."""
        tqdm = require("tqdm", "lmms", "the lmms-eval plug-in").tqdm
        made: dict[int, Any] = {}
        with tqdm(total=len(requests), disable=self.rank != 0, desc="mmdiff") as bar:
            for settings, places in self._batches(requests):
                inputs = [conversation(self._messages(requests[n])) for n in places]
                answers = self.model.run("chat", inputs, batch_size=len(inputs), **settings)
                for place, answer in zip(places, answers, strict=True):
                    text = until(answer.text, requests[place].args[2].get("until") or [])
                    counts = instances.TokenCounts(output_tokens=answer.length)
                    made[place] = instances.GenerationResult(text, counts)
                bar.update(len(places))
        return [made[place] for place in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("score options with: mmdiff eval TASK --by letters")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("mmdiff answers one turn at a time; choose another task")

    def _messages(self, request: Any) -> list[dict[str, Any]]:
        _, messages_of, _, number, task, split = request.args
        return messages_of(self.task_dict[task][split][number])

    def _batches(self, requests: Sequence[Any]) -> Iterator[tuple[dict[str, Any], list[int]]]:
        """Settings, and the requests decoded with them, at most a batch at a time."""
        groups: dict[str, tuple[dict[str, Any], list[int]]] = {}
        for place, request in enumerate(requests):
            settings = self.settings(request.args[2])
            groups.setdefault(repr(settings), (settings, []))[1].append(place)
        for settings, places in groups.values():
            for start in range(0, len(places), self.batch_size):
                yield settings, places[start : start + self.batch_size]

    def settings(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Decoding settings of a task's generation arguments, with the model's own on top."""
        own: dict[str, Any] = {}
        if asked.get("max_new_tokens"):
            own["max_new_tokens"] = min(int(asked["max_new_tokens"]), self.most_cells)
        if asked.get("do_sample") and asked.get("temperature"):
            own["temperature"] = float(asked["temperature"])
            own |= {"top_p": float(asked["top_p"])} if asked.get("top_p") else {}
        return own | self.decoding


def conversation(
    messages: Sequence[dict[str, Any]],
) -> tuple[list[Any], list[dict[str, Any]]]:
    """(pictures, messages) as our chat head takes them. Raises InputError for videos and audio."""
    pictures: list[Any] = []
    turns = []
    for message in messages:
        parts = []
        for part in message["content"]:
            if part["type"] not in ("text", "image"):
                raise InputError(f"mmdiff reads text and pictures; the task has {part['type']}")
            if part["type"] == "image":
                pictures.append(part["url"])
                parts.append({"type": "image"})
            else:
                parts.append({"type": "text", "text": part["text"]})
        plain = message["role"] != "user" and all(part["type"] == "text" for part in parts)
        content: Any = "".join(part["text"] for part in parts) if plain else parts
        turns.append({"role": message["role"], "content": content})
    return pictures, turns


def until(text: str, stops: str | Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0] if stop else text
    return text
