"""Where outputs are looked for: next to a log, at a CI system's own address, or where the input says."""

from __future__ import annotations

import pytest

from ciml.errors import RejectedInput
from ciml.http.addresses import below, parse_address
from ciml.transforms.fetch.outputs import file_name, output_addresses
from ciml.transforms.fetch.policy import OUTPUT_PATHS, FetchPolicy
from tests.transforms.fetch.fetching import FACTS

POLICY = FetchPolicy(
    hosts=("*.ci.test", "http://jenkins.ci.test:8080"), s3_prefixes=("s3://logs",), file_roots=("/srv",)
)
GITHUB = "https://api.ci.test/repos/o/n/actions"
GITLAB = "https://gitlab.ci.test/sub/api/v4/projects/7/jobs/9"
JENKINS = "http://jenkins.ci.test:8080/job/folder/job/main/12"


@pytest.mark.parametrize(
    ("log", "output"),
    [
        (f"{GITHUB}/runs/5/artifacts", f"{GITHUB}/jobs/33/logs"),
        (f"{GITLAB}/artifacts", f"{GITLAB}/trace"),
        (f"{GITLAB}/artifacts/dstat/log.csv", f"{GITLAB}/trace"),
        (f"{JENKINS}/artifact/", f"{JENKINS}/consoleText"),
    ],
)
def test_a_ci_system_has_the_output_at_its_own_address(log: str, output: str) -> None:
    facts = FACTS.replace(run_id="github~33~1", log_url=log)
    assert output_addresses(POLICY, facts) == [parse_address(output)]


@pytest.mark.parametrize(
    "folder", ["https://logs.ci.test/a/1/", "s3://logs/a/1/", "file:///srv/a/", "https://h.ci.test/artifact/"]
)
def test_a_folder_has_the_output_at_the_usual_paths(folder: str) -> None:
    facts = FACTS.replace(log_url=folder)
    assert output_addresses(POLICY, facts) == below(parse_address(folder), OUTPUT_PATHS)
    assert output_addresses(POLICY.replace(output_paths=()), facts) == []


@pytest.mark.parametrize(
    "log", ["https://logs.ci.test/dstat.csv", "s3://logs/dstat.csv", f"{GITHUB}/runs/5/artifacts?x", f"{GITHUB}/runs/5"]
)
def test_another_log_has_no_output(log: str) -> None:
    assert output_addresses(POLICY, FACTS.replace(run_id="github~33~1", log_url=log)) == []


def test_a_run_of_github_whose_id_is_no_number_has_no_output() -> None:
    """It would name another path of the API."""
    facts = FACTS.replace(run_id="github~33%2F..%2Fx~1", log_url=f"{GITHUB}/runs/5/artifacts")
    assert output_addresses(POLICY, facts) == []


def test_an_address_of_the_input_comes_first() -> None:
    facts = FACTS.replace(log_url=f"{GITLAB}/artifacts")
    assert output_addresses(POLICY, facts, output="https://h.ci.test/out") == [parse_address("https://h.ci.test/out")]
    assert output_addresses(POLICY, facts, output="https://h.ci.test/out/") == below(
        parse_address("https://h.ci.test/out/"), OUTPUT_PATHS
    )
    with pytest.raises(RejectedInput, match="address_not_allowed"):
        output_addresses(POLICY, facts, output="https://elsewhere.example/out")


@pytest.mark.parametrize(
    ("output", "paths", "addresses"),
    [
        ("https://l.ci.test/1/job-output.txt", OUTPUT_PATHS, ["job-output.txt", "job-output.txt.gz", "console.log"]),
        ("https://l.ci.test/1/job-output.txt", ("a/out.txt",), ["a/out.txt"]),
        ("https://l.ci.test/1/job-output.txt", (), []),
        ("https://l.ci.test/1/out.txt", OUTPUT_PATHS, ["out.txt"]),
        ("https://l.ci.test/1/job-output.txt?v=1", OUTPUT_PATHS, ["job-output.txt?v=1"]),
        ("https://l.ci.test/1/", OUTPUT_PATHS, OUTPUT_PATHS),
    ],
)
def test_an_event_names_the_output(output: str, paths: tuple[str, ...], addresses: list[str]) -> None:
    facts = FACTS.replace(log_url="https://l.ci.test/dstat.csv", output_url=output)
    found = output_addresses(POLICY.replace(output_paths=paths), facts)
    assert found == [parse_address(f"https://l.ci.test/1/{address}") for address in addresses]


def test_the_usual_names_in_a_bucket_without_folders() -> None:
    facts = FACTS.replace(output_url="s3://logs/console.log")
    assert [address.path for address in output_addresses(FetchPolicy(s3_prefixes=("s3://logs",)), facts)] == [
        "console.log", "job-output.txt.gz", "job-output.txt",
    ]  # fmt: skip


def test_a_retry_does_not_ask_for_an_address_without_its_secret() -> None:
    facts = FACTS.replace(log_url="https://l.ci.test/1/", output_url="https://l.ci.test/out?sig=REDACTED")
    assert output_addresses(POLICY, facts) == below(parse_address(facts.log_url), OUTPUT_PATHS)
    assert output_addresses(POLICY, facts, output="https://l.ci.test/out?sig=x") == [
        parse_address("https://l.ci.test/out?sig=x")
    ]


def test_a_signed_address_of_a_log_is_used() -> None:
    facts = FACTS.replace(log_url="https://logs.ci.test/REDACTED/")
    assert output_addresses(POLICY, facts, log="https://logs.ci.test/s3cr3t/")[0].path == f"/s3cr3t/{OUTPUT_PATHS[0]}"


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://logs.ci.test/a/1/job-output.txt.gz?x=1/y", "job-output.txt"),
        ("file:///srv/a/?out.txt", ""),
        ("s3://logs/a/console.log", "console.log"),
        (f"{JENKINS}/consoleText", "consoleText"),
        (f"{GITHUB}/jobs/33/logs", ""),
        (f"{GITLAB}/trace", ""),
        ("https://logs.ci.test/a/%3Cb%3E.txt", ""),
        (f"https://logs.ci.test/{'a' * 101}", ""),
    ],
)
def test_the_name_of_a_file_is_one_that_a_message_can_show(address: str, name: str) -> None:
    assert file_name(parse_address(address)) == name
