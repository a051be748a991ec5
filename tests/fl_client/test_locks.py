"""Locks: what opens a vault, and which keyrings are trusted."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from fl_client.locks import Keyring, Passphrase, device_lock, system_keyring
from fl_core.errors import ConfigurationError, PrivacyError

CHEAP = 2**15


class InMemory:
    """A backend of the keyring's protocol that keeps its entries until the test ends."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.entries.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.entries[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.entries[service, username]


def test_scrypt_agrees_with_the_standard_library() -> None:
    """hashlib's scrypt is OpenSSL's too, but called by other code: the arguments are checked."""
    import hashlib

    lock = Passphrase("correct horse", n=CHEAP)
    header = lock.fresh()
    salt = bytes.fromhex(header["salt"])
    expected = hashlib.scrypt(b"correct horse", salt=salt, n=CHEAP, r=8, p=1, maxmem=2**26, dklen=32)
    assert lock.key(header) == expected


def test_salts_differ_and_change_the_key() -> None:
    lock = Passphrase("correct horse", n=CHEAP)
    first, second = lock.fresh(), lock.fresh()
    assert first["salt"] != second["salt"] and len(bytes.fromhex(first["salt"])) == 16
    assert lock.key(first) != lock.key(second)


def test_one_passphrase_in_two_spellings_of_unicode_is_one() -> None:
    composed, decomposed = (
        Passphrase("gr\u00fc\u00dfe an alle", n=CHEAP),
        Passphrase("gru\u0308\u00dfe an alle"),
    )
    header = composed.fresh()
    assert composed.key(header) == decomposed.key(header)


def test_a_passphrase_is_not_shown() -> None:
    assert "correct horse" not in repr(Passphrase("correct horse"))


@pytest.mark.parametrize(
    "weak",
    [{"n": 2**14}, {"n": 2**15 + 1}, {"n": 2**21}, {"r": 1}, {"r": 1024}, {"p": 0}, {"secret": "short"}],
)
def test_weak_or_ruinous_costs_are_refused(weak: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"short|scrypt|passphrase"):
        Passphrase(**{"secret": "correct horse", **weak})


def test_a_keyring_keeps_a_random_key_until_it_is_discarded() -> None:
    backend = InMemory()
    lock = Keyring(backend)
    first, second = lock.fresh(), lock.fresh()
    assert lock.key(first) != lock.key(second) and len(lock.key(first)) == 32
    assert lock.key(first).hex() not in str(first)
    lock.discard(first)
    assert len(backend.entries) == 1
    with pytest.raises(PrivacyError, match="no entry"):
        lock.key(first)


def test_a_keyring_that_is_locked_says_so() -> None:
    class Locked(InMemory):
        def get_password(self, service: str, username: str) -> str | None:
            raise OSError("no prompt possible")

    with pytest.raises(PrivacyError, match="unlock it, or take a passphrase"):
        Keyring(Locked()).key({"account": "a"})


def test_without_the_package_the_error_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)  # the import fails
    with pytest.raises(PrivacyError, match="not installed; set DUET_PASSPHRASE"):
        device_lock({})


def test_the_environment_names_the_passphrase() -> None:
    assert device_lock({"DUET_PASSPHRASE": "correct horse"}) == Passphrase("correct horse")


@pytest.mark.parametrize("module", ["fail", "null"])
def test_backends_that_keep_nothing_or_plaintext_are_refused(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyring = pytest.importorskip("keyring")
    backend = __import__(f"keyring.backends.{module}", fromlist=["Keyring"]).Keyring()
    monkeypatch.setattr(keyring, "get_keyring", lambda: backend)
    with pytest.raises(PrivacyError, match=rf"{module}\.Keyring.*set DUET_PASSPHRASE"):
        system_keyring()


def test_a_plaintext_file_of_another_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = pytest.importorskip("keyring")
    backend = type("PlaintextKeyring", (InMemory,), {"__module__": "keyrings.alt.file"})()
    monkeypatch.setattr(keyring, "get_keyring", lambda: backend)
    with pytest.raises(PrivacyError, match=r"keyrings\.alt\.file"):
        system_keyring()


def test_a_chain_counts_as_its_first_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = pytest.importorskip("keyring")
    from keyring.backends import SecretService, chainer, fail

    for first, second, trusted in ((SecretService, fail, True), (fail, SecretService, False)):
        backends = [first.Keyring(), second.Keyring()]
        chain = type("Chain", (chainer.ChainerBackend,), {"backends": backends})()
        monkeypatch.setattr(keyring, "get_keyring", lambda chain=chain: chain)
        if trusted:
            assert system_keyring().backend is backends[0]
        else:
            with pytest.raises(PrivacyError):
                system_keyring()
