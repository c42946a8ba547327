"""Messages: what they say, how long they are, and that hostile text in them is only text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciml.events.records import RunFacts
from ciml.integrations.markup import cut, inert
from ciml.integrations.review import ChangeRef, Format
from ciml.transforms.logs.failed_tests import OtherChanges
from ciml.verdicts.evidence.output import (
    QuotedLine,
    RunTest,
    failed_tests_sentence,
    note_sentence,
    shortened,
    spread_sentence,
)
from ciml.verdicts.feedback.config import Policy
from ciml.verdicts.feedback.judgement import Item, decide_feedback
from ciml.verdicts.feedback.text import Finding, Stamp, Style, marker_of, render
from ciml.verdicts.signatures.failures import FailedRuns
from ciml.verdicts.signatures.notes import Note
from tests.tier import tries
from tests.verdicts.feedback.hostile import CORPUS, faults, rendered
from tests.verdicts.feedback.reviews import NOW_S, feedback, prediction

FORMATS: tuple[Format, ...] = ("github", "gerrit", "gitlab")
PICTURE = "https://ci.example.org/p/evidence/a%20b.svg"
CHANGE = ChangeRef("org/project", "12", "3", "a1" * 20)
OUTPUT = "https://logs.example.org/1/job-output.txt"
SEEN = ("From minute 3 to 9 steal was 41 %; passing runs have 0 to 2 %.", "It was killed in minute 9.")


def item(record: dict[str, Any] | None = None, **run: Any) -> Item:
    judgement = decide_feedback(record or prediction(**run), feedback(), (), int(NOW_S * 1e6))
    assert judgement.item is not None, judgement.silence
    return judgement.item.replace(right=34, settled=40, passed=26, reruns=31)


def message(*findings: Finding, markup: Format = "github", most_bytes: int = 4000, jobs: int = 5) -> str:
    style = Style(markup, most_bytes, markup != "gerrit", Policy(max_jobs=jobs))
    return render(findings, marker_of("review", "org/project", "12"), CHANGE, style).body


def test_one_verdict_is_said_in_one_line_with_evidence_and_advice() -> None:
    assert message(Finding(item(), SEEN, PICTURE)) == (
        "**“unit” failed, probably because of the machine**.\n"
        "\n"
        "The model's probability is 91 %; base rate 37 % of 214 failed runs of this job. "
        "Checked by reruns or reviewers: 34 of the last 40 such verdicts were right.\n"
        "\n"
        "- From minute 3 to 9 steal was 41 %; passing runs have 0 to 2 %.\n"
        "- It was killed in minute 9.\n"
        f"- [Picture of its telemetry]({PICTURE})\n"
        "\n"
        "Earlier runs, also of other changes, that ciml put down "
        "to the machine: 31 ran again unchanged, and 26 of these passed.\n"
        "\n"
        "ciml estimated this from the runs of patch set 3. Wrong: react with 👎, or reply "
        "“not helpful”. No messages on this change: put “ciml-quiet” into its title.\n"
        "\n"
        "<!-- ciml:fb48c4c559d99fad:e20513f4:machine:e1e6bb05c642 -->"
    )  # fmt: skip


def test_a_verdict_without_telemetry_says_so() -> None:
    body = message(Finding(item(verdict={"without_telemetry": True}), SEEN))
    assert "is 91 % by its outcome and its output, without telemetry; base rate 37 % of 214 failed runs" in body


@pytest.mark.parametrize(
    ("base_rate", "text"), [(0.0, "0 %"), (0.004, "under 1 %"), (0.374, "37 %"), (0.996, "99 %"), (1.0, "100 %")]
)
def test_a_base_rate_of_all_runs_or_of_none_is_printed_as_such(base_rate: float, text: str) -> None:
    prediction = item().prediction
    verdict = prediction["verdict"] | {"base_rate": {"machine": base_rate}}
    sure = item().replace(probability=1.0, prediction=prediction | {"verdict": verdict})
    body = message(Finding(sure))
    assert f"probability is 99 %; base rate {text} of 214 failed runs" in body


def test_several_verdicts_are_one_message_with_a_line_each() -> None:
    code = {"cause": "code", "probability": 1.0, "retry": "no", "group": ""}
    lint = item(prediction(2, verdict=code, build_name="lint")).replace(right=1, settled=1, passed=2, reruns=12)
    body = message(Finding(item(), SEEN), Finding(lint), markup="gerrit").split("\n")
    assert body[:8] == [
        "2 jobs failed: 1 probably because of this change, 1 probably because of the machine.",
        "",
        "- “lint”: this change (99 %; base rate 63 % of 214 failed runs). Checked by reruns or reviewers: 1 of the "
        "last 1 such verdicts were right.",
        "- “unit”: the machine (91 %; base rate 37 % of 214 failed runs of this job). Checked by reruns or "
        f"reviewers: 34 of the last 40 such verdicts were right. {SEEN[0]}",
        "",
        "Earlier runs, also of other changes, that ciml put down "
        "to their change: 12 ran again unchanged, and 2 of these passed.",
        "Earlier runs, also of other changes, that ciml put down "
        "to the machine: 31 ran again unchanged, and 26 of these passed.",
        "",
    ]


NAMED = Note("5d5efe4cbf26", "ada", "mirror down", "machine", "recheck after 14:00")
SAID = "“ada” named the cause of this failure “mirror down”: the machine; “recheck after 14:00”."


def test_a_cause_that_an_operator_named_is_stated_as_theirs_and_counts_more() -> None:
    code = item(verdict={"cause": "code", "probability": 0.7, "retry": "no"})
    finding = Finding(code, (SAID, *SEEN), note=NAMED)
    body = message(finding, markup="gerrit").split("\n")
    assert body[:6] == [
        "“unit” failed; “ada” named the cause: the machine.",
        "",
        "The model's own verdict is this change. Its probability is 70 %; base rate 63 % of 214 failed runs of this "
        "job. Checked by reruns or reviewers: 34 of the last 40 such verdicts were right.",
        "",
        f"- {SAID}",
        f"- {SEEN[0]}",
    ]
    assert ":machine:" in body[-1]  # a reaction confirms or rejects the stated cause
    several = message(finding, Finding(item(), SEEN), markup="gerrit").split("\n")
    assert several[0] == "2 jobs failed: 1 probably because of the machine, 1 for a cause that was named by hand."
    assert several[2].endswith(f"{SAID} {SEEN[0]}")
    assert "“ada” named the cause: the machine; the model's own verdict is this change (70 %; base" in several[2]


def test_a_note_without_a_cause_is_the_first_observation_and_leaves_the_verdict() -> None:
    said = "“ada” noted on this failure: “see 12”."
    body = message(Finding(item(), (said, *SEEN * 3), note=NAMED.replace(cause="", name="", text="see 12")))
    assert body.startswith("**“unit” failed, probably because of the machine**.")
    assert body.count("\n- ") == 5  # the note, and four others


def unsure(record: dict[str, Any] | None = None) -> Item:
    verdict = {"cause": "unknown", "set": ["code", "machine"]}
    judged = decide_feedback(
        record or prediction(verdict=verdict), feedback(), (), int(NOW_S * 1e6), is_noted=lambda run_id: True
    )
    assert judged.item is not None
    return judged.item


def test_a_note_without_a_verdict_is_stated_as_its_author_s_alone() -> None:
    body = message(Finding(unsure(), (SAID, SEEN[0]), note=NAMED), markup="gerrit").split("\n")
    assert body[:8] == [
        "“unit” failed; “ada” named the cause: the machine.",
        "",
        "The model gives no verdict: it is not certain enough of a cause.",
        "",
        f"- {SAID}",
        f"- {SEEN[0]}",
        "",
        "ciml found this note by the runs of patch set 3. Wrong: reply “not helpful”. No messages on this change: put "
        "“ciml-quiet” into its title.",
    ]
    assert ":machine:" in body[-1]
    plain = NAMED.replace(cause="", name="", text="see 12")
    said = "“ada” noted on this failure: “see 12”."
    assert message(Finding(unsure(), (said,), note=plain), markup="gerrit").startswith(
        "“unit” failed; “ada” has a note on it.\n"
    )
    lint = unsure(prediction(2, verdict={"cause": "unknown", "set": []}, build_name="lint"))
    several = message(Finding(item()), Finding(lint, (said,), note=plain), markup="gerrit").split("\n")
    assert several[0] == "2 jobs failed: 1 probably because of the machine, 1 with a note by hand."
    assert several[3] == f"- “lint”: “ada” has a note on it; the model gives no verdict. {said}"
    assert several[-1].split(":")[3] == "machine+unknown"


def test_the_output_is_linked_beside_its_observations() -> None:
    url = "https://logs.example.org/1/job-output.txt"
    assert f"\n- [Its output]({url})\n" in message(Finding(item(), SEEN, PICTURE, url))
    assert f"\n- Its output: {url}\n" in message(Finding(item(), SEEN, "", url), markup="gerrit")
    both = message(Finding(item(), SEEN, PICTURE, url), Finding(item(prediction(2, build_name="lint"))))
    assert f"\n- [Output]({url}) of “unit”\n" in both
    assert url not in message(Finding(item(), ("é" * 2000,), PICTURE, url), most_bytes=1000)


def test_the_causes_of_a_message_are_those_of_its_stamp() -> None:
    style = Style("github", 4000, True, Policy())
    both = [Finding(item()), Finding(item(prediction(2, build_name="b")), note=NAMED.replace(cause="code"))]
    rendered = render(both, marker_of("review", "p", "12"), CHANGE, style)
    assert Stamp.of(rendered).causes == "code+machine"
    assert str(Stamp.of(rendered)) == rendered.stamp


def test_nothing_is_said_of_a_retry_before_enough_runs_ran_again() -> None:
    few = item().replace(passed=9, reruns=9)
    for text in (message(Finding(few)), message(Finding(item().replace(settled=0, right=0, passed=0, reruns=0)))):
        assert "retry" not in text
        assert "again" not in text
    assert "No rerun or reviewer has checked such a verdict yet." in text
    assert "9 of these passed" in message(Finding(few.replace(passed=9, reruns=10)))


def test_the_stamp_names_patch_set_and_verdicts_and_their_order_does_not_change_a_byte() -> None:
    marker = marker_of("review", "org/project", "12")
    body = message(Finding(item()))
    stamp = Stamp.find(body, marker)
    assert stamp is not None
    assert (stamp.patchset, stamp.causes) == ("e20513f4", "machine")
    assert Stamp.find(body, marker_of("review", "org/project", "13")) is None
    assert Stamp.find("thanks", marker) is None
    three = [Finding(item(prediction(number, build_name=f"job-{number}"))) for number in range(3)]
    assert message(*three) == message(*reversed(three))


@pytest.mark.parametrize("markup", FORMATS)
@pytest.mark.parametrize("most_bytes", [1000, 1500, 4000])
def test_a_message_that_is_too_long_loses_whole_lines(markup: Format, most_bytes: int) -> None:
    long = "é" * 2000
    findings = [Finding(item(prediction(number, build_name=f"{number} {long}")), (long,) * 3) for number in range(40)]
    body = message(*findings, markup=markup, most_bytes=most_bytes, jobs=40)
    assert len(body.encode()) <= most_bytes
    assert body.startswith(("**40 jobs failed: ", "40 jobs failed: "))
    assert "more\n" in body
    assert not list(faults(body, markup))


#: Fields of texts; the source names the system, and is one of the configuration's.
OTHERS = ("start_us", "end_us", "labels", "subjects", "phase", "outcome", "source")
TEXTS = [name for name in RunFacts.__struct_fields__ if name not in OTHERS]


def everywhere(text: str) -> list[Finding]:
    """Findings with a text in each field in turn: of the facts, the prediction, its verdict, its evidence."""
    plain = prediction()
    run, verdict = plain["run"], plain["verdict"]
    labels = {text: text, "size": text}
    runs = [run | {field: text} for field in TEXTS] + [run | {"labels": labels}]
    verdicts = [verdict | {field: text} for field in ("group", "retry")]
    verdicts += [verdict | {field: {text: 0.5, "machine": 0.5}} for field in ("base_rate", "probabilities")]
    found = [plain | {"run": changed} for changed in runs]
    found += [plain | {field: text} for field in ("model", "class", "run_id", "id")]
    found += [plain | {"probabilities": {text: 1.0}}]
    found += [plain | {"verdict": changed} for changed in (*verdicts, verdict | {"set": [text]})]
    judged = [decide_feedback(record, feedback(), (), int(NOW_S * 1e6)).item for record in found]
    findings = [Finding(one, (f"From minute 3 {text} was 41 %.", text), PICTURE) for one in judged if one is not None]
    return findings + [Finding(item(), (sentence,), PICTURE, OUTPUT, note) for sentence, note in of_output(text)]


def of_output(text: str) -> Iterator[tuple[str, Note | None]]:
    """Sentences on an output with a text in each field in turn, and the note of those that have one."""
    visible = shortened(text)
    for fields in ({"text": visible}, {"file": visible}, {"step": visible}):
        yield QuotedLine(**{"text": "E", "number": 812, **fields}).sentence, None
    yield failed_tests_sentence([RunTest(text, text, 3, OtherChanges(2, 1)), RunTest("", text, 4)]), None
    failure = FailedRuns(
        *("3f2a", text, text, False, text, 3, text, 4, 4, 3, 3, "machine", 0, 0), (text,), (text,), {text: 4}, {}, {},
        None, "",
    )  # fmt: skip
    yield spread_sentence(failure, 3), None
    yield spread_sentence(replace(failure, ends=True, changes=1), 1), None
    for fields in ({"author": text}, {"name": text}, {"text": text}):
        note = NAMED.replace(**fields)
        yield note_sentence(note), note
        yield note_sentence(note.replace(cause="")), note.replace(cause="")


@pytest.mark.parametrize("number", range(len(CORPUS)))
def test_hostile_text_in_any_field_is_only_text(number: int) -> None:
    """Each field has each text in one format, and some of the texts in each format."""
    findings = everywhere(CORPUS[number])
    assert len(findings) >= 20 or not CORPUS[number]
    harmless = Finding(item(), SEEN)
    bodies = set[tuple[str, Format]]()
    for place, one in enumerate(findings, number):
        markup = FORMATS[place % len(FORMATS)]
        style = Style(markup, 4000, markup != "gerrit", Policy())
        made = render([one], marker_of("review", one.item.project, one.item.change), one.item.ref, style)
        assert len(made.body.encode()) <= 4000
        assert "\n" not in made.title
        assert len(made.title.encode()) <= 200
        several = render([one, harmless], marker_of("a", "b", "c"), one.item.ref, style)
        bodies |= {(made.body, markup), (several.body, markup)}
    for body, markup in bodies:
        assert not list(faults(body, markup, (PICTURE, OUTPUT))), body


@given(st.text(max_size=60), st.integers(4, 90))
@settings(max_examples=tries(300))
def test_any_text_is_one_inert_line_of_bounded_size(text: str, most: int) -> None:
    line = inert(text, most)
    assert 0 < len(line.encode()) <= most
    assert line.replace("\u202f", "").isprintable()
    assert not list(faults(message(Finding(item(build_name=text or "x"), (text, text))), "github"))


@given(st.text(max_size=30))
def test_what_is_inert_stays_as_it_is(text: str) -> None:
    once = inert(text, 1000)
    assert inert(once, 1000) == once


def test_plain_names_and_sentences_are_not_changed() -> None:
    plain = ("unit-tests", "org/project", "tox py3.11 (x86_64)", "load was 12.5, passing runs have 0 to 3", "ünïcode")
    for text in (*plain, SEEN[0]):
        assert inert(text, 200) == text
    assert [cut("ééé", 6), cut("éééé", 6), cut("ab", 1)] == ["ééé", "é…", "…"[:1]]  # between characters


def test_the_judge_finds_what_it_should() -> None:
    """The corpus' own oracle is red for text that is not inert."""
    good = message(Finding(item()))
    assert not list(faults(good, "github"))
    for bad in (
        "http://evil.example", "@all", "#1", "<b>x</b>", "deadbeef", "[x](http://evil.example)", ":tada:", "/close",
        "\n/close", "\nrecheck", "`x`", "\u202e", "GH-1", "evil.example", "&#64;all",
    ):  # fmt: skip
        assert list(faults(good.replace("unit", bad), "github")), bad
    assert rendered("see www.evil.example").links == ["http://www.evil.example"]


@pytest.mark.parametrize("can_react", [True, False])
def test_it_asks_for_a_reaction_only_where_one_is_possible(can_react: bool) -> None:
    one = everywhere("unit")[0]
    body = render([one], "ciml:0", one.item.ref, Style("github", 4000, can_react, Policy())).body
    assert ("👎" in body) == can_react
    assert "not helpful" in body
