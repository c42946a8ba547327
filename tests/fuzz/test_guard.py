"""Whatever a stage raises for whichever inputs, each input of its batch is settled exactly once, in order."""

from __future__ import annotations

import builtins

from hypothesis import given
from hypothesis import strategies as st

from ciml.errors import RejectedInput
from ciml.events.records import Batch, Message, OffsetRange, Origin, Outcome, PendingRun, RunFacts
from ciml.limits import MAX_ERROR_CHARACTERS, MAX_TRACEBACK_BYTES
from ciml.pipelines.ingest.committer import seal_guarded, unseal
from ciml.transforms.guard import INTERNAL, attempt, guarded_messages, guarded_runs, is_input_fault
from tests.fuzz.frame import fuzz

#: Built-in exceptions that an input can cause and that are made of one text.
KINDS = sorted(
    (
        kind
        for kind in vars(builtins).values()
        if isinstance(kind, type)
        and issubclass(kind, Exception)
        and not issubclass(kind, OSError | ImportError | Warning)
        if not issubclass(kind, UnicodeError) and kind is not BaseExceptionGroup and kind is not ExceptionGroup
    ),
    key=lambda kind: kind.__name__,
)
#: Text with lone surrogates, direction marks and controls.
texts = st.text(st.characters(codec=None) | st.sampled_from("\ud800\udfff\u202e\x1b\n"), max_size=200)
names = st.text(st.sampled_from("a\ud800\u202e"), max_size=3)
errors = st.builds(lambda kind, text: kind(text), st.sampled_from(KINDS), texts)


def fail(depth: int, error: Exception) -> None:
    if depth:
        fail(depth - 1, error)
    raise error


@fuzz
@given(errors, st.integers(0, 40), st.integers(1, 3000))
def test_each_exception_is_one_bounded_printable_line(error: Exception, depth: int, times: int) -> None:
    error.args = tuple(each * times for each in error.args)
    refused = attempt("parse", fail, depth, error)
    assert isinstance(refused, RejectedInput)
    assert refused.reason == INTERNAL
    assert is_input_fault(error)
    assert refused.detail.isprintable()
    assert len(refused.detail) <= MAX_ERROR_CHARACTERS + MAX_TRACEBACK_BYTES + 60
    assert refused.detail.endswith(" fail]")
    refused.detail.encode()


batches = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40)


@fuzz
@given(batches, errors)
def test_candidates_are_each_settled_once_and_in_order(inputs: list[tuple[bool, bool]], error: Exception) -> None:
    """Some are candidates, the others settled before; some of both are poisoned. A stage eats the logs it has seen."""
    covers = OffsetRange("t", "", 0, 0, 100)
    pending_runs, before = [], []
    for number, (is_candidate, _) in enumerate(inputs):
        origin, mention = Origin("t", 0, number), RunFacts(f"zuul~{number}~1", f"{number}")
        if is_candidate:
            pending_runs.append(PendingRun(origin, "", mention, Message(number, b"x"), log=b"log"))
        else:
            before.append(Outcome("ignored", origin, "", mention))
    poisoned = {number for number, (_, bad) in enumerate(inputs) if bad}

    def stage(batch: Batch) -> Batch:
        done = []
        for each in batch.pending_runs:
            data, each.log = each.log, None
            assert data == b"log"
            if each.origin.offset in poisoned:
                raise error
            done.append(Outcome("run", each.origin, "", each.mention))
        for outcome in batch.settled:
            if outcome.origin.offset in poisoned:
                raise error
        return Batch(batch.covers, batch.messages, [], batch.settled + done)

    batch = guarded_runs("stage", stage, Batch(covers, [], pending_runs, before))
    assert batch.covers == covers
    assert batch.pending_runs == []
    in_order = [each.origin.offset for each in [*before, *pending_runs]]
    assert [each.origin.offset for each in batch.settled] == in_order
    assert {each.origin.offset for each in batch.settled if each.reason == INTERNAL} == poisoned
    assert {each.kind for each in batch.settled if each.origin.offset in poisoned} <= {"dead_letter"}


@fuzz
@given(st.lists(st.tuples(st.binary(max_size=20), names, st.booleans()), max_size=30), errors)
def test_messages_are_each_settled_once_and_can_be_written(
    inputs: list[tuple[bytes, str, bool]], error: Exception
) -> None:
    covers = OffsetRange("t", "", 0, 0, 100)
    messages = [Message(number, value, ((f"ce_{name}", value),)) for number, (value, name, _) in enumerate(inputs)]

    def stage(batch: Batch) -> Batch:
        for message in batch.messages:
            if inputs[message.offset][2]:
                raise error
        return Batch(batch.covers, settled=[Outcome("ignored", Origin("t", 0, each.offset)) for each in batch.messages])

    batch = unseal(seal_guarded(guarded_messages("stage", stage, Batch(covers, messages))))
    assert batch.covers == covers
    assert [each.origin.offset for each in batch.settled] == list(range(len(inputs)))
    assert [each.reason == INTERNAL for each in batch.settled] == [bad for _, _, bad in inputs]
