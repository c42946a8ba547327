"""Schemes of signatures: their own examples, and a thousand altered bodies and headers of each."""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
from collections.abc import Callable, Mapping

import pytest

from ciml.integrations.webhooks.signatures import SCHEMES, UNSIGNED, client_scheme
from ciml.limits import MAX_SIGNATURE_AGE_S

NOW = 1_800_000_000.0
SECRET = b"a-secret-of-enough-bytes"
STANDARD = b"whsec_" + base64.b64encode(bytes(range(24)))
BODY = b'{"action": "completed", "id": 4, "text": "\xc3\xa9"}'
Headers = dict[str, str]


def digest(key: bytes, signed: bytes) -> str:
    return hmac.new(key, signed, hashlib.sha256).hexdigest()


def github(body: bytes, secret: bytes = SECRET) -> Headers:
    return {"x-hub-signature-256": f"sha256={digest(secret, body)}"}


def circleci(body: bytes, secret: bytes = SECRET) -> Headers:
    return {"circleci-signature": f"v1={digest(secret, body)}"}


def buildkite(body: bytes, secret: bytes = SECRET, at: float = NOW) -> Headers:
    return {"x-buildkite-signature": f"timestamp={int(at)},signature={digest(secret, b'%d.%s' % (int(at), body))}"}


def standard(body: bytes, secret: bytes = STANDARD, at: float = NOW, message: str = "msg_1") -> Headers:
    key = base64.b64decode(secret.removeprefix(b"whsec_"))
    signed = hmac.new(key, f"{message}.{int(at)}.".encode() + body, hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(signed).decode()}"
    return {"webhook-id": message, "webhook-timestamp": str(int(at)), "webhook-signature": signature}


def gitlab(body: bytes, secret: bytes = SECRET) -> Headers:
    return {"x-gitlab-token": secret.decode()}


def bearer(body: bytes, secret: bytes = SECRET) -> Headers:
    return {"authorization": f"Bearer {secret.decode()}"}


SIGNERS: Mapping[str, Callable[..., Headers]] = {
    "github": github, "circleci": circleci, "buildkite": buildkite, "standard-webhooks": standard,
    "gitlab-token": gitlab, "bearer": bearer,
}  # fmt: skip
every_scheme = pytest.mark.parametrize("name", SIGNERS)


def secret_of(name: str) -> bytes:
    return STANDARD if name == "standard-webhooks" else SECRET


def is_accepted(name: str, headers: Headers, body: bytes, *secrets: bytes, now_s: float = NOW) -> bool:
    scheme = SCHEMES[name]
    claim = scheme.read(headers, now_s)
    return claim is not None and claim.is_proved(body, [scheme.key(each) for each in secrets or (secret_of(name),)])


def test_every_scheme_has_its_signer() -> None:
    assert set(SIGNERS) == set(SCHEMES)


@every_scheme
def test_what_the_sender_signs_is_accepted(name: str) -> None:
    assert is_accepted(name, SIGNERS[name](BODY), BODY)
    assert is_accepted(name, SIGNERS[name](b""), b"")


def test_examples_of_the_systems_own_documents() -> None:
    """The values that GitHub and Standard Webhooks document, computed again by their commands."""
    signature = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert is_accepted(
        "github", {"x-hub-signature-256": f"sha256={signature}"}, b"Hello, World!", b"It's a Secret to Everybody"
    )
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek", "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }  # fmt: skip
    key = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    assert is_accepted("standard-webhooks", headers, b'{"test": 2432232314}', key, now_s=1614265330.0)
    signature = "734cc62f32841568f45715aeb9f4d7891324e6d948e4c6c60c0621cdac48623a"
    assert is_accepted("circleci", {"circleci-signature": f"v1={signature}"}, b"hello world", b"secret")


def altered(data: str, chance: random.Random) -> str:
    """The text with a character replaced, left out, doubled or moved; always another text."""
    while True:
        at = chance.randrange(len(data))
        other = chance.choice([chr(chance.randrange(33, 127)), data[at].swapcase(), "", data[at] * 2, " ", "é", "٣"])
        made = data[:at] + other + data[at + 1 :]
        if made != data:
            return made


@every_scheme
def test_a_thousand_altered_bodies_and_headers_are_rejected(name: str) -> None:
    chance = random.Random(name)
    wrong: list[object] = []
    for _ in range(1000):
        headers, body = dict(SIGNERS[name](BODY)), BODY
        if SCHEMES[name].needs_body and chance.random() < 0.5:
            body = altered(BODY.decode(), chance).encode()
        else:
            field = chance.choice(sorted(headers))
            headers[field] = altered(headers[field], chance)
            if name == "bearer" and headers[field].lower().split() == SIGNERS[name](BODY)[field].lower().split():
                continue  # the case of "Bearer", and blanks after it, mean nothing
        if is_accepted(name, headers, body):
            wrong.append((headers, body))
    assert wrong == []


@every_scheme
def test_a_missing_header_and_another_secret_are_rejected(name: str) -> None:
    good = SIGNERS[name](BODY)
    for field in good:
        assert not is_accepted(name, {other: value for other, value in good.items() if other != field}, BODY)
    other = b"whsec_" + base64.b64encode(b"another key of 24 bytes!") if name == "standard-webhooks" else SECRET[:-1]
    assert not is_accepted(name, good, BODY, other)
    assert not is_accepted(name, good, BODY, other, other)


@every_scheme
def test_two_secrets_are_accepted_while_one_replaces_the_other(name: str) -> None:
    old, new = secret_of(name), b"whsec_" + base64.b64encode(b"another key of 24 bytes!")
    for secret in (old, new):
        assert is_accepted(name, SIGNERS[name](BODY, secret), BODY, old, new)
        assert is_accepted(name, SIGNERS[name](BODY, secret), BODY, new, old)
    assert not is_accepted(name, SIGNERS[name](BODY, old), BODY, new)  # once it is removed


@pytest.mark.parametrize("name", ["buildkite", "standard-webhooks"])
def test_a_signed_time_has_a_window(name: str) -> None:
    for age_s, accepted in [
        (0.0, True), (MAX_SIGNATURE_AGE_S, True), (-MAX_SIGNATURE_AGE_S, True),
        (MAX_SIGNATURE_AGE_S + 1, False), (-MAX_SIGNATURE_AGE_S - 1, False), (86_400.0, False),
    ]:  # fmt: skip
        assert is_accepted(name, SIGNERS[name](BODY, at=NOW - age_s), BODY) == accepted, age_s


def test_one_right_signature_of_several_is_enough() -> None:
    good = standard(BODY)
    others = [f"v1,{base64.b64encode(bytes([number]) * 32).decode()}" for number in range(3)]
    for listed in ([good["webhook-signature"], *others], [*others, "v1a,xyz", good["webhook-signature"]]):
        assert is_accepted("standard-webhooks", {**good, "webhook-signature": " ".join(listed)}, BODY)
    assert not is_accepted("standard-webhooks", {**good, "webhook-signature": " ".join(others)}, BODY)
    for count, accepted in ((7, True), (8, False)):  # before the right one; eight are read
        many = {**good, "webhook-signature": " ".join([*[others[0]] * count, good["webhook-signature"]])}
        assert is_accepted("standard-webhooks", many, BODY) == accepted
        right = circleci(BODY)["circleci-signature"]
        for signatures in ([f"v1={'0' * 64}"] * count + [right], [right] + ["v2=x"] * count):
            assert is_accepted("circleci", {"circleci-signature": ",".join(signatures)}, BODY) == accepted
    assert is_accepted("circleci", {"circleci-signature": f"v2=x,{circleci(BODY)['circleci-signature']}"}, BODY)


def test_what_is_signed_cannot_be_divided_in_another_way() -> None:
    """``id.time.body``: with a dot in the id, the first part of a body could become the time."""
    body = b"1800000000.{}"
    headers = standard(body, message="a")
    moved = {**headers, "webhook-id": "a.1800000000"}
    assert is_accepted("standard-webhooks", headers, body)
    assert not is_accepted("standard-webhooks", moved, b"{}")


def test_a_copy_is_recognised_by_what_is_signed() -> None:
    scheme = SCHEMES["github"]
    first = scheme.read(github(BODY), NOW)
    copy = scheme.read({**github(BODY), "x-github-delivery": "another"}, NOW)
    other = scheme.read(github(b"{}"), NOW)
    assert first
    assert copy
    assert other
    assert first.identity(BODY) == copy.identity(BODY) != other.identity(b"{}")
    retried = [SCHEMES["standard-webhooks"].read(standard(BODY, at=NOW + after), NOW) for after in (0, 60)]
    assert len({claim.identity(BODY) for claim in retried if claim}) == 1
    token = SCHEMES["gitlab-token"].read(gitlab(BODY), NOW)
    assert token
    assert token.identity(BODY) == b""


def test_only_an_id_that_the_proof_covers_is_passed_on() -> None:
    ids = {"x-github-delivery": "d-1", "webhook-id": "msg_1", "idempotency-key": "k-1", "x-gitlab-event-uuid": "u-1"}
    assert {name: scheme.delivery_id(ids) for name, scheme in SCHEMES.items()} == {
        "github": "", "circleci": "", "buildkite": "", "bearer": "", "standard-webhooks": "msg_1",
        "gitlab-token": "msg_1",
    }  # fmt: skip
    assert SCHEMES["gitlab-token"].delivery_id({"idempotency-key": "a b"}) == ""


def test_a_client_that_a_proxy_verified() -> None:
    scheme = client_scheme("x-client-subject")
    claim = scheme.read({"x-client-subject": "CN=tekton"}, NOW)
    assert claim
    assert claim.is_proved(b"", [b"CN=other", b"CN=tekton"])
    assert not claim.is_proved(b"", [b"CN=tekton2"])
    assert scheme.read({"x-client-subject": ""}, NOW) is None
    assert scheme.read({}, NOW) is None


def test_without_a_scheme_everything_is_accepted_and_nothing_proved() -> None:
    claim = UNSIGNED.read({}, NOW)
    assert claim
    assert claim.is_proved(BODY, [b""])
    assert UNSIGNED.auth == ""


@pytest.mark.parametrize("secret", [b"whsec_", b"whsec_no base64!", "whsec_é".encode(), b""])
def test_a_standard_secret_is_checked_and_not_shown(secret: bytes) -> None:
    with pytest.raises(ValueError, match="want whsec_ and base64, as the sender shows it") as caught:
        SCHEMES["standard-webhooks"].key(secret)
    assert "no base64" not in str(caught.value)
