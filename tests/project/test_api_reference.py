"""The reference of the Python API is that of the docstrings, and names everything that is public."""

from __future__ import annotations

import ciml
from tests.project import api_reference


def test_the_page_is_up_to_date() -> None:
    written = api_reference.PAGE.read_text()
    assert written == api_reference.render(), "run: python -m tests.project.api_reference"


def test_every_public_name_is_on_the_page() -> None:
    text = api_reference.PAGE.read_text()
    assert [name for name in ciml.__all__ if name != "__version__" and f"`ciml.{name}" not in text] == []


def test_everything_public_says_what_it_is() -> None:
    assert [name for name, value in api_reference.documented() if not (value.__doc__ or "").strip()] == []
