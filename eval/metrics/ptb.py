"""Penn Treebank tokens of captions, as the COCO caption scores count them.

The published scorer (pycocoevalcap 1.2) runs Stanford's PTBTokenizer 3.4.1 in Java, lower-cases and
drops punctuation. The rules for English captions are restated here, so that scoring needs no Java;
`tests/eval/test_ptb.py` compares the two where both are installed. Rare things differ: prefixes
that keep their hyphen ("anti- "), and telephone numbers.
"""

from __future__ import annotations

import re
from functools import lru_cache

# Tokens that the published scorer drops. It looks for upper-case brackets among lower-case tokens,
# so that brackets stay.
DROPPED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))

# Letters, and letters or digits: some signs count as word characters in Python. Marks belong to
# the letter before them.
_SIGNS, _MARKS = "²³¹¼½¾⅓⅔\u2070-\u209f", "\u0300-\u036f\u0900-\u0963\u0980-\u0dff"
_L, _LD = rf"[^\W\d_{_SIGNS}]", rf"[^\W_{_SIGNS}]"
_APOS = "['\u2019`]"
_ABBREVIATED = """
jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri ala ariz calif colo
conn ct dak fla ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis wisc wyo mr
mrs ms dr drs prof profs sen sens rep reps atty attys lt col gen messrs gov govs adm rev maj sgt cpl
pvt mt capt st ste ave pres lieut hon brig cmdr comdr pfc spc supt supts det jr sr bros esq inc co
cos corp pty ptys ltd plc bancorp dept bhd assn univ intl sys invt elec natl mfg mtg tel est ext sq
bldg etc al seq vs alex wm jos cie cf treas ft blvd rd ph\\.d
"""
_WITH_CAPITAL = "az ark del ill la mass miss ore pa tex wash"
_BEFORE_NUMBER = "no nos prop fig figs art pp ca op"


def _any(words: str) -> str:
    return "|".join(sorted(words.split(), key=len, reverse=True))


_CAPITAL = "|".join(f"{word[0].upper()}{word[1:]}" for word in _WITH_CAPITAL.split())
_END, _WHOLE = r"(?!\w)", r"(?![\w'\u2019`])"
# In order of preference: what stands first is longer wherever two of them fit.
_RULES = (
    r"&(?:amp|lt|gt|quot|nbsp|#\d+);",
    r"<(?:[!?][A-Za-z-][^>]*|/?[A-Za-z][\w:.-]*(?:\s+[A-Za-z][\w:.-]*(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'"
    r"|[\w#%.-]+))?)*\s*/?\s*)>",
    r"(?:https?://|www\.)[^\s\"<>|()]+[^\s\"<>|.!?(){},-]",
    r"[\w.%+-]{1,64}@[\w-]+(?:\.[\w-]+)*",
    r"\(\d{3}\) ?\d{3}-\d{4}",
    rf"[@#]{_L}\w*",
    rf"[cC](?:\+\+|#){_END}",
    r"(?i:US|HK|A|C)\$",
    r"[A-Z]+&[A-Z]+(?![A-Z])",
    rf"(?i:(?:{_any(_ABBREVIATED)})\.){_END}",
    rf"(?:{_CAPITAL})\.{_END}",
    rf"(?i:(?:{_any(_BEFORE_NUMBER)})\.)(?=\s*\d|[,;])",
    rf"(?i:(?:non|eu|sino)-u\.s\.?)|[A-Za-z](?:\.[A-Za-z])+(?:\.-{_L}+|\.?{_END})",
    r"[A-Za-z]\.(?=\.\.|[^\w.]|$)",  # an initial
    rf"(?i:can(?=not{_WHOLE})|(?:gon|wan)(?=na{_WHOLE})|got(?=ta{_WHOLE})|(?:lem|gim)(?=me{_WHOLE}))",
    rf"(?i:{_APOS}(?:n{_APOS}|(?:s|m|d|re|ve|ll|em|til|cause|n){_END}))",
    rf"(?i:{_APOS}t(?=is{_END}|was{_END}))",
    rf"(?i:y{_APOS}(?={_L}))",
    rf"(?i:(?:ol|somethin){_APOS}{_END}|ma{_APOS}am|n?e{_APOS}er|c{_APOS}mon"
    rf"|cap{_APOS}n|nat{_APOS}l|o{_APOS}er(?:-{_L}+)*|(?:qu|[dol]){_APOS}{_L}+)",
    rf"(?i:n{_APOS}t){_END}",
    r"(?<!\w)['\u2019]\d\ds?(?!\w)",
    # a word cut before n't
    rf"{_L}+(?=[nN]{_APOS}[tT]{_END})",
    # numbers; words with letters, digits, hyphens, slashes and stops inside
    r"\d{1,4} \d{1,4}/\d{1,4}(?!\w)",
    r"[-+]?\d*(?:[.,:]\d+)+(?:-\d+)*",
    rf"{_L}+(?:[.!?]{_L}[\w]*)+",
    rf"{_LD}[{_MARKS}]*(?:{_LD}|[{_MARKS}]|[-_/\u2010\u2011\u2044](?={_LD}))*",
    r"[²³¹\u2070-\u209f]+",
    r"[-+]\d+",
    r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?![A-Za-z])",
    r"[-^x=~<>']_[-^x=~<>']",
    r"\.\.\.+|\. \. \.|…",
    r"-{2,4}(?!-)|-{5,}|[\u2013\u2014]",
    r"[!?]+|\*+|_+|#{2,}|@{2,}",
    r"''|``",
)
_TOKEN = re.compile("|".join(f"(?:{rule})" for rule in _RULES) + r"|\S")
_CLITIC = re.compile("(?i:\u2019(?:s|m|d|re|ve|ll)|n\u2019t)")
_WITH_STOP = {*_ABBREVIATED.split(), *_WITH_CAPITAL.split(), *_BEFORE_NUMBER.split()}
_SPLIT = {"cannot", "gonna", "gotta", "wanna", "lemme", "gimme"}
_WRITTEN = {
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&nbsp;": "", "…": "...",
    ". . .": "...", "\u2013": "--", "\u2014": "--", "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3",
    "⅔": "2/3", "£": "#", "€": "$", "¤": "$", "¢": "cents", '"': "''", "\u201c": "``",
    "\u201d": "''",
    "\u2018": "`", "\u2019": "'", "«": "``", "»": "''", "\u2039": "`", "\u203a": "'",
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
}  # fmt: skip
_UNSEEN = {0x200B: " ", 0xFEFF: " ", 0x00AD: None, 0x200D: None}
_BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-"})


def tokens(caption: str) -> list[str]:
    """The tokens of a caption, lower-cased, punctuation left out."""
    given = caption.split()
    plain = [_plain(word, place == len(given)) for place, word in enumerate(given, start=1)]
    if all(plain):  # most captions
        return plain
    text = " ".join(caption.translate(_UNSEEN).split())
    written = (_written(match) for match in _TOKEN.findall(text))
    return [token for token in written if token and token not in DROPPED]


def _plain(word: str, last: bool) -> str:
    """A word of letters alone as it will be written, without a comma or the caption's full stop;
    '' for all others."""
    core = word.removesuffix(",")
    if last and word[-1] == "." and len(word) > 2:
        core = word[:-1]
    lower = core.lower()
    if not (core.isascii() and core.isalpha()) or lower in _SPLIT:
        return ""
    return "" if lower in _WITH_STOP and word[-1] == "." else lower


def _written(token: str) -> str:
    if token in _WRITTEN:
        return _WRITTEN[token]
    if len(token) == 1 and (ord(token) > 0xFFFF or 0xFE00 <= ord(token) <= 0xFE0F):
        return ""  # an emoji, or the mark that makes one colourful
    if token[0] in "<>:;=" and len(token) < 5:
        token = token.translate(_BRACKETS)
    if token.startswith("..."):
        return "..."
    if token in ("---", "----"):
        return "--"
    if token[0] == "(":  # a telephone number
        token = token.translate(_BRACKETS)
    if _CLITIC.fullmatch(token):
        token = token.replace("\u2019", "'")
    return token.replace(" ", "\u00a0").lower()


@lru_cache(maxsize=1 << 17)
def tokenized(caption: str) -> str:
    """The tokens with blanks between, as the scores take them."""
    return " ".join(tokens(caption))
