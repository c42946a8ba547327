"""What the documents of events, trust and fetch say is what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ciml.events.cloudevents import PHASES, REASONS, decode_message
from ciml.events.outcomes import _WORDS, NEVER_RAN, OUTCOMES
from ciml.events.records import Message, RunFacts
from ciml.pipelines.backfill.load_report import MISSING
from ciml.transforms.fetch.credentials import Credential
from ciml.transforms.fetch.fetch import DEFERRED, REJECTED
from ciml.transforms.fetch.policy import ARTIFACT_NAMES, FetchPolicy
from ciml.transforms.ingest.decode import IGNORED
from ciml.transforms.results.columns import SYNONYMS
from ciml.transforms.results.convert import REASONS as ROW_REASONS
from ciml.transforms.results.values import NO_VALUE
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


TEXT = (DOCS / "load.md").read_text()


def section(title: str) -> str:
    return re.split(r"^##+ ", TEXT.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_every_name_of_a_column_is_listed() -> None:
    words = set(re.findall(r"\w+", section("Columns")))
    assert [name for names in SYNONYMS.values() for name in names if name not in words] == []


def test_every_reason_is_explained() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", section("Bad rows"), re.MULTILINE)) == {*ROW_REASONS, *MISSING}


def test_every_empty_text_is_listed() -> None:
    assert set(re.findall(r"`([^`]+)`", section("The table").partition("The texts ")[2].partition(" of a CSV")[0])) == (
        NO_VALUE - {""}
    )
