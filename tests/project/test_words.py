"""The project speaks of itself alone, and its documents name only what is there."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tracked(*globs: str) -> list[Path]:
    out = subprocess.run(["git", "ls-files", "-z", *globs], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in out.split("\0") if name and (path := ROOT / name).is_file()]


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    documents = tracked("*.md")
    for document in documents:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text()):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert documents
    assert broken == []


def test_modules_stay_small() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in tracked("*.py")}
    assert sizes
    assert {name: lines for name, lines in sizes.items() if lines > 500} == {}
