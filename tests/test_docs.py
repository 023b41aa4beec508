"""Every relative link of the documentation leads somewhere."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(<?([^)>\s]+)>?[^)]*\)|(?:src|href|srcset)=\"([^\"\s]+)\"")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.S)


def links(text):
    """Targets of links and pictures that stand in the repository."""
    found = (a or b for a, b in LINK.findall(CODE.sub("", text)))
    return [link for link in found if not re.match(r"[a-z]+:|#|//", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in links(page.read_text(encoding="utf-8")):
        target = page.parent / unquote(link.partition("#")[0])
        assert target.exists(), f"{page.relative_to(ROOT)}: {link}"


def test_links_are_found():
    text = (
        'a [b](c.md#d) ![e](<f/g.png> "h") [web](https://i.j) `[no](code)` <img src="k.png"> [](#l)'
    )
    assert links(text) == ["c.md#d", "f/g.png", "k.png"]
