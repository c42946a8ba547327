"""The new line of an output: quoted as it is stored, only where passing runs are known, and looked up again."""

from __future__ import annotations

import pytest

from ciml.runs.outputs import KeptOutput
from ciml.transforms.logs.profile import OutputProfile, printed_templates, profile_of
from ciml.transforms.logs.ranking import scan
from ciml.verdicts.evidence.output import is_quoted, quote

PASSING = "collecting\nERROR: no cache\n9 passed\n"
ERROR = "E   ModuleNotFoundError: No module named 'attrs'"
FAILING = f"collecting\nERROR: no cache\n{ERROR}\nFAILED tests/test_io.py::test_read\n"
SAID = "“E ModuleNotFoundError: No module named 'attrs'” is new in this job (line 3 of its output)."


def kept(text: str, dropped_lines: int = 0, head_lines: int = 0) -> KeptOutput:
    return KeptOutput(text.encode(), head_lines or text.count("\n") + 1, dropped_lines, 0)


def known(*texts: str) -> OutputProfile:
    return profile_of(printed_templates(scan(text.encode())) for text in texts)


def said(output: KeptOutput, *passing: str, file: str = "") -> str:
    """The sentence on an output; "" without one."""
    line = quote(output, scan(output.data), known(*passing), file)
    return "" if line is None else line.sentence


def test_the_best_new_line_is_quoted() -> None:
    line = quote(kept(FAILING), scan(FAILING.encode()), known(PASSING))
    assert line is not None
    assert line.sentence == SAID
    assert line.template == "ModuleNotFoundError: No module named 'attrs'"


def test_a_line_that_the_stored_text_does_not_have_is_not_quoted() -> None:
    assert quote(kept("another text\n" * 9), scan(FAILING.encode()), known(PASSING)) is None


def test_the_file_is_named_where_it_is_known() -> None:
    sentence = said(kept(FAILING), PASSING, file="job-output.txt")
    assert sentence == SAID.replace("(line 3 of its output)", "(job-output.txt, line 3)")
    assert is_quoted(sentence, kept(FAILING))


@pytest.mark.parametrize(
    ("heading", "step"),
    [
        ("##[group]Run pip install -e .\n##[group]shell: bash\n##[endgroup]", "Run pip install -e ."),
        ("PLAY [all] ****\nTASK [tests : Run [all] tests] *****", "tests : Run [all] tests"),
        ("section_end:prepare section_start:step_script Executing it", "step_script"),
        ("[Pipeline] { (Build and test)", "Build and test"),
        ("##[group]shell: bash", ""),
        (f"TASK [{'x' * 100}]", f"{'x' * 79}…"),
    ],
)
def test_the_step_is_named_where_the_output_names_it(heading: str, step: str) -> None:
    output = kept(f"TASK [early]\n{heading}\n{FAILING}\nTASK [later]\n" if step else f"{heading}\n{FAILING}")
    sentence = said(output, PASSING, file="out.txt")
    assert sentence.endswith(f", step “{step}”)." if step else ").")
    assert ("step" in sentence) == bool(step)
    assert is_quoted(sentence, output)
    assert not step or not is_quoted(sentence.replace("step “", "step “y"), output)


@pytest.mark.parametrize(
    ("text", "passing"),
    [
        (FAILING, ()),  # no passing run: nothing is known to be new
        (FAILING, (FAILING,)),
        ("collecting\nanother note\n", (PASSING,)),  # new, but no word of failure
        ("", (PASSING,)),
    ],
)
def test_nothing_is_quoted_where_nothing_is_known_to_be_new(text: str, passing: tuple[str, ...]) -> None:
    assert said(kept(text), *passing) == ""


def test_a_quotation_is_one_short_visible_row() -> None:
    hostile = f"Error: \x07\u202e{'x y ' * 200}\n"
    sentence = said(kept(hostile), PASSING)
    assert sentence.isprintable()
    assert len(sentence) < 270
    assert sentence.endswith("…” is new in this job (line 1 of its output).")
    assert is_quoted(sentence, kept(hostile))


def test_the_number_is_that_of_the_whole_output() -> None:
    cut = kept(FAILING, dropped_lines=1000, head_lines=2)
    sentence = said(cut, PASSING)
    assert sentence == SAID.replace("line 3", "line 1,003")
    assert is_quoted(sentence, cut)


@pytest.mark.parametrize(
    "sentence",
    [
        SAID.replace("line 3", "line 2"),
        SAID.replace("line 3", "line 99"),
        SAID.replace("line 3", "line 0"),
        SAID.replace("attrs", "yaml"),
        "It took 3 s.",
    ],
)
def test_a_sentence_that_is_not_in_the_output_is_not_used(sentence: str) -> None:
    assert is_quoted(SAID, kept(FAILING))
    assert not is_quoted(sentence, kept(FAILING))
