"""The bills of materials: valid, and exactly the locked packages with their hashes."""

from __future__ import annotations

import re

import pytest

from tests.deploy.sbom import bill_of, fault_of
from tests.deploy.test_images import IMAGES, lock_of, locked

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("image", IMAGES)
def test_it_lists_the_lock(image: str) -> None:
    bill = bill_of(image)
    found = {each["name"].lower().replace("_", "-"): each for each in bill["components"]}
    wanted = locked(lock_of(image))
    assert found.keys() == wanted.keys()
    for name, (version, hashes) in wanted.items():
        one = found[name]
        assert (one["version"], one["purl"]) == (version, f"pkg:pypi/{name}@{version}")
        found_hashes = [each for reference in one["externalReferences"] for each in reference.get("hashes", ())]
        listed = {each["content"] for each in found_hashes if each["alg"] == "SHA-256"}
        assert listed == set(re.findall(r"sha256:([0-9a-f]{64})", hashes)), name


def test_an_invalid_one_is_found() -> None:
    bill = bill_of("recorder")
    assert bill_of("recorder") == bill
    for key, value in (("bomFormat", "x"), ("serialNumber", "x"), ("components", [{"name": "a"}])):
        assert fault_of({**bill, key: value}), key
