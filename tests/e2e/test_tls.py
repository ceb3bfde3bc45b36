"""A cluster whose nodes talk TLS with certificates made for the occasion: jobs run on it, and others are kept out."""

from __future__ import annotations

import datetime
import ipaddress
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from genworker.reading import verify
from tests.processes import run, running
from tests.servers import free_port

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.slow


def certificate(folder: Path) -> dict[str, str]:
    """A certificate for this machine that is its own authority, as README says how to make one; Ray's variables for it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "genworker test")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    certificate_path, key_path = folder / "tls.crt", folder / "tls.key"
    certificate_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_path.touch(mode=0o600)
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(certificate_path),
        "RAY_TLS_SERVER_KEY": str(key_path),
        "RAY_TLS_CA_CERT": str(certificate_path),
    }


def test_a_cluster_with_tls(tiny_bundle: str, tmp_path: Path) -> None:
    """A job with the certificate is published; a client without it, or with one of its own, does not get in."""
    tls = certificate(tmp_path / "ours")
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("0123456789abcdef" * 4)
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    address = f"127.0.0.1:{free_port()}"
    head = ["ray", "start", "--head", "--block", f"--port={address.partition(':')[2]}", "--include-dashboard=false"]
    head += ["--num-cpus=2", "--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0"]
    job = ["genworker", "generate", tiny_bundle, "--num-samples=600", "--samples-per-shard=200", "--actors=2"]
    with running(head, tmp_path, auth | tls) as node:
        node.wait_until(lambda: "Ray runtime started" in node.stdout)
        out = tmp_path / "out"
        done = run([*job, "--out", str(out)], tmp_path, auth | tls | {"RAY_ADDRESS": address})
        assert done.process.returncode == 0, done.stdout + done.stderr
        assert verify(str(out)) == []
        for others in ({}, certificate(tmp_path / "theirs")):
            kept_out = tmp_path / "kept-out"
            done = run([*job, "--out", str(kept_out)], tmp_path, auth | others | {"RAY_ADDRESS": address})
            assert done.process.returncode == 1
            assert "cannot join this cluster" in done.stderr
            assert not kept_out.exists()
