from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from resnet50_server.auth.identity import ADMIN, INFER, Authenticator, Caller, certificate_identity
from resnet50_server.auth.tokens import Tokens
from resnet50_server.errors import PermissionDenied, Unauthenticated, code_of

PEER = "ipv4:10.0.0.7:51234"
CLEARTEXT = {"transport_security_type": [b"insecure"], "security_level": [b"TSI_SECURITY_NONE"]}
CERTIFICATE = {
    "transport_security_type": [b"ssl"],
    "x509_common_name": [b"camera"],
    "x509_subject_alternative_name": [b"cam.example", b"also.example"],
    "peer_dns": [b"cam.example", b"also.example"],
}


@pytest.fixture
def with_tokens(tmp_path) -> Authenticator:
    return Authenticator(Tokens(tokens_file(tmp_path)), now=lambda: 1_700_000_000.0)


def tokens_file(directory: Path) -> Path:
    path = directory / "tokens.toml"
    path.write_text(
        "".join(
            f'[[token]]\nname = "{name}"\nscopes = {scopes}\n{more}\n'
            f'sha256 = "{hashlib.sha256(secret.encode()).hexdigest()}"\n'
            for name, secret, scopes, more in (
                ("cameras", "camera-secret", '["infer"]', ""),
                ("ops", "ops-secret", '["infer", "admin"]', ""),
                ("loader", "loader-secret", '["admin"]', ""),
                ("old", "old-secret", '["infer"]', "expires = 2023-11-14T22:13:20Z"),
                ("young", "young-secret", '["infer"]', "expires = 2023-11-14T22:13:21Z"),
            )
        )
    )
    return path


def bearer(value: str) -> tuple[tuple[str, str], ...]:
    return (("user-agent", "grpc"), ("authorization", value))


# Without tokens


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ("ipv4:10.0.0.7:51234", "address:10.0.0.7"),
        ("ipv4:127.0.0.1:1", "address:127.0.0.1"),
        # As gRPC writes them, in percent signs, and as it did.
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:51234", "address:2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2:ffff::1]:443", "address:2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:443", "address:fe80::/64"),
        ("ipv6:%5B::1%5D:443", "address:::1"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:443", "address:10.0.0.7"),
        ("unix:", "address:unix"),
        ("unix:/run/r.sock", "address:unix"),
        ("ipv4:nonsense", "address:unknown"),
    ],
)
def test_caller_without_certificate_is_its_address_without_port(peer, name):
    caller = Authenticator(None).authenticate((), peer, CLEARTEXT)
    assert caller == Caller(name, frozenset({INFER}))


def test_caller_with_certificate_is_the_name_in_it():
    caller = Authenticator(None).authenticate((), PEER, CERTIFICATE)
    assert caller == Caller("cert:cam.example", frozenset({INFER}))


def test_without_a_token_file_there_is_no_admin_scope():
    for peer in (PEER, "unix:", "ipv4:127.0.0.1:1"):
        caller = Authenticator(None).authenticate(bearer("Bearer ops-secret"), peer, CLEARTEXT)
        assert caller.name.startswith("address:")
        caller.require(INFER)
        with pytest.raises(PermissionDenied, match=r"this server has none: .*--tokens-file"):
            caller.require(ADMIN)


# Certificates


@pytest.mark.parametrize(
    ("says", "name"),
    [
        ({}, None),
        (CLEARTEXT, None),
        ({"transport_security_type": [b"ssl"]}, None),
        ({"x509_common_name": [b""]}, None),
        ({"x509_common_name": [b"camera"]}, "camera"),
        (CERTIFICATE, "cam.example"),
        ({**CERTIFICATE, "peer_uri": [b"urn:cam:1"]}, "urn:cam:1"),
        (
            {
                **CERTIFICATE,
                "peer_uri": [b"spiffe://example/cam"],
                "peer_spiffe_id": [b"spiffe://example/cam"],
            },
            "spiffe://example/cam",
        ),
        ({"x509_common_name": ["Kamera Süd".encode()]}, "Kamera Süd"),
        # Characters that do not print could forge a line of the log.
        ({"x509_common_name": [b"a\nERROR b"]}, "a\\nERROR b"),
        ({"x509_common_name": [b"a\xff"]}, "a\\xff"),
    ],
)
def test_identity_of_a_certificate_is_its_best_name(says, name):
    assert certificate_identity(says) == name


# With tokens


@pytest.mark.parametrize(
    ("value", "name", "scopes"),
    [
        ("Bearer camera-secret", "token:cameras", {INFER}),
        ("bearer ops-secret", "token:ops", {INFER, ADMIN}),
        ("BEARER loader-secret", "token:loader", {ADMIN}),
        ("Bearer young-secret", "token:young", {INFER}),
    ],
)
@pytest.mark.parametrize("says", [CLEARTEXT, CERTIFICATE], ids=["cleartext", "mtls"])
def test_token_gives_name_and_scopes(with_tokens, value, name, scopes, says):
    assert with_tokens.authenticate(bearer(value), PEER, says) == Caller(
        name, frozenset(scopes), by_token=True
    )


@pytest.mark.parametrize("says", [CLEARTEXT, CERTIFICATE], ids=["cleartext", "mtls"])
@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "TOKEN_MISSING"),
        ((("authorization-bin", b"Bearer camera-secret"),), "TOKEN_MISSING"),
        (bearer("camera-secret"), "TOKEN_MALFORMED"),
        (bearer("Basic camera-secret"), "TOKEN_MALFORMED"),
        (bearer("Bearer "), "TOKEN_MALFORMED"),
        (bearer(""), "TOKEN_MALFORMED"),
        (bearer(" Bearer camera-secret"), "TOKEN_MALFORMED"),
        (bearer("Bearer camera-secret "), "TOKEN_MALFORMED"),
        (bearer("Bearer camera-secret,x"), "TOKEN_MALFORMED"),
        (bearer("Bearer camera-sécret"), "TOKEN_MALFORMED"),
        (bearer("Bearer " + "x" * 513), "TOKEN_MALFORMED"),
        ((("authorization", b"Bearer camera-secret"),), "TOKEN_MALFORMED"),
        (bearer("Bearer camera-secret") * 2, "TOKEN_MALFORMED"),
        (bearer("Bearer x") + bearer("Bearer camera-secret"), "TOKEN_MALFORMED"),
        (bearer("Bearer " + "x" * 512), "TOKEN_UNKNOWN"),
        (bearer("Bearer camera-secre"), "TOKEN_UNKNOWN"),
        (bearer("Bearer CAMERA-SECRET"), "TOKEN_UNKNOWN"),
        (bearer("Bearer old-secret"), "TOKEN_EXPIRED"),
    ],
)
def test_call_without_a_valid_token_is_refused_with_the_reason(with_tokens, metadata, reason, says):
    with pytest.raises(Unauthenticated) as refused:
        with_tokens.authenticate(metadata, PEER, says)
    assert refused.value.error_reason == reason
    assert code_of(refused.value) == "UNAUTHENTICATED"
    # A refusal repeats nothing of what was sent; it may be logged.
    for secret in ("camera-s", "CAMERA-S", "old-secret", "xxxx"):
        assert secret not in str(refused.value)


def test_peer_without_token_is_named_and_has_no_scopes(with_tokens):
    for callers in (with_tokens, Authenticator(None)):
        assert callers.peer_identity(PEER, CLEARTEXT) == Caller("address:10.0.0.7", frozenset())
        assert callers.peer_identity(PEER, CERTIFICATE) == Caller("cert:cam.example", frozenset())


def test_scope_that_is_missing_is_named(with_tokens):
    caller = with_tokens.authenticate(bearer("Bearer camera-secret"), PEER, CLEARTEXT)
    caller.require(INFER)
    with pytest.raises(PermissionDenied) as refused:
        caller.require(ADMIN)
    assert "token:cameras" in str(refused.value)
    assert "'admin'" in str(refused.value)
    # One does not hold the other.
    loader = with_tokens.authenticate(bearer("Bearer loader-secret"), PEER, CLEARTEXT)
    loader.require(ADMIN)
    with pytest.raises(PermissionDenied):
        loader.require(INFER)
