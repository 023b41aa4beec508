"""The page of a run: one file without scripts, every text escaped, every picture inside."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from mmdiff.errors import DataError
from mmdiff.eval import svg
from mmdiff.eval.results import Answered

if TYPE_CHECKING:
    from PIL import Image

    from mmdiff.eval.tasks.source import Bad

SHOWN = 24  # wrong answers with their pictures
BAD_SHOWN = 200
SIDE = 240  # of a picture in the page, in pixels
LONG = 1500  # characters of a text in the page

# Nothing on the page runs or is fetched, whatever the data say.
HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c2430; background: #fff }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.15rem; margin-top: 2rem }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem .9rem .2rem 0; text-align: left }}
td.n, th.n {{ text-align: right; font-variant-numeric: tabular-nums }}
tr {{ border-bottom: 1px solid #e4e8ee }}
.big {{ font-size: 2.2rem; font-weight: 600 }} .note {{ color: #8a5a00 }}
.bar {{ fill: #3a6ea5 }} .axis {{ stroke: #555; fill: none }} .grid {{ stroke: #e4e8ee }}
svg text {{ font: 12px system-ui, sans-serif; fill: #1c2430 }}
.card {{ border: 1px solid #e4e8ee; border-radius: 6px; padding: .7rem 1rem; margin: .7rem 0;
  display: flex; gap: 1rem; align-items: flex-start }}
.card dl {{ margin: 0; min-width: 0 }} dt {{ color: #667; font-size: .8rem }}
dd {{ margin: 0 0 .4rem; white-space: pre-wrap; overflow-wrap: anywhere }}
</style></head><body>
"""


def report(
    results: dict[str, Any],
    answered: Sequence[Answered],
    bad: Sequence[Bad],
    pictures: Callable[[int], list[Image.Image]],
) -> str:
    """The page. `pictures` gives those of an answered question, by its place in `answered`."""
    task, model = results["task"], results["model"]["name"]
    return "".join(
        [
            HEAD.format(title=escape(f"{task}: {model}")),
            f"<h1>{escape(task)}: {escape(model)}</h1>",
            _headline(results),
            _tables(results),
            _calls(answered),
            _wrong(answered, pictures),
            _bad(bad),
            _settings(results),
            "</body></html>\n",
        ]
    )


def shown_score(results: dict[str, Any], which: str = "score", error: str = "error") -> str:
    """A score with its error, on the scale that the benchmark is quoted in."""
    if results[which] is None:
        return "none"
    scale = results["scale"]
    return f"{scale * results[which]:.2f} ± {scale * results[error]:.2f}"


def _headline(results: dict[str, Any]) -> str:
    rows = [
        ("protocol", results["protocol"]),
        ("without guesses", shown_score(results, "strict_score", "strict_error")),
        ("not parsed", _percent(results["not_parsed"])),
        ("questions", str(results["questions"])),
        ("bad rows", str(results["data"]["bad_rows"])),
        ("backbone calls per answer", _number(results["nfe"]["mean"])),
        ("tokens per answer", _number(results["tokens"]["mean"])),
        ("seconds per answer", _number(results["time"]["seconds_per_question"])),
    ]
    rows += [(name, f"{value:.4g}") for name, value in results["figures"].items()]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in results["warnings"])
    return f'<p class="big">{escape(shown_score(results))}</p>{notes}{_pairs(rows)}'


def _tables(results: dict[str, Any]) -> str:
    made = []
    for name, rows in results["tables"].items():
        most = max([results["scale"] * row["score"] for row in rows] + [100.0])
        bars = [
            (row["name"], results["scale"] * row["score"], _bar_label(results, row)) for row in rows
        ]
        made.append(f"<h2>By {escape(name)}</h2>{svg.bars(bars, most)}")
    return "".join(made)


def _bar_label(results: dict[str, Any], row: dict[str, Any]) -> str:
    return f"{results['scale'] * row['score']:.1f}  of {row['num']}"


def _calls(answered: Sequence[Answered]) -> str:
    """How many answers took how many backbone calls."""
    counts = Counter(each.sample.nfe for each in answered)
    rows = [
        (f"{nfe} call{'s' * (nfe != 1)}", float(count), str(count))
        for nfe, count in sorted(counts.items())
    ]
    if not rows:
        return ""
    return f"<h2>Backbone calls</h2>{svg.bars(rows[:40], max(counts.values()))}"


def _settings(results: dict[str, Any]) -> str:
    rows = [(name, json.dumps(value)) for name, value in results["decoding"].items()]
    about = [("model", results["model"]["fingerprint"]), ("mmdiff", results["version"])]
    about.append(("data", results["data"]["path"]))
    return f"<h2>Settings</h2>{_pairs([*about, *rows])}"


def _wrong(answered: Sequence[Answered], pictures: Callable[[int], list[Image.Image]]) -> str:
    """The first wrong answers with their pictures."""
    wrong = [n for n, each in enumerate(answered) if each.judged.mark.score < 0.5]
    if not wrong:
        return ""
    cards = [_card(answered[n], pictures, n) for n in wrong[:SHOWN]]
    return f"<h2>Wrong answers: {min(SHOWN, len(wrong))} of {len(wrong)}</h2>{''.join(cards)}"


def _card(each: Answered, pictures: Callable[[int], list[Image.Image]], place: int) -> str:
    question, mark = each.judged.question, each.judged.mark
    try:
        images = "".join(_picture(image) for image in pictures(place))
    except DataError as error:  # it was there when the question was asked
        images = f'<p class="note">{escape(str(error))}</p>'
    fields = [
        ("id", question.id),
        ("question", asked_text(question.text)),
        ("right", _plain(question.answer)),
        ("said", each.judged.said),
        ("parsed", "nothing" if mark.parsed is None else _plain(mark.parsed)),
    ]
    listed = "".join(f"<dt>{name}</dt><dd>{escape(_cut(text))}</dd>" for name, text in fields)
    return f'<div class="card"><div>{images}</div><dl>{listed}</dl></div>'


def asked_text(text: Any) -> str:
    """What was asked, as a person reads it."""
    if not isinstance(text, list):
        return str(text or "")
    turns = []
    for message in text:
        content = message["content"]
        parts = content if isinstance(content, list) else [{"text": content}]
        turns.append("".join(part.get("text", "[picture]") for part in parts))
    return "\n".join(turns)


def _picture(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    small.save(file, "PNG", compress_level=1)
    code = base64.b64encode(file.getvalue()).decode()
    size = f'width="{small.width}" height="{small.height}"'
    return f'<img alt="" {size} src="data:image/png;base64,{code}">'


def _bad(bad: Sequence[Bad]) -> str:
    if not bad:
        return ""
    head = "<tr><th>place</th><th>id</th><th>kind</th><th>what</th></tr>"
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(_cut(text))}</td>" for text in vars(row).values()) + "</tr>"
        for row in bad[:BAD_SHOWN]
    )
    return f"<h2>Bad rows: {len(bad)}</h2><table>{head}{rows}</table>"


def _pairs(rows: Sequence[tuple[str, str]]) -> str:
    cells = (
        f'<tr><td>{escape(name)}</td><td class="n">{escape(_cut(text))}</td></tr>'
        for name, text in rows
    )
    return f"<table>{''.join(cells)}</table>"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= LONG else text[:LONG] + " …"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"
