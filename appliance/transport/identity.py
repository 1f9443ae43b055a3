"""The device's certificate: made at first start, pinned by whoever connects to it."""

import datetime as dt
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from appliance.device.durable import write_durably
from appliance.errors import DeviceError

SERVER_NAME = "appliance.internal"
"""Every device's certificate carries this one name: trust comes from the pinned certificate, not from a name."""
CERTIFICATE_FILE = "zipper-cert.pem"
KEY_FILE = "zipper-key.pem"
# A box without a battery-backed clock may boot in 1970, so validity spans whatever a clock may say.
_NOT_BEFORE = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NOT_AFTER = dt.datetime(2199, 12, 31, tzinfo=dt.UTC)


def ensure_certificate(directory: Path) -> tuple[Path, Path]:
    """(certificate, key) files of this device, made where they are missing. The key is readable by its owner only."""
    certificate, key = directory / CERTIFICATE_FILE, directory / KEY_FILE
    if certificate.exists() and key.exists():
        _check(certificate, key)
        return certificate, key
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        secret = ec.generate_private_key(ec.SECP256R1())
        write_durably(key, _key_pem(secret), 0o600)
        write_durably(certificate, _certificate(secret).public_bytes(serialization.Encoding.PEM))
    except OSError as error:
        raise DeviceError(f"{directory}: cannot store the device's certificate: {error.strerror}") from error
    return certificate, key


def _check(certificate: Path, key: Path) -> None:
    """Not made anew where damaged: who has pinned the certificate would be locked out without a word."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # ssl.SSLError among them
        raise DeviceError(
            f"{certificate} or {key.name} beside it is damaged: {error}; restore both, or remove both: new ones are "
            f"made at the next start, and sources on other machines need the new certificate"
        ) from error


def _key_pem(secret: ec.EllipticCurvePrivateKey) -> bytes:
    return secret.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate(secret: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, SERVER_NAME)])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(secret, hashes.SHA256())
    )
