"""The new line of an output: quoted as it is stored, only where passing runs are known, and looked up again."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciml.data_root import DataRoot
from ciml.runs.outputs import KeptOutput
from ciml.transforms.logs.profile import OutputProfile, printed_templates, profile_of
from ciml.transforms.logs.ranking import scan
from ciml.verdicts.evidence import evidence_of
from ciml.verdicts.evidence.line import is_quoted, new_line_of, quote
from tests.runs.compacting import run
from tests.runs.scenes import UNTRUSTED, RawStore
from tests.verdicts.evidence.stored import FAILED, STARVED, prediction, push
from tests.verdicts.evidence.subjects import profiles

PASSING = "collecting\nERROR: no cache\n9 passed\n"
ERROR = "E   ModuleNotFoundError: No module named 'attrs'"
FAILING = f"collecting\nERROR: no cache\n{ERROR}\nFAILED tests/test_io.py::test_read\n"
SAID = "“E ModuleNotFoundError: No module named 'attrs'” is new in this job (line 3 of its output)."


def kept(text: str, dropped_lines: int = 0, head_lines: int = 0) -> KeptOutput:
    return KeptOutput(text.encode(), head_lines or text.count("\n") + 1, dropped_lines, 0)


def known(*texts: str) -> OutputProfile:
    return profile_of(printed_templates(scan(text.encode())) for text in texts)


def test_the_best_new_line_is_quoted() -> None:
    assert quote(kept(FAILING), known(PASSING)) == SAID


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
    assert quote(kept(text), known(*passing)) == ""


def test_a_quotation_is_one_short_visible_row() -> None:
    hostile = f"Error: \x07\u202e{'x y ' * 200}\n"
    sentence = quote(kept(hostile), known(PASSING))
    assert sentence.isprintable()
    assert len(sentence) < 270
    assert sentence.endswith("…” is new in this job (line 1 of its output).")
    assert is_quoted(sentence, kept(hostile))


def test_the_number_is_that_of_the_whole_output() -> None:
    cut = kept(FAILING, dropped_lines=1000, head_lines=2)
    sentence = quote(cut, known(PASSING))
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


def stored(tmp_path: Path, passing_trust: bool = True) -> tuple[DataRoot, RawStore]:
    data = DataRoot.open(tmp_path / "data")
    raw = RawStore(data)
    for number in range(3):
        facts, table = run(number, outcome="success", build_name=FAILED.build_name)
        trust = {} if passing_trust else {"trust": UNTRUSTED}
        raw.add([(facts, table)], outputs={facts.run_id: PASSING.encode()}, **trust)
    return data, raw


def test_a_stored_run_is_compared_with_passing_runs_of_its_job(tmp_path: Path) -> None:
    data, raw = stored(tmp_path)
    raw.add([(FAILED, STARVED)], outputs={FAILED.run_id: FAILING.encode()})
    assert new_line_of(data, FAILED.run_id, FAILED.build_name) == SAID
    assert new_line_of(data, FAILED.run_id, "another-job") == ""
    assert new_line_of(data, "zuul~unknown~1", FAILED.build_name) == ""


def test_untrusted_runs_do_not_make_a_line_known(tmp_path: Path) -> None:
    data, raw = stored(tmp_path, passing_trust=False)
    raw.add([(FAILED, STARVED)], outputs={FAILED.run_id: FAILING.encode()})
    assert new_line_of(data, FAILED.run_id, FAILED.build_name) == ""


def test_it_is_the_first_sentence_of_the_evidence_and_a_damaged_output_costs_it_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, raw = stored(tmp_path)
    raw.add([(FAILED, STARVED)], outputs={FAILED.run_id: FAILING.encode()})
    push(data, tmp_path / "model", profiles(60))
    (path,) = [path for path in data.raw.list() if path.startswith("runs/") and FAILED.run_id in path]
    record = prediction(FAILED, path)
    said = evidence_of(data, record).observations
    assert said[0] == SAID
    assert len(said) == 3
    (text,) = [path for path in data.raw.list() if path.startswith("outputs/text/") and FAILED.run_id in path]
    data.raw.replace(text, b"damaged")
    assert evidence_of(data, record).observations == said[1:]
    assert "no line of its output" in caplog.text
