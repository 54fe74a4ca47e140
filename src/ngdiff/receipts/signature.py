"""key file and bytes -> an Ed25519 signature, or whether one is valid.

Keys are PEM files as OpenSSL writes them (PKCS#8, SubjectPublicKeyInfo); a signature is its 64 raw bytes,
so

    openssl pkeyutl -verify -pubin -inkey public.pem -rawin -in receipt.json -sigfile receipt.sig

checks it without this package.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ngdiff.errors import Fault, RequestError
from ngdiff.system.output import write_new

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ALGORITHM = "Ed25519"
INSTALL = "pip install 'ngdiff[sign]'"
_MOST_BYTES = 2**16


def available() -> bool:
    """Return whether the package ``cryptography``, an optional dependency, is installed."""
    return importlib.util.find_spec("cryptography") is not None


def _require_cryptography(where: str) -> None:
    if not available():
        what = "signatures need the package cryptography, which is not installed"
        raise RequestError(Fault(where, what, f"Install it with: {INSTALL}"))


def read_private_key(path: Path, where: str = "--set sign") -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        RequestError: the file cannot be read, is encrypted, or contains another kind of key; or
            ``cryptography`` is not installed.
    """
    _require_cryptography(where)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    content = _read(path, where)
    fix = "Create one with: ngdiff keygen KEY.pem"
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except TypeError as error:  # what cryptography raises for a key under a password
        unlock = f"Remove the password with: openssl pkey -in {path} -out PLAIN.pem"
        raise RequestError(Fault(where, f"{path} is encrypted with a password", unlock)) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        what = f"{path} does not contain a private key in PEM form"
        if b"BEGIN PUBLIC KEY" in content:
            what = f"{path} contains a public key, but signing needs the private key"
        raise RequestError(Fault(where, what, fix)) from error
    if not isinstance(key, Ed25519PrivateKey):
        what = f"{path} contains another kind of key ({_kind(key)}), not {ALGORITHM}"
        raise RequestError(Fault(where, what, fix))
    return key


def read_public_key(path: Path, where: str = "--public-key") -> Ed25519PublicKey:
    """Read a public key, from a private key file too.

    Raises:
        RequestError: the file cannot be read, contains no Ed25519 key, or ``cryptography`` is missing.
    """
    _require_cryptography(where)
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    content = _read(path, where)
    if b"PRIVATE KEY" in content:
        return read_private_key(path, where).public_key()
    fix = "Give the signer's public key, such as 'ngdiff keygen' writes beside the private one"
    try:
        key = serialization.load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RequestError(Fault(where, f"{path} does not contain a public key in PEM form", fix)) from error
    if not isinstance(key, Ed25519PublicKey):
        what = f"{path} contains another kind of key ({_kind(key)}), not {ALGORITHM}"
        raise RequestError(Fault(where, what, fix))
    return key


def _kind(key: Any) -> str:
    return type(key).__name__.removesuffix("PrivateKey").removesuffix("PublicKey").strip("_")


def _read(path: Path, where: str) -> bytes:
    fix = "Check the path"
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise RequestError(Fault(where, f"{path} is too large to be a key", fix))
        if not path.is_file():
            raise RequestError(Fault(where, f"{path} is not a file", fix))
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        what = f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        raise RequestError(Fault(where, what, fix)) from error


def public_hex(key: Ed25519PublicKey) -> str:
    """Return a public key's 32 raw bytes as hex."""
    return key.public_bytes_raw().hex()


def public_from_hex(text: str) -> Ed25519PublicKey:
    """Read what :func:`public_hex` wrote.

    Raises:
        ValueError: it is not a key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))


def holds(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    """Return whether a signature over a message was made with the private key that belongs to ``key``."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def write_keys(path: Path) -> Path:
    """Create a key pair: the private key at ``path``, readable by its owner only, the public key beside it.

    Returns:
        The public key's file, ``NAME.pub.pem``.

    Raises:
        RequestError: one of the files exists, or cannot be written; or ``cryptography`` is not installed.
    """
    _require_cryptography("KEY")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = path.with_name(f"{path.stem}.pub.pem")
    for file in (path, public):
        if file.exists() or file.is_symlink():
            raise RequestError(
                Fault("KEY", f"{file} exists", "Choose another name: keys are never overwritten")
            )
    key = Ed25519PrivateKey.generate()
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    shown = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    try:
        write_new({path: (secret, 0o600), public: (shown, 0o644)})
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror}"
        raise RequestError(Fault("KEY", what, "Choose an existing, writable folder")) from error
    return public
