"""The texts for the other side are valid in the other side's own format, and fit what ciml reads."""

from __future__ import annotations

import configparser
import re
import subprocess
from typing import Any

import pytest
import yaml

from ciml.cli.main import cli
from ciml.errors import CimlError
from ciml.events.run_id import RunId
from ciml.integrations.config import WebhookSettings
from ciml.integrations.connect import DOOL, GerritOptions, Paste, filled_in, places, posted_to
from ciml.recorder.ci_environment import run_of
from ciml.recorder.sampler import _PLUGINS
from ciml.recorder.spool.recording import LOG
from ciml.transforms.fetch.policy import ARTIFACT_NAMES, LOG_PATHS, FetchPolicy
from tests.integrations.connect.connecting import ALL
from tests.integrations.reading import runs_of
from tests.integrations.samples import delivery, zuul_build, zuul_message

PASTES = [(name, number) for name, one in ALL.items() for number in range(len(one.pastes))]


def pasted(name: str, form: str) -> list[Any]:
    """The YAML documents of a system's texts, in order."""
    return [yaml.safe_load(paste.text) for paste in ALL[name].pastes if paste.form == form]


@pytest.mark.parametrize(("name", "number"), PASTES)
def test_every_text_is_complete_and_valid(name: str, number: int) -> None:
    paste: Paste = ALL[name].pastes[number]
    assert not re.search(r"@[A-Z_]+@", paste.text)
    if paste.form == "yaml":
        assert yaml.safe_load(paste.text)
    elif paste.form == "ini":
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(re.sub(r"(?m)^\t", "", paste.text))
        assert parser.sections()
    elif paste.form == "shell":
        assert subprocess.run(["bash", "-n"], input=paste.text, text=True, capture_output=True).stderr == ""


@pytest.mark.parametrize("name", ALL)
def test_every_command_of_ciml_in_a_text_exists(name: str) -> None:
    texts = " ".join((*(paste.text for paste in ALL[name].pastes), *ALL[name].also))
    context = cli.make_context("ciml", ["--help"], resilient_parsing=True)
    for line in re.findall(r"ciml ([a-z]+(?: --?[a-z-]+ \S+)*) (?:--|$)", texts, re.M):
        verb, *rest = line.split()
        command = cli.get_command(context, verb)
        assert command is not None, verb
        known = {option for param in command.params for option in param.opts}
        assert {word for word in rest if word.startswith("--")} <= known


def test_a_github_workflow_names_its_artifact_as_the_fetch_policy_expects() -> None:
    (workflow,) = pasted("github", "yaml")
    upload = workflow["jobs"]["test"]["steps"][-1]
    assert upload["if"] == "always()"
    assert upload["with"]["name"].replace("${{ job.check_run_id }}", "{id}") in ARTIFACT_NAMES
    (workflow,) = pasted("github-server", "yaml")
    name = workflow["jobs"]["test"]["steps"][-1]["with"]["name"]
    assert name.replace("${{ github.job }}", "{job}") in ARTIFACT_NAMES


def test_a_github_job_that_sends_is_no_second_run() -> None:
    (workflow,) = pasted("github", "yaml")
    step = next(each for each in workflow["jobs"]["test"]["steps"] if "ciml record" in each.get("run", ""))
    assert step["env"] == {"CIML_RUN_ID": "${{ job.check_run_id }}"}
    (workflow,) = pasted("github-server", "yaml")  # which has no such expression
    step = next(each for each in workflow["jobs"]["test"]["steps"] if "ciml record" in each.get("run", ""))
    assert step["run"] == "ciml record --kafka '' --log-dir telemetry -- make test"
    assert "env" not in step


def test_a_zuul_pipeline_reports_what_the_receiver_reads() -> None:
    one = ALL["zuul"]
    pipelines = [each["pipeline"] for each in pasted("zuul", "yaml")[0]]
    assert [each["name"] for each in pipelines] == ["check", "gate", "post"]
    for pipeline in pipelines:
        for action in ("success", "failure", "dequeue"):
            report = pipeline[action]["mqtt"]
            assert report["qos"] == 1
            assert report["include-returned-data"] is True
            values = dict.fromkeys(re.findall(r"{(\w+)}", report["topic"]), "x")
            assert report["topic"].format(**values).startswith(one.source["topics"][0].removesuffix("#"))


def test_zuuls_playbooks_record_what_ciml_parses_and_name_it() -> None:
    _, pre, post, job = pasted("zuul", "yaml")
    assert [each.removeprefix("--") for each in DOOL.split()][: len(_PLUGINS)] == list(_PLUGINS)
    assert DOOL in pre[0]["tasks"][0]["shell"]
    returned = post[1]["tasks"][0]["zuul_return"]["data"]["zuul"]
    fetched = post[0]["tasks"][1]["fetch"]
    assert fetched["src"].rsplit("/", 1)[1] == returned["artifacts"][0]["url"].rsplit("/", 1)[1]
    assert fetched["src"].rsplit("/", 1)[1] in LOG_PATHS
    artifact = {**returned["artifacts"][0], "url": "https://logs.example.org/a/dstat.csv"}
    (run,) = runs_of("zuul", delivery(zuul_message(zuul_build(artifacts=[artifact])))).values()
    assert run.log_url == artifact["url"]
    assert job[0]["job"]["post-run"] == ["playbooks/ciml/post.yaml"]
    assert job[0]["job"]["pre-run"] == ["playbooks/ciml/pre.yaml"]


def test_a_brokers_password_is_named_and_not_shown() -> None:
    shell = next(paste for paste in ALL["zuul"].pastes if paste.form == "shell")
    assert '"$(cat secrets/zuul)"' in shell.text
    assert "topic read zuul/#" in shell.text
    assert not any(paste.form == "shell" for paste in ALL["zuul-plain"].pastes)  # it has a password already


def test_zuul_speaks_tls_where_the_broker_does() -> None:
    confs = [next(paste.text for paste in ALL[name].pastes if paste.form == "ini") for name in ("zuul", "zuul-plain")]
    assert ["ca_certs=" in conf for conf in confs] == [True, False]
    assert ["port=8883" in confs[0], "port=1884" in confs[1]] == [True, True]


def test_keys_of_gerrit_that_are_there_are_not_made_again() -> None:
    made = ALL["gerrit"].pastes[0].text
    given = GerritOptions(ssh="ssh://c@r.example.org:2222", key_file="/k", known_hosts_file="/h").connection()
    assert "ssh-keygen" in made
    assert "ssh-keyscan -p 29418 review.example.org" in made
    assert given.pastes[0].text.startswith("ssh -p 2222 ADMIN@r.example.org gerrit create-account")
    assert given.pastes[0].text.rstrip().endswith("- c < /k.pub")


def test_the_rights_that_are_asked_for_are_those_that_the_clients_need() -> None:
    app, token = ALL["github-app"].pastes[-1].text, ALL["github-feedback"].pastes[-1].text
    granted = re.compile(r"  (\w+(?: \w+)*): (Read.*)")
    assert granted.findall(app) == [("Checks", "Read and write"), ("Pull requests", "Read-only")]
    assert granted.findall(token) == [("Pull requests", "Read and write")]
    assert "App 12345" in app
    assert re.search(r"Role +Reporter\n +Scopes +api\n", ALL["gitlab-feedback"].pastes[-1].text)
    gerrit = ALL["gerrit-feedback"].pastes[-1].text
    assert "ssh -p 29419 ADMIN@review.example.org gerrit set-account --generate-http-password ciml\n" in gerrit
    assert "needs no right to a label" in ALL["gerrit-feedback"].also[-1]


def test_tektons_log_is_where_its_step_stores_it() -> None:
    events, run = pasted("tekton", "yaml")
    assert events["data"] == {"formats": "tektonv1", "sink": "https://ci.example.org/hooks/tekton"}
    step = run["spec"]["pipelineSpec"]["tasks"][0]["taskSpec"]["steps"][0]
    variables = {each["name"]: each["value"] for each in step["env"]}
    known = run_of({**variables, "CIML_RUN_ID": "9f"})
    stored = f"{variables['CIML_LOG_DIR']}/{known.job}/{RunId(known.source, known.native_id).encode()}/{LOG}.gz"
    assert run["metadata"]["annotations"]["ciml.dev/log-url"].replace("{uid}", "9f") == stored


def test_jenkins_archives_a_log_that_the_folder_of_artifacts_leads_to() -> None:
    (archived,) = re.findall(r"archiveArtifacts '(.*)'", ALL["jenkins"].pastes[1].text)
    assert archived in LOG_PATHS


@pytest.mark.parametrize("name", ["github", "gitlab", "tekton", "jenkins"])
def test_where_a_proxy_forwards_webhooks_to_is_said(name: str) -> None:
    said = " ".join((*(paste.text for paste in ALL[name].pastes), *ALL[name].also))
    assert "/hooks/" in said
    assert re.findall(r"http://127[^ ;]*", said) == [f"http://{WebhookSettings().host}:{WebhookSettings().port}"]


def test_an_unproved_sender_is_said_to_be_so() -> None:
    assert ALL["tekton-unproved"].source["auth"] == "none"
    assert "anybody" in ALL["tekton-unproved"].also[0]
    assert ALL["tekton"].also == ()


@pytest.mark.parametrize("url", ["ci.example.org", "ftp://ci.example.org", "https://", "https://a@ci.example.org"])
def test_a_wrong_public_address_is_named(url: str) -> None:
    with pytest.raises(CimlError, match=r"^--url '.*: give the public address of the receiver, such as"):
        posted_to(url, "github")


def test_a_sender_posts_to_the_path_of_its_source() -> None:
    assert posted_to("https://ci.example.org/", "hub") == "https://ci.example.org/hooks/hub"


@pytest.mark.parametrize(
    ("logs", "allowed"),
    [
        (("https://a.example.org/x", "a.example.org"), {"hosts": ("a.example.org",)}),
        (("http://10.0.0.1:80", "s3://b/p/", "/srv/logs"),
         {"hosts": ("http://10.0.0.1:80",), "s3_prefixes": ("s3://b/p",), "file_roots": ("/srv/logs",)}),
    ],
)  # fmt: skip
def test_places_of_logs(logs: tuple[str, ...], allowed: dict[str, tuple[str, ...]]) -> None:
    assert places(logs) == allowed
    assert FetchPolicy(**places(logs)).host_rules


def test_internal_hosts_may_have_private_addresses() -> None:
    assert places(("https://a.example.org",), internal=True) == {"private_hosts": ("a.example.org",)}
    with pytest.raises(CimlError, match="--logs 'ftp://a': give"):
        places(("ftp://a",))


def test_a_place_without_a_value_is_an_error() -> None:
    with pytest.raises(KeyError):
        filled_in("@URL@", name="x")
