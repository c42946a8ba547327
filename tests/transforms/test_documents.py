"""What the documents of events, trust and fetch say is what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ciml.events.cloudevents import PHASES, REASONS, decode_message
from ciml.events.outcomes import _WORDS, NEVER_RAN, OUTCOMES
from ciml.events.records import Message, RunFacts
from ciml.transforms.fetch.fetch import DEFERRED, REJECTED
from ciml.transforms.fetch.policy import ARTIFACT_NAMES, Credential, FetchPolicy
from ciml.transforms.ingest.decode import IGNORED
from ciml.trust import FACTS, NO_RULE, TrustPolicy, evaluate

DOCS = Path(__file__).parents[2] / "docs"


def code(name: str, language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)
    assert found
    return found[1]


def words(name: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", (DOCS / name).read_text()))


def test_events() -> None:
    text = code("formats/events.md", "json")
    (facts,) = decode_message(Message(0, text.encode())).run_facts
    assert facts.run_id == "zuul~5e70d239-95b5-466e-9798-41053314c81b~1"
    assert (facts.outcome, facts.result) == ("timeout", "TIMED_OUT")
    assert facts.labels == {"node": "n7", "nodes": "2", "voting": "true"}
    documented = words("formats/events.md")
    assert set(json.loads(text)["data"]) | REASONS | set(IGNORED) | set(NEVER_RAN.values()) | set(PHASES) <= documented
    table = dict(
        re.findall(r"^\| `([a-z]+)` \| ([A-Z_,; ]+) \|$", (DOCS / "formats/events.md").read_text(), re.MULTILINE)
    )
    assert set(table) == OUTCOMES
    assert {word: outcome for outcome, line in table.items() for word in re.findall(r"[A-Z_]+", line)} == _WORDS


def test_trust() -> None:
    policy = TrustPolicy.parse(code("trust.md", "toml"))
    good = RunFacts("zuul~a~1", "a", source="zuul", pipeline="gate", branch="stable/1")
    assert evaluate(policy, good).rule == "gated"
    documented = words("trust.md")
    built_in = TrustPolicy.load(DOCS.parent / "ciml/trust_default.toml")
    assert {*FACTS, NO_RULE, *(rule.name for rule in built_in.rules)} <= documented
    assert f'policy="{built_in.digest[:4]}…"' in (DOCS / "trust.md").read_text()


def test_fetch(tmp_path: Path) -> None:
    (tmp_path / "fetch.toml").write_text(code("fetch.md", "toml"))
    policy = FetchPolicy.load(tmp_path / "fetch.toml")
    assert (policy.max_bytes, policy.delays_s) == (FetchPolicy().max_bytes, FetchPolicy().delays_s)
    for number, block in enumerate(re.findall(r"```toml\n(.*?)```", (DOCS / "fetch.md").read_text(), re.DOTALL)):
        (tmp_path / f"{number}.toml").write_text(block)
        assert FetchPolicy.load(tmp_path / f"{number}.toml").credentials
    documented = words("fetch.md")
    assert {*DEFERRED, *REJECTED, *ARTIFACT_NAMES} <= documented
    assert set(Credential.__struct_fields__) <= documented
