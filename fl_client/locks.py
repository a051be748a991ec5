"""What opens a vault: a passphrase, or the system's keyring.

A lock gives the key that wraps the vault's data key.  ``Passphrase`` derives it with scrypt (RFC 7914),
``Keyring`` keeps a random one in the system's keyring, and only in one that is known to encrypt.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fl_core.errors import ConfigurationError, PrivacyError

KEY_BYTES = 32
SHORTEST_PASSPHRASE = 8
"""Characters; scrypt slows guessing, and cannot make up for a passphrase that is soon guessed."""
SERVICE = "duet"
"""Under which name the system's keyring keeps wrapping keys."""
TRUSTED = ("SecretService", "libsecret", "kwallet", "macOS", "Windows")
"""The modules of ``keyring.backends`` that encrypt; a list of the plaintext ones would age."""

Header = Mapping[str, Any]
"""What of a lock is stored in the clear: its kind and how to find the wrapping key again."""


class Lock(Protocol):
    """Gives the 32-byte key that wraps the data key."""

    @property
    def kind(self) -> str:
        """``passphrase`` or ``keyring``."""

    def fresh(self) -> Header:
        """A header for a wrapping key that was never used before."""

    def key(self, header: Header) -> bytes:
        """The wrapping key of a header, 32 bytes."""

    def discard(self, header: Header) -> None:
        """Forget the wrapping key of a header that no vault uses any more."""


@dataclass(frozen=True)
class Passphrase:
    """A lock that the person types, or ``DUET_PASSPHRASE`` holds.

    ``n``, ``r``, ``p`` are scrypt's cost, block size and parallelism; one try takes 128 n r bytes of
    memory (128 MiB by default) and about half a second.  They are stored, so raising the default
    locks nobody out.  Raises ``ConfigurationError`` where they or the passphrase are too weak.
    """

    secret: str = field(repr=False)
    n: int = 2**17
    r: int = 8
    p: int = 1
    kind = "passphrase"

    def __post_init__(self) -> None:
        if len(self.secret) < SHORTEST_PASSPHRASE:
            raise ConfigurationError(
                f"passphrase: {len(self.secret)} characters, but it needs {SHORTEST_PASSPHRASE}; "
                "take a longer one, such as four random words"
            )
        _check_cost(self.n, self.r, self.p)

    def fresh(self) -> Header:
        """A new random salt with this object's cost."""
        return {"kind": self.kind, "n": self.n, "r": self.r, "p": self.p, "salt": secrets.token_hex(16)}

    def key(self, header: Header) -> bytes:
        """scrypt of the passphrase; NFC first, as keyboards differ in how they write one letter."""
        n, r, p = (int(header[name]) for name in "nrp")
        _check_cost(n, r, p)
        text = unicodedata.normalize("NFC", self.secret).encode()
        return Scrypt(bytes.fromhex(header["salt"]), KEY_BYTES, n, r, p).derive(text)

    def discard(self, header: Header) -> None:
        """Nothing is kept outside of the header."""


class Backend(Protocol):
    """What is used of a backend of the ``keyring`` package."""

    def get_password(self, service: str, username: str) -> str | None:
        """The secret, or None."""

    def set_password(self, service: str, username: str, password: str) -> None:
        """Keep a secret."""

    def delete_password(self, service: str, username: str) -> None:
        """Forget a secret."""


@dataclass(frozen=True)
class Keyring:
    """A lock that the system opens when its user logs in; ``system_keyring`` finds the backend.

    ``failure`` is what the backend raises where it is locked or does not answer.
    """

    backend: Backend
    failure: type[Exception] = OSError
    kind = "keyring"

    def fresh(self) -> Header:
        """A new random wrapping key, kept by the keyring under a random account."""
        account = secrets.token_hex(16)
        with self._asked():
            self.backend.set_password(SERVICE, account, secrets.token_hex(KEY_BYTES))
        return {"kind": self.kind, "account": account}

    def key(self, header: Header) -> bytes:
        """The wrapping key from the keyring; raises ``PrivacyError`` where it is gone."""
        with self._asked():
            found = self.backend.get_password(SERVICE, header["account"])
        if found is None:
            raise PrivacyError(
                f"keyring: no entry {header['account']!r} of service {SERVICE!r}; "
                "log in as the user who made this vault, or restore the keyring from a backup"
            )
        return bytes.fromhex(found)

    def discard(self, header: Header) -> None:
        """Delete the keyring's entry."""
        with self._asked():
            self.backend.delete_password(SERVICE, header["account"])

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except self.failure as error:
            raise PrivacyError(
                f"keyring: it does not answer ({error}); unlock it, or take a passphrase (DUET_PASSPHRASE)"
            ) from error


def system_keyring() -> Keyring:
    """The system's keyring, if it encrypts what it keeps.

    Raises ``PrivacyError`` where there is none, or it is not one of ``TRUSTED``.
    """
    advice = "set DUET_PASSPHRASE instead"
    try:
        backend = importlib.import_module("keyring").get_keyring()
        failure = importlib.import_module("keyring.errors").KeyringError
    except ImportError:
        raise PrivacyError(f"keyring: the Python package `keyring` is not installed; {advice}") from None
    # A chainer asks all backends in turn and would write to the first: that one counts.
    backend = next(iter(getattr(backend, "backends", ())), backend)
    package, _, module = type(backend).__module__.rpartition(".")
    if package != "keyring.backends" or module not in TRUSTED:
        raise PrivacyError(
            f"keyring: the backend {type(backend).__module__}.{type(backend).__qualname__} is not one that "
            f"is known to encrypt ({', '.join(TRUSTED)}); {advice}"
        )
    return Keyring(backend, failure)


def device_lock(environment: Mapping[str, str] = os.environ) -> Lock:
    """The lock of this device: ``DUET_PASSPHRASE`` where it is set, else the system's keyring."""
    secret = environment.get("DUET_PASSPHRASE", "")
    return Passphrase(secret) if secret else system_keyring()


def _check_cost(n: int, r: int, p: int) -> None:
    """Refuse a cost below RFC 7914's for logins, and one that would exhaust the device's memory."""
    if not (2**15 <= n <= 2**20 and n & (n - 1) == 0 and 8 <= r <= 16 and 1 <= p <= 16):
        raise ConfigurationError(
            f"scrypt: n={n}, r={r}, p={p}, but n must be a power of 2 from 2^15 to 2^20, r 8 to 16, p 1 to 16"
        )
