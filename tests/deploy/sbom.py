"""Bills of materials of the images, CycloneDX, from their locks. ``make sbom`` runs it.

They list the Python packages of ciml's own images; what a base image has, its publisher lists.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from ciml.version import __version__
from tests.deploy.test_images import IMAGES, ROOT, lock_of

SPECIFICATION = "1.6"


def bill_of(image: str) -> dict[str, Any]:
    """Return the bill of materials of an image; the same for the same lock.

    Raises:
      ValueError: it is not valid.
    """
    done = subprocess.run(
        [
            sys.executable, "-m", "cyclonedx_py", "requirements", "--spec-version", SPECIFICATION,
            "--output-reproducible", "--pyproject", str(ROOT / "pyproject.toml"), str(lock_of(image)),
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    bill: dict[str, Any] = json.loads(done.stdout)
    bill["metadata"]["component"] |= {
        "type": "container", "name": f"ciml/{image}", "version": __version__, "bom-ref": f"ciml/{image}",
    }  # fmt: skip
    for each in bill["components"]:
        del each["description"]  # the line of the lock, hashes and all
    if fault := fault_of(bill):
        raise ValueError(f"{image}: {fault}")
    return bill


def fault_of(bill: dict[str, Any]) -> str | None:
    """Return how a bill of materials differs from CycloneDX's own schema; None if it does not."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    error = JsonStrictValidator(SchemaVersion.from_version(SPECIFICATION)).validate_str(json.dumps(bill))
    return None if error is None else str(error)


def main(folder: str) -> None:
    for image in IMAGES:
        path = Path(folder, f"{image}.cdx.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        bill = bill_of(image)
        path.write_text(json.dumps(bill, indent=1) + "\n")
        print(f"{path}: {len(bill['components'])} components")


if __name__ == "__main__":
    main(*sys.argv[1:])
