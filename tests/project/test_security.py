"""SECURITY.md names the documents and the tests that show each of its claims: they are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
_ANCHOR = re.compile(r"[^\w\- ]")


def headings(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {_ANCHOR.sub("", each.lower()).replace(" ", "-") for each in found}


def test_each_boundary_names_a_document_and_but_for_the_engines_a_test() -> None:
    boundaries = re.split(r"^### ", TEXT.partition("## Threat model")[2], flags=re.MULTILINE)[1:]
    assert len(boundaries) >= 9
    for boundary in boundaries:
        name = boundary.splitlines()[0]
        assert re.search(r"\]\(docs/", boundary), name
        assert "`tests/" in boundary or name.startswith("Engines"), name


def test_it_is_short_and_what_it_names_is_there() -> None:
    paths = re.findall(r"`((?:tests|docs|ciml)/[^`]+)`", TEXT)
    assert [path for path in paths if not (ROOT / path).is_file()] == []
    links = [target.partition("#") for target in re.findall(r"\]\((docs/[^)]+)\)", TEXT)]
    assert links
    assert [path for path, _, _ in links if not (ROOT / path).is_file()] == []
    assert [(path, anchor) for path, _, anchor in links if anchor and anchor not in headings(ROOT / path)] == []
    assert len(TEXT.splitlines()) <= 120
    assert "@" not in TEXT  # no address that no one reads
