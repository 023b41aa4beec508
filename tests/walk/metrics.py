"""Scores of published evaluation code against ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from mmdiff.eval.metrics import anls, caption, letter, mmmu, ptb, relaxed, vqa, yes_no
from mmdiff.eval.metrics.meteor import meteor
from mmdiff.eval.tasks.mmmu import message, options_of, prompt
from mmdiff.eval.tasks.scienceqa import prompt as scienceqa_prompt
from tests.walk.core import Entry

Json = dict[str, Any]


def check(entry: Entry, case: str, pairs: Iterable[tuple[Any, Any]]) -> None:
    """Note whether all of (got, stored) agree: floats within the entry's tolerance."""
    limits = entry.facts["tolerance"]
    atol = limits["METEOR" if case.startswith("METEOR") else "scores"]["atol"]
    count, error, wrong = 0, 0.0, []
    for got, stored in pairs:
        count += 1
        if isinstance(got, float) and isinstance(stored, int | float):
            error = max(error, abs(got - stored))
            if abs(got - stored) > atol:
                wrong.append((got, stored))
        elif got != stored:
            wrong.append((got, stored))
    more = {"first": repr(wrong[0])} if wrong else {}
    status = "failed" if wrong or not count else "passed"
    entry.note(case, status, [case], error, compared=count, **more)


def mmmu_answers(entry: Entry) -> None:
    data = entry.settings("data")
    rows = data["multiple_choice"]
    for protocol in ("official", "lmms_eval"):
        stored = rows if protocol == "official" else [row["lmms_eval"] for row in rows]
        parsed = [mmmu.parse_choice(row["response"], row["options"], protocol) for row in rows]
        check(entry, f"{protocol} letters", zip(parsed, (s["parsed"] for s in stored), strict=True))
        if protocol == "official":
            letters = parsed
    random_ids = [row["id"] for row, got in zip(rows, letters, strict=True) if got is None]
    check(entry, "random_fallback_ids", [(random_ids, data["random_fallback_ids"])])
    picks = mmmu.guesses(letters, [len(row["options"]) for row in rows])
    check(
        entry,
        "official_pick_seed42_in_file_order",
        [
            (pick, row["official_pick_seed42_in_file_order"])
            for pick, row in zip(picks, rows, strict=True)
            if row["random_fallback"]
        ],
    )
    choices = [
        (got == row["answer"], row["correct"])
        for got, row in zip(letters, rows, strict=True)
        if got is not None
    ]
    opened = []
    for row in data["open"]:
        if row["official_error"] is not None:
            entry.skip(row["id"], f"the published code fails: {row['official_error']}")
            continue
        parsed_open = mmmu.parse_open(row["response"])
        got = {str(value) for value in parsed_open}
        check(entry, row["id"], [(got, {str(value) for value in row["parsed_set"]})])
        opened.append((mmmu.open_right(parsed_open, row["answer"]), row["correct"]))
    check(entry, "correct", choices + opened)
    marks = [float(mark) for mark, _ in choices + opened]
    overall = data["official_accuracy_excluding_random"]
    got_overall = (len(marks), sum(marks) / len(marks))
    check(entry, "official_accuracy", zip(got_overall, (overall["n"], overall["acc"]), strict=True))


def mmmu_numbers(entry: Entry) -> None:
    data = entry.settings("data")

    def plain(values: list[Any]) -> list[str]:
        return [str(value) for value in values]

    check(
        entry,
        "normalize_str",
        (
            (plain(mmmu.normalized(unit["in"])), plain(unit["normalized"]))
            for unit in data["normalize_str"]
        ),
    )
    check(
        entry,
        "is_number",
        (
            (isinstance(mmmu.normalized(unit["in"])[0], float), unit["is_number"])
            for unit in data["normalize_str"]
        ),
    )
    check(
        entry,
        "extract_numbers",
        ((mmmu.numbers(unit["in"]), unit["numbers"]) for unit in data["extract_numbers"]),
    )


def mmmu_prompts(entry: Entry) -> None:
    for case in entry.settings("data")["prompts"]:
        doc, expected = case["doc"], case["expected"]
        options = options_of(doc)
        official = prompt(doc["question"], options)
        plain = prompt(doc["question"], options, "lmms_eval")
        pairs: list[tuple[Any, Any]] = [
            (official, expected["final_input_prompt"]),
            (official, expected["empty_prompt"]),
            (plain, case["lmms_eval_prompt_plain"]),
            (
                "".join(part.get("text", "<image>") for part in message(plain)["content"]),
                case["lmms_eval_prompt_interleaved"],
            ),
        ]
        if options is not None:
            by_letter = dict(zip(letter.LETTERS, options, strict=False))
            pairs += [
                (by_letter, expected["index2ans"]),
                (list(by_letter), expected["all_choices"]),
                (by_letter[doc["answer"]], expected["gt_content"]),
            ]
        check(entry, doc["id"], pairs)


def mmmu_table(entry: Entry) -> None:
    data = entry.settings("data")
    answers = json.loads(entry.path("answers").read_text(encoding="utf-8"))
    predictions = json.loads(entry.path("predictions").read_text(encoding="utf-8"))
    marks: dict[str, list[float]] = {}
    for name, said in predictions.items():
        row = answers[name]
        if row["question_type"] == "multiple-choice":
            right = said == row["ground_truth"]
        else:
            right = mmmu.open_right(mmmu.parse_open(said), row["ground_truth"])
        marks.setdefault(mmmu.subject(name), []).append(float(right))
    got = mmmu.table(marks)
    check(entry, "row_order", [(list(got), data["row_order"])])
    for name, row in data["table"].items():
        check(entry, name, [(got[name]["num"], row["num"]), (float(got[name]["acc"]), row["acc"])])
    domains = {name: list(subjects) for name, subjects in mmmu.DOMAINS.items()}
    check(entry, "domains", [(domains, data["domains"])])


def vqa_accuracy(entry: Entry) -> None:
    data = entry.settings("data")
    fields = {
        "official": "official_accuracy_percent",
        "lmms_eval": "lmms_eval_vqav2_percent",
        "textvqa": "lmms_eval_textvqa_percent",
    }
    for protocol, field in fields.items():
        got = [100 * vqa.accuracy(c["answers"], c["prediction"], protocol) for c in data["cases"]]
        stored = [float(case[field]) for case in data["cases"]]
        # The published evaluator rounds to two decimals.
        pairs = zip(got, stored, strict=True)
        check(entry, field, ((round(mine, 2), round(theirs, 2)) for mine, theirs in pairs))
        if protocol == "official":
            overall = round(sum(got) / len(got), 2)
            check(entry, "overall_percent", [(overall, data["overall_percent"])])
    units = data["normalization_units"]
    steps: Mapping[str, Callable[[str], str]] = {
        "after_punctuation": vqa.without_punctuation,
        "after_digit_article": vqa.normal,
        "evalai_textvqa": vqa.evalai,
    }
    for field, made in steps.items():
        check(entry, field, ((made(unit["in"]), unit[field]) for unit in units))
    check(entry, "contractions", [(vqa.contractions(), data["contractions"])])
    check(entry, "digit_words", [(vqa.NUMBERS, data["digit_words"])])
    check(entry, "articles", [(list(vqa.ARTICLES), data["articles"])])
    check(entry, "punctuation", [(list(vqa.PUNCTUATION), data["punctuation"])])


def chartqa(entry: Entry) -> None:
    data = entry.settings("data")
    limit = data["max_relative_change"]
    check(
        entry,
        "correct",
        (
            (relaxed.relaxed(case["prediction"], case["target"], limit), case["correct"])
            for case in data["cases"]
            if case["error"] is None
        ),
    )


def docvqa(entry: Entry) -> None:
    data = entry.settings("data")
    check(
        entry,
        "levenshtein",
        (
            (anls.levenshtein(unit["a"], unit["b"]), unit["distance"])
            for unit in data["levenshtein"]
        ),
    )
    check(
        entry,
        "anls",
        (
            (anls.anls(case["answers"], case["prediction"], data["threshold"]), float(case["anls"]))
            for case in data["cases"]
        ),
    )


def pope(entry: Entry) -> None:
    data = entry.settings("data")
    said = [case["prediction"] for case in data["cases"]]
    wanted = [case["answer"] for case in data["cases"]]
    got = yes_no.pope(said, wanted)
    check(
        entry,
        "score",
        (
            (float(yes_no.bare(case["prediction"]) == yes_no.bare(case["answer"])), case["score"])
            for case in data["cases"]
        ),
    )
    for name in ("accuracy", "precision", "recall", "f1", "lmms_eval_yes_ratio"):
        check(entry, name, [(got[name], data[name])])
    check(entry, "predicted_yes_ratio", [(got["yes_ratio"], data["predicted_yes_ratio"])])


def mme(entry: Entry) -> None:
    data = entry.settings("data")
    check(entry, "parse", ((yes_no.mme_label(unit["in"]), unit["label"]) for unit in data["parse"]))
    marks = [
        (yes_no.mme_label(case["prediction"]) == case["answer"].lower(), case)
        for case in data["cases"]
    ]
    check(entry, "score", ((float(mark), case["score"]) for mark, case in marks))
    scores = yes_no.mme_scores((c["category"], c["question_id"], mark) for mark, c in marks)
    for name, categories in (("perception", yes_no.PERCEPTION), ("cognition", yes_no.COGNITION)):
        check(entry, name, [(yes_no.mme_sum(scores, categories), data[name])])
        check(entry, f"{name} groups", [(list(categories), data["groups"][name.capitalize()])])


def scienceqa(entry: Entry) -> None:
    data = entry.settings("data")
    check(
        entry,
        "exact_match",
        (
            (
                float(letter.letter(case["prediction"]) == letter.LETTERS[case["answer_index"]]),
                case["exact_match"],
            )
            for case in data["cases"]
        ),
    )
    hint, _, rest = data["prompt"].removeprefix("Context: ").partition("\n")
    question = rest.partition("\n")[0]
    check(entry, "prompt", [(scienceqa_prompt(question, data["choices"], hint), data["prompt"])])
    check(
        entry,
        "prompt_no_hint",
        [(scienceqa_prompt(question, data["choices"], ""), data["prompt_no_hint"])],
    )


def coco(entry: Entry) -> None:
    data = entry.settings("data")
    check(
        entry,
        "tokenizer_units",
        ((ptb.tokenized(unit["in"]), unit["out"]) for unit in data["tokenizer_units"]),
    )
    images = {image["image_id"]: image for image in data["images"]}
    ordered = [images[number] for number in data["image_order"]]
    captions = [ptb.tokenized(image["prediction"]) for image in ordered]
    references = [[ptb.tokenized(text) for text in image["references"]] for image in ordered]
    check(
        entry,
        "tokenized",
        [
            *zip(captions, (image["tokenized_prediction"] for image in ordered), strict=True),
            *zip(references, (image["tokenized_references"] for image in ordered), strict=True),
        ],
    )
    corpus, each = caption.bleu(captions, references)
    for order in range(caption.ORDERS):
        name = f"Bleu_{order + 1}"
        check(entry, name, [(corpus[order], data["corpus"][name])])
        check(
            entry,
            f"{name} of images",
            ((mine[order], image[name]) for mine, image in zip(each, ordered, strict=True)),
        )
    scores = {
        "ROUGE_L": [caption.rouge_l(c, r) for c, r in zip(captions, references, strict=True)],
        "CIDEr": caption.cider(captions, references),
    }
    for name, mine in scores.items():
        check(entry, name, [(sum(mine) / len(mine), data["corpus"][name])])
        stored = (image[name] for image in ordered)
        check(entry, f"{name} of images", zip(mine, stored, strict=True))
    if find_spec("pycocoevalcap") is None or shutil.which("java") is None:
        return entry.skip("METEOR", "needs pycocoevalcap and java")
    total, marks = meteor(captions, references)
    check(entry, "METEOR", [(total, data["corpus"]["METEOR"])])
    stored = (image["METEOR"] for image in ordered)
    check(entry, "METEOR of images", zip(marks, stored, strict=True))


READERS: dict[str, Callable[[Entry], None]] = {
    "mmmu_parse_score": mmmu_answers,
    "mmmu_number_units": mmmu_numbers,
    "mmmu_prompts": mmmu_prompts,
    "mmmu_domain_table": mmmu_table,
    "vqav2_accuracy": vqa_accuracy,
    "chartqa_relaxed": chartqa,
    "docvqa_anls": docvqa,
    "pope": pope,
    "mme": mme,
    "scienceqa": scienceqa,
    "coco_caption": coco,
}
