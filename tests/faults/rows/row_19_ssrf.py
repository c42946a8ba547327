"""Row 19: addresses of logs that lead inside: by form, by name, by a redirect, by an answer that changes."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.faults.children import ROOT
from tests.faults.scene import Scene
from tests.faults.verdict import Verdict

ROW = 19
TITLE = "SSRF: link-local, private, encoded, redirect, rebinding"
INJECTED = (
    "200 addresses a trial, each fetched twice by the real stage and the system's resolver, in a network namespace "
    "with a DNS server and listeners on twenty forbidden addresses (link-local and metadata, private, shared, "
    "loopback, NAT64, 6to4, Teredo): named in sixteen forms, by names that lead there alone, beside a public address, "
    "or only when asked again, by names that may lead inside but not to these, and behind one to three redirects"
)
EXPECTED = "refused, reason kept; no connection to a forbidden address"
INVARIANTS = ("I8",)
TRIALS = 20
ENGINES = ("micro-batches",)

_CASES = 200
_PUBLIC_AT_LEAST = 20


def trial(seed: int, scene: Scene, defect: str = "") -> Verdict:
    verdict = Verdict()
    command = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.faults.inner_net", str(seed), str(_CASES)]
    if defect:
        command.append(defect)
    done = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=120, check=False)
    if b"unshare" in done.stderr and b"not permitted" in done.stderr:
        verdict.skipped = "network namespaces need root"
        return verdict
    if done.returncode:
        verdict.fail(f"trial: the namespace ended with {done.returncode}: {done.stderr[-600:].decode()}")
        return verdict
    found = json.loads(done.stdout)
    for ip, connections in found["forbidden"].items():
        verdict.fail(f"I8: {connections} connections to {ip}")
    verdict.fail(*(f"I8: {line}" for line in found["wrong"]))
    verdict.expect(found["public"] >= _PUBLIC_AT_LEAST, f"trial: {found['public']} connections to public addresses")
    verdict.count("events", _CASES)
    verdict.count("refused", sum(count for reason, count in found["reasons"].items() if reason != "log"))
    return verdict
