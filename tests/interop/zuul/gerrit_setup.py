"""Makes in Gerrit what Zuul and ciml need: accounts, the label Verified, the projects zuul-config
(trusted), demo and app.

python gerrit_setup.py FOLDER-OF-KEYS
"""

from __future__ import annotations

import sys
from pathlib import Path

from gerrit import ADMIN, Account, Checkout, call

HERE = Path(__file__).parent
_DEMO = {"README": "demo\n", ".zuul.yaml": "- project:\n    check:\n      jobs: [measured, fails]\n"}


def _account(account: Account, name: str, key: Path | None = None, groups: tuple[str, ...] = ()) -> None:
    facts = {"name": name, "email": f"{account.user}@example.com", "http_password": account.password, "groups": groups}
    more = {"ssh_key": key.read_text()} if key is not None else {}
    call("PUT", f"/accounts/{account.user}", {**facts, **more}, known=True)


def _files(folder: str) -> dict[str, str]:
    """Return the texts of a folder here, by path."""
    top = HERE / folder
    return {str(path.relative_to(top)): path.read_text() for path in top.rglob("*.*") if path.suffix != ".pyc"}


def main(keys: Path) -> None:
    _account(Account("zuul", "zuul-secret"), "Zuul", keys / "id_rsa.pub", ("Service Users", "Administrators"))
    _account(Account("ciml", "ciml-secret"), "ciml", keys / "ciml_key.pub", ("Service Users",))
    _account(Account("developer", "developer-secret"), "Developer")
    values = {"-1": "Fails", " 0": "No score", "+1": "Verified"}
    label = {"values": values, "function": "NoOp", "commit_message": "Verified"}
    call("PUT", "/projects/All-Projects/labels/Verified", label, known=True)
    admins, bots = (call("GET", f"/groups/{name}")["id"] for name in ("Administrators", "Service%20Users"))
    verified = {"action": "ALLOW", "min": -1, "max": 1}
    branches = {
        "push": {"rules": {admins: {"action": "ALLOW", "force": True}}},
        "label-Verified": {"label": "Verified", "rules": {"global:Registered-Users": verified}},
    }
    streams = {"streamEvents": {"rules": {bots: {"action": "ALLOW"}}}}
    add = {"refs/heads/*": {"permissions": branches}, "GLOBAL_CAPABILITIES": {"permissions": streams}}
    call("POST", "/projects/All-Projects/access", {"add": add})
    for name, contents in (("zuul-config", _files("zuul-config")), ("demo", _DEMO), ("app", _files("app"))):
        call("PUT", f"/projects/{name}", {"create_empty_commit": True, "branches": ["master"]}, known=True)
        with Checkout(ADMIN, name) as checkout:
            checkout.commit("Set up", contents)
            checkout.push("refs/heads/master")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
