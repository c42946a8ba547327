"""The last act of the demo: what is published of a run, and the check of what is said on its change."""

from __future__ import annotations

import gzip
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ciml.cli.demo.checks import check_messages
from ciml.cli.demo.corpus import Sample, read_corpus
from ciml.cli.demo.demo import with_answers
from ciml.cli.demo.plan import LOG_NAME, OUTPUT_NAME, LogRoot
from ciml.cli.demo.result import AnswerLine
from ciml.cli.demo.review import (
    Review,
    answer_changes,
    begin_review,
    comparable_first,
    missing_servers,
    notes_on_model,
    run_ending_now,
    serve,
    shift_log,
    start_commands,
)
from ciml.data_root import DataRoot
from ciml.events.cloudevents import finished_event
from ciml.integrations.adapter import Delivery
from ciml.transforms.parse.logs import Log, parse_logs
from ciml.transforms.profiles import Profile, Profiles
from ciml.verdicts.feedback.config import load_feedback
from tests.cli.demo.demo_fixture import demo_result
from tests.corpus import CORPUS
from tests.integrations.reading import runs_of

NOW = datetime(2031, 3, 1, 0, 0, 20, tzinfo=UTC)


@pytest.fixture(scope="module")
def sample() -> Sample:
    return next(one for one in read_corpus(CORPUS) if one.facts.outcome == "failure")


def parsed(log: bytes, start_us: int | None) -> pa.Table:
    (table,) = parse_logs([Log(log, start_us)])
    assert isinstance(table, pa.Table)
    return table


def test_a_moved_log_has_the_same_samples_at_other_times(sample: Sample) -> None:
    facts = sample.facts
    log = (CORPUS / sample.log_path).read_bytes()
    assert facts.start_us is not None
    begin = datetime.fromtimestamp(facts.start_us / 1e6, UTC)
    later = NOW - timedelta(seconds=50)  # across midnight, and the end of a month
    before = parsed(log, facts.start_us)
    after = parsed(shift_log(log, begin, later), int(later.timestamp() * 1e6))
    assert before.drop_columns("time").equals(after.drop_columns("time"))
    moved = pc.subtract(after.column("time").cast(pa.int64()), before.column("time").cast(pa.int64()))
    assert set(moved.to_pylist()) == {(later - begin) // timedelta(seconds=1) * 1_000_000}


def test_a_log_with_epoch_seconds_is_moved_too() -> None:
    begin = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)
    lines = ['"Date:","26 Nov 2026 12:00:00 UTC"', '"epoch","usr"', f"{begin.timestamp() + 1.25:.3f},7.5", "7,8"]
    text = gzip.decompress(shift_log(gzip.compress("\n".join(lines).encode()), begin, NOW)).decode()
    assert text.split("\n") == [
        '"Date:","01 Mar 2031 00:00:20 UTC"', '"epoch","usr"', f"{NOW.timestamp() + 1.25:.3f},7.5", "7,8"
    ]  # fmt: skip


def test_an_event_is_a_run_of_the_change(sample: Sample) -> None:
    facts = run_ending_now(sample, {"change": "7", "head": "a" * 40}, NOW)
    body, _ = finished_event(facts)
    (run,) = runs_of("cloudevents", Delivery(body, {})).values()
    assert (run.build_uuid, run.build_name, run.outcome) == (facts.build_uuid, sample.facts.build_name, "failure")
    assert (run.project, run.change, run.patchset, run.head) == ("demo", "7", "1", "a" * 40)
    recorded = sample.facts
    assert run.end_us == int(NOW.timestamp() * 1e6)
    assert run.end_us - run.start_us == recorded.end_us - recorded.start_us
    assert facts.build_uuid != recorded.build_uuid
    assert run.labels.keys() == {"exit_code"}


def test_runs_that_can_be_compared_come_first(sample: Sample) -> None:
    job, range_ = sample.facts.build_name, (0.0, 1.0, 2.0)
    assert sample.facts.end_us is not None
    long = sample.facts.replace(start_us=sample.facts.end_us - 30_000_000)
    short = long.replace(start_us=sample.facts.end_us - 5_000_000)
    other = long.replace(build_name="other")
    profiles = Profiles({job: Profile(job, 5, range_, {})}, Profile("", 9, range_, {}))
    samples = [replace(sample, facts=facts, output_path="") for facts in (short, other, long)]
    printed = replace(sample, facts=long, output_path="out.gz")
    runs = [(one, "code") for one in (*samples, printed)]
    ordered = [pair[0] for pair in comparable_first(runs, profiles)]
    assert ordered == [printed, samples[2], samples[0], samples[1]]


def test_a_run_of_a_change_is_served_with_its_output(tmp_path: Path) -> None:
    printed, silent = (
        next(one for one in read_corpus(CORPUS) if bool(one.output_path) is has_output) for has_output in (True, False)
    )
    logs = LogRoot(tmp_path, CORPUS)
    for one, names in ((printed, [LOG_NAME, OUTPUT_NAME]), (silent, [LOG_NAME])):
        facts = run_ending_now(one, {"change": "7", "head": "a" * 40}, NOW)
        folder = serve(logs, one, facts)
        assert folder.endswith(f"/{facts.build_uuid}/")
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names
        assert parsed((tmp_path / folder / LOG_NAME).read_bytes(), facts.start_us).num_rows == one.rows
        if one is printed:
            assert logs.read(folder + OUTPUT_NAME) == gzip.decompress((CORPUS / one.output_path).read_bytes())


def line(verdict: str, *messages: str, silent: str = "") -> AnswerLine:
    return AnswerLine(
        change="1", job="unit", outcome="failure", cause="code", verdict=verdict, silent=silent, messages=list(messages)
    )


def test_a_verdict_that_the_policy_lets_pass_is_one_message_and_another_one_none() -> None:
    quoted = "it is this change\n“E 1” is new in this job (job-output․txt, line 1,812)."
    right = [line("code", quoted), line("machine", silent="base_rate"), line("unknown", silent="unknown")]
    assert check_messages(right).passed
    assert check_messages(right).detail == "1 messages on 3 changes, 1 with a line of the output"
    for wrong in (
        line("code"), line("code", "once", "twice"), line("unknown", "perhaps", silent="unknown"), line(""),
        line("", silent="no_verdict"),
    ):  # fmt: skip
        assert not check_messages([*right, wrong]).passed


def test_without_mosquitto_or_java_the_last_act_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIML_NO_JAVA", "1")
    missing = missing_servers()
    assert missing == "CIML_NO_JAVA is set"
    unused: Any = None
    review = answer_changes(unused, begin_review(unused, missing))
    result = with_answers(demo_result(answers=[]), review)
    assert result.notes[-1] == "no changes were answered: CIML_NO_JAVA is set"
    assert result.passed
    monkeypatch.setattr("shutil.which", lambda *_arguments, **_options: None)
    assert "apt-get install mosquitto" in missing_servers()


def test_an_answer_by_a_rejected_model_is_noted() -> None:
    *first, last = notes_on_model("accuracy 0.7 does not beat the base rate 0.8")
    assert last.endswith("that the gate had rejected: accuracy 0.7 does not beat the base rate 0.8")
    assert first == ["model cause posts immediately because of active_models; a new model is in shadow"]
    assert first == notes_on_model("")
    result = with_answers(demo_result(answers=[]), Review(first, answers=[line("code", "it is this change")]))
    assert result.notes == [*demo_result().notes, *first]
    assert result.checks[-1].passed


def test_the_files_of_the_last_act_are_private_where_they_hold_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ciml.cli.demo.review.start_predict", lambda *_: None)
    children = SimpleNamespace(end=lambda _: None, start=lambda *_: None, wait_for=lambda *_: None)
    demo: Any = SimpleNamespace(data=DataRoot.open(tmp_path), children=children)
    running: Any = SimpleNamespace(mosquitto="mqtt://127.0.0.1:1", gerrit="http://127.0.0.1:2")
    feedback = load_feedback(start_commands(demo, running))
    (password,) = feedback.systems[0].secret_file
    assert stat.S_IMODE(Path(feedback.file.parent, password).stat().st_mode) == 0o600
    assert not feedback.policy.dry_run
