"""BLEU, ROUGE-L and CIDEr of captions as the COCO scorer computes them (pycocoevalcap 1.2).

Everything here takes tokens with blanks between (`ptb.tokenized`). That scorer's `Cider` is CIDEr-D
(Vedantam et al., arXiv:1411.5726): counts clipped at the reference's, a penalty for another length,
and document frequencies of the references given, so that a subset of a data set has another CIDEr.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

ORDERS = 4
_SMALL, _TINY = 1e-9, 1e-15
_BETA = 1.2
_SIGMA = 6.0

Gram = tuple[str, ...]


def bleu(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[list[float], list[list[float]]]:
    """BLEU-1 to 4 of the whole set, and of each caption: ([4], [captions][4]).

    The reference length is the one nearest to the caption's, the shorter of two.
    """
    total, each = [0] * (2 * ORDERS + 2), []
    for caption, wanted in zip(captions, references, strict=True):
        counts = _bleu_counts(caption.split(), [text.split() for text in wanted])
        each.append(_bleu_of(counts))
        total = [a + b for a, b in zip(total, counts, strict=True)]
    return _bleu_of(total), each


def _bleu_counts(words: list[str], wanted: list[list[str]]) -> list[int]:
    """Matches of each order, grams of each order, the caption's and the reference's length."""
    most: Counter[Gram] = Counter()
    for text in wanted:
        most |= Counter(_grams(text))
    matches = [0] * ORDERS
    for gram, count in Counter(_grams(words)).items():
        matches[len(gram) - 1] += min(count, most[gram])
    made = [max(0, len(words) - k) for k in range(ORDERS)]
    nearest = min((abs(len(text) - len(words)), len(text)) for text in wanted)[1]
    return [*matches, *made, len(words), nearest]


def _bleu_of(counts: Sequence[int]) -> list[float]:
    matches, made = counts[:ORDERS], counts[ORDERS : 2 * ORDERS]
    length, reference = counts[2 * ORDERS :]
    ratio = (length + _TINY) / (reference + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, scores = 1.0, []
    for k in range(ORDERS):
        product *= (matches[k] + _TINY) / (made[k] + _SMALL)
        scores.append(product ** (1 / (k + 1)) * penalty)
    return scores


def rouge_l(caption: str, references: Sequence[str]) -> float:
    """F of the longest common subsequence, beta 1.2, from the best precision and the best recall,
    which may come from different references."""
    words = caption.split(" ")
    common = [(_common(words, text.split(" ")), len(text.split(" "))) for text in references]
    precision = max(shared for shared, _ in common) / len(words)
    recall = max(shared / length for shared, length in common)
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = row
        row = [0]
        for place, other in enumerate(b):
            row.append(before[place] + 1 if word == other else max(row[place], before[place + 1]))
    return row[-1]


def cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each caption; that of the set is their mean."""
    found: Counter[Gram] = Counter()
    counted = [[Counter(_grams(text.split())) for text in wanted] for wanted in references]
    for wanted in counted:
        found.update(set().union(*wanted))
    log_images = math.log(max(1, len(captions)))
    weight = {gram: log_images - math.log(count) for gram, count in found.items()}
    scores = []
    for caption, wanted in zip(captions, counted, strict=True):
        own = Counter(_grams(caption.split()))
        pairs = [_similar(own, other, weight, log_images) for other in wanted]
        scores.append(10 * sum(pairs) / max(1, len(pairs)))
    return scores


def _similar(
    own: Counter[Gram], other: Counter[Gram], weight: dict[Gram, float], unseen: float
) -> float:
    """Mean over the orders of the clipped cosine, and the penalty for another number of words."""
    dots, own_norms, other_norms = [0.0] * ORDERS, [0.0] * ORDERS, [0.0] * ORDERS
    for gram, count in own.items():
        order = len(gram) - 1
        value = count * weight.get(gram, unseen)
        own_norms[order] += value * value
        if gram in other:
            theirs = other[gram] * weight[gram]
            dots[order] += min(value, theirs) * theirs
    for gram, count in other.items():
        other_norms[len(gram) - 1] += (count * weight[gram]) ** 2
    cosines = [
        dot / math.sqrt(a * b) if a and b else dot
        for dot, a, b in zip(dots, own_norms, other_norms, strict=True)
    ]
    # The published code counts pairs of words as the length.
    apart = _pairs(own) - _pairs(other)
    return sum(cosines) / ORDERS * math.exp(-(apart**2) / (2 * _SIGMA**2))


def _pairs(grams: Counter[Gram]) -> int:
    return sum(count for gram, count in grams.items() if len(gram) == 2)


def _grams(words: Sequence[str]) -> list[Gram]:
    """All n-grams of one to four words."""
    grams: list[Gram] = [(word,) for word in words]
    grams += pairwise(words)
    grams += zip(words, words[1:], words[2:], strict=False)
    grams += zip(words, words[1:], words[2:], words[3:], strict=False)
    return grams
