"""The playbooks that ``ciml connect zuul`` prints, run by the Ansible of Zuul against a node: this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import ciml
from ciml.integrations.connect import ZuulOptions

pytestmark = [pytest.mark.interop, pytest.mark.timeout(3600)]


class Node:
    """A job's folders, and Ansible with Zuul's `zuul_return`."""

    def __init__(self, zuul: Path, folder: Path, nodes: str) -> None:
        site = next(zuul.glob("venv/lib/python3*/site-packages"))
        self.folder, self.ansible = folder, zuul / "ansible/11/bin"
        for name in ("bin", "home", "job/work", "lib", "action", "logs"):
            (folder / name).mkdir(parents=True)
        (folder / "job/work/results.json").touch()  # as the executor does
        (folder / "lib/zuul").symlink_to(site / "zuul")
        returns = site / "zuul/ansible/11/action/zuul_return.py"
        (folder / "action/zuul_return.py").write_text(returns.read_text())
        dool = Path(sys.executable).with_name("dool")
        (folder / "bin/dool").write_text(f'#!/bin/sh\nexec {sys.executable} {dool} "$@"\n')
        (folder / "bin/dool").chmod(0o755)
        (folder / "inventory").write_text(nodes)
        connection = ZuulOptions(broker="mqtts://mqtt.example.org", logs=("https://logs.example.org",)).connection()
        self.playbooks = {paste.where: paste.text for paste in connection.pastes if paste.form == "yaml"}

    def play(self, name: str) -> None:
        text = next(text for where, text in self.playbooks.items() if f"playbooks/ciml/{name}" in where)
        (self.folder / name).write_text(text)
        executor = {"log_root": str(self.folder / "logs")}
        known = json.dumps({"ansible_user_dir": str(self.folder / "home"), "zuul": {"executor": executor}})
        environment = {
            **os.environ, "ZUUL_JOBDIR": str(self.folder / "job"), "PYTHONPATH": str(self.folder / "lib"),
            "ANSIBLE_ACTION_PLUGINS": str(self.folder / "action"),
            "PATH": f"{self.folder / 'bin'}:{self.ansible}:{os.environ['PATH']}",
        }  # fmt: skip
        command = [str(self.ansible / "ansible-playbook"), "-i", str(self.folder / "inventory"), "-e", known, name]
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr

    def returned(self) -> list[dict[str, str]]:
        text = (self.folder / "job/work/results.json").read_text()
        return json.loads(text)["data"]["zuul"]["artifacts"] if text else []


def test_a_node_is_recorded_and_its_log_is_named(installed: Path, tmp_path: Path) -> None:
    node = Node(installed, tmp_path, f"node ansible_connection=local ansible_python_interpreter={sys.executable}\n")
    node.play("pre.yaml")
    time.sleep(3)  # the job
    node.play("post.yaml")
    (artifact,) = node.returned()
    log = tmp_path / "logs" / artifact["url"]
    assert ciml.parse_log(str(log)).num_rows >= 3
    pid = int((tmp_path / "home/ciml/pid").read_text())
    ended = not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody waits for it
    assert ended


def test_a_job_without_nodes_passes_and_names_nothing(installed: Path, tmp_path: Path) -> None:
    node = Node(installed, tmp_path, "")
    node.play("pre.yaml")
    node.play("post.yaml")
    assert node.returned() == []
