"""The device's keys: one random data key, wrapped by a lock, and keys derived from it.

The data key (256 bits) never changes.  ``vault.json`` holds it encrypted (AES-256-GCM) under the key
that a lock gives (``fl_client/locks.py``).  Changing the lock re-wraps the data key and touches no data.
What is stored is never encrypted under the data key itself, but under keys derived from it by
HKDF-SHA256 (RFC 5869), one a purpose.

Limits: keys are in the memory of the process that uses them, and Python cannot wipe it.  A lock that
was replaced still opens an old copy of ``vault.json``, in a backup for example.
"""

from __future__ import annotations

import json
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fl_client.locks import KEY_BYTES, Lock
from fl_core.atomic import locked, write_private
from fl_core.errors import PrivacyError

NONCE_BYTES = 12
FILE = "vault.json"
VERSION = 1
LOCK_SECONDS = 10.0


@dataclass(frozen=True)
class Vault:
    """The keys of one folder.  ``create`` makes the key file, ``open`` reads it."""

    folder: Path
    data_key: bytes = field(repr=False)

    @staticmethod
    def create(folder: Path, lock: Lock) -> Vault:
        """A new data key in ``folder`` (made with mode 0700).

        Raises ``PrivacyError`` where there is a key already, or others may read the folder.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(folder, "700")
        with locked(folder / f".{FILE}.lock", LOCK_SECONDS):
            if (folder / FILE).exists():
                raise PrivacyError(
                    f"vault {str(folder / FILE)!r}: there is one already, and a new key could not read "
                    "what it protects; open it, or give another folder"
                )
            vault = Vault(folder, secrets.token_bytes(KEY_BYTES))
            vault._wrap(lock)
        return vault

    @staticmethod
    def open(folder: Path, lock: Lock) -> Vault:
        """The vault of ``folder``; changes nothing on the disk.

        Raises ``PrivacyError`` where there is none, others may read it, or ``lock`` does not open it.
        """
        header, nonce, wrapped = _read(folder / FILE)
        if header.get("kind") != lock.kind:
            fix = "set DUET_PASSPHRASE" if header.get("kind") == "passphrase" else "unset DUET_PASSPHRASE"
            raise PrivacyError(
                f"vault {str(folder / FILE)!r}: locked by {header.get('kind')!r}, got a {lock.kind}; {fix}"
            )
        try:
            return Vault(folder, AESGCM(lock.key(header)).decrypt(nonce, wrapped, _canonical(header)))
        except InvalidTag:
            raise PrivacyError(
                f"vault {str(folder / FILE)!r}: wrong {lock.kind}, or the file was changed; nothing was "
                "touched.  Try again, or restore the file from a backup"
            ) from None
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(folder / FILE, error) from error

    def change_lock(self, old: Lock, new: Lock) -> None:
        """Wrap the same data key by ``new``; data stay as they are, and ``old`` no longer opens."""
        with locked(self.folder / f".{FILE}.lock", LOCK_SECONDS):
            if Vault.open(self.folder, old) != self:
                raise PrivacyError(f"vault {str(self.folder)!r}: was replaced meanwhile; open it again")
            header, _, _ = _read(self.folder / FILE)
            self._wrap(new)
            old.discard(header)

    def key(self, purpose: str, *context: str | int) -> bytes:
        """32 bytes for one purpose and context, by HKDF-SHA256; no two share a key."""
        info = _canonical({"duet": VERSION, "purpose": purpose, "context": list(context)})
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(self.data_key)

    def _wrap(self, lock: Lock) -> None:
        header, nonce = {"version": VERSION, **lock.fresh()}, secrets.token_bytes(NONCE_BYTES)
        wrapped = AESGCM(lock.key(header)).encrypt(nonce, self.data_key, _canonical(header))
        text = json.dumps({**header, "nonce": nonce.hex(), "wrapped": wrapped.hex()}, indent=2)
        write_private(self.folder / FILE, text.encode() + b"\n")


def _check_private(path: Path, mode: str) -> None:
    found = stat.S_IMODE(path.stat().st_mode)
    if found & 0o077:
        raise PrivacyError(
            f"{str(path)!r}: mode {found:o} lets others in, and it is private; run `chmod {mode}` on it"
        )


def _read(path: Path) -> tuple[dict[str, Any], bytes, bytes]:
    """(header, nonce, wrapped data key) of a key file."""
    if not path.exists():
        raise PrivacyError(f"vault {str(path)!r}: there is none; make one with `Vault.create`")
    _check_private(path.parent, "700")
    _check_private(path, "600")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        nonce, wrapped = bytes.fromhex(header.pop("nonce")), bytes.fromhex(header.pop("wrapped"))
        version = int(header["version"])
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _unreadable(path, error) from error
    if version > VERSION:
        raise PrivacyError(f"vault {str(path)!r}: version {version}, this Duet knows {VERSION}; update Duet")
    return header, nonce, wrapped


def _unreadable(path: Path, error: Exception) -> PrivacyError:
    return PrivacyError(f"vault {str(path)!r} cannot be read ({error!r}); restore it from a backup")


def _canonical(value: Mapping[str, Any]) -> bytes:
    """One spelling of a JSON value, for associated data."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
