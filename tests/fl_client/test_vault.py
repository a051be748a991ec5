"""The vault: its key opens with the right lock only, and nothing destroys it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from fl_client.locks import Keyring, Lock, Passphrase
from fl_client.vault import FILE, Vault
from fl_core.errors import ConfigurationError, PrivacyError
from tests.fl_client.test_locks import CHEAP, InMemory

RIGHT = Passphrase("correct horse", n=CHEAP)
WRONG = Passphrase("incorrect horse", n=CHEAP)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.mark.parametrize("lock", [RIGHT, Keyring(InMemory())], ids=["passphrase", "keyring"])
def test_a_vault_opens_with_its_lock(folder: Path, lock: Lock) -> None:
    made = Vault.create(folder, lock)
    assert len(made.data_key) == 32
    assert Vault.open(folder, lock) == made
    text = (folder / FILE).read_text()
    assert made.data_key.hex() not in text and "correct horse" not in text
    assert made.data_key.hex() not in repr(made) and repr(made.data_key) not in repr(made)


def test_two_vaults_have_two_keys(folder: Path, tmp_path: Path) -> None:
    assert Vault.create(folder, RIGHT).data_key != Vault.create(tmp_path / "other", RIGHT).data_key


def test_a_wrong_passphrase_destroys_nothing(folder: Path) -> None:
    made = Vault.create(folder, RIGHT)
    before = (folder / FILE).read_bytes()
    with pytest.raises(PrivacyError, match=r"wrong passphrase.*nothing was touched"):
        Vault.open(folder, WRONG)
    with pytest.raises(PrivacyError, match="wrong passphrase"):
        made.change_lock(WRONG, Passphrase("another horse", n=CHEAP))
    assert (folder / FILE).read_bytes() == before
    assert Vault.open(folder, RIGHT) == made


def test_a_lock_of_the_other_kind_says_what_to_do(folder: Path) -> None:
    Vault.create(folder, RIGHT)
    with pytest.raises(PrivacyError, match="set DUET_PASSPHRASE"):
        Vault.open(folder, Keyring(InMemory()))


def test_create_never_overwrites(folder: Path) -> None:
    made = Vault.create(folder, RIGHT)
    with pytest.raises(PrivacyError, match="one already"):
        Vault.create(folder, RIGHT)
    assert Vault.open(folder, RIGHT) == made


def test_without_a_vault_the_error_says_so(folder: Path) -> None:
    with pytest.raises(PrivacyError, match="there is none"):
        Vault.open(folder, RIGHT)


def test_only_the_owner_may_read(folder: Path) -> None:
    before = os.umask(0)
    try:
        Vault.create(folder, RIGHT)
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600


def test_what_others_may_read_is_refused(folder: Path) -> None:
    Vault.create(folder, RIGHT)
    (folder / FILE).chmod(0o640)
    with pytest.raises(PrivacyError, match=r"mode 640.*chmod 600"):
        Vault.open(folder, RIGHT)
    (folder / FILE).chmod(0o600)
    folder.chmod(0o755)
    with pytest.raises(PrivacyError, match=r"mode 755.*chmod 700"):
        Vault.open(folder, RIGHT)
    (folder / "open").mkdir()
    (folder / "open").chmod(0o750)
    with pytest.raises(PrivacyError, match="mode 750"):
        Vault.create(folder / "open", RIGHT)


def test_a_changed_passphrase_keeps_the_key(folder: Path) -> None:
    made, new = Vault.create(folder, RIGHT), Passphrase("another horse", n=2 * CHEAP)
    made.change_lock(RIGHT, new)
    assert Vault.open(folder, new) == made
    assert json.loads((folder / FILE).read_text())["n"] == 2 * CHEAP
    with pytest.raises(PrivacyError, match="wrong passphrase"):
        Vault.open(folder, RIGHT)
    assert sorted(path.name for path in folder.iterdir()) == [f".{FILE}.lock", FILE]


def test_from_keyring_to_passphrase_leaves_no_entry(folder: Path) -> None:
    backend = InMemory()
    made = Vault.create(folder, Keyring(backend))
    made.change_lock(Keyring(backend), RIGHT)
    assert Vault.open(folder, RIGHT) == made
    assert backend.entries == {}


def test_another_vault_in_its_place_is_not_rewrapped(folder: Path) -> None:
    made = Vault.create(folder, RIGHT)
    (folder / FILE).unlink()
    Vault.create(folder, RIGHT)
    with pytest.raises(PrivacyError, match="replaced"):
        made.change_lock(RIGHT, WRONG)


@pytest.mark.parametrize("field", ["n", "r", "p", "salt", "nonce", "wrapped", "kind", "version"])
def test_every_field_of_the_file_is_checked(folder: Path, field: str) -> None:
    made = Vault.create(folder, RIGHT)
    stored = json.loads((folder / FILE).read_text())
    value = stored[field]
    if isinstance(value, int):
        changed: object = 2 * value
    elif field == "kind":
        changed = "keyring"
    else:
        changed = ("0" if value[0] != "0" else "1") + value[1:]
    for broken in ({**stored, field: changed}, {k: v for k, v in stored.items() if k != field}):
        (folder / FILE).write_text(json.dumps(broken))
        with pytest.raises((PrivacyError, ConfigurationError)):
            Vault.open(folder, RIGHT)
    (folder / FILE).write_text(json.dumps(stored))
    assert Vault.open(folder, RIGHT) == made


@pytest.mark.parametrize("text", ["", "[]", "{", '{"nonce": 1}', "\x00"])
def test_a_file_that_is_no_key_is_named(folder: Path, text: str) -> None:
    Vault.create(folder, RIGHT)
    (folder / FILE).write_text(text)
    with pytest.raises(PrivacyError, match=r"cannot be read.*restore it from a backup"):
        Vault.open(folder, RIGHT)


def test_a_header_cannot_ask_for_all_memory(folder: Path) -> None:
    Vault.create(folder, RIGHT)
    stored = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**stored, "n": 2**40}))
    with pytest.raises(ConfigurationError, match="n must be"):
        Vault.open(folder, RIGHT)


def test_keys_are_hkdf_and_differ_by_purpose_and_context(tmp_path: Path) -> None:
    """HKDF (RFC 5869) by hand: extract is an HMAC with a key of zeros, expand is another function."""
    import hmac

    vault = Vault(tmp_path, bytes(range(32)))
    extracted = hmac.digest(bytes(32), vault.data_key, "sha256")
    info = b'{"context":["a",1],"duet":1,"purpose":"adapters"}'
    assert vault.key("adapters", "a", 1) == HKDFExpand(hashes.SHA256(), 32, info).derive(extracted)
    keys = [
        vault.key("rows"),
        vault.key("adapters"),
        vault.key("adapters", "a", 1),
        vault.key("adapters", "a", "1"),
        vault.key("adapters", "a1"),
        vault.key("adapters", 'a","1'),
        Vault(tmp_path, bytes(32)).key("rows"),
        vault.data_key,
    ]
    assert len(set(keys)) == len(keys)


def test_a_killed_change_leaves_the_old_lock_or_the_new(folder: Path) -> None:
    """Processes that change the passphrase to and fro and are killed: one of both always opens."""
    made, other = Vault.create(folder, RIGHT), "another horse"
    code = (
        "import sys, pathlib; from fl_client.vault import Vault; from fl_client.locks import Passphrase\n"
        f"a, b = (Passphrase(text, n={CHEAP}) for text in sys.argv[2:])\n"
        "vault = Vault.open(pathlib.Path(sys.argv[1]), a)\n"
        "print('ready', flush=True)\n"
        "while True:\n    vault.change_lock(a, b)\n    a, b = b, a\n"
    )
    now, then = RIGHT.secret, other
    root = Path(__file__).parents[2]
    for kill in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(folder), now, then],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        assert child.stdout is not None
        with child.stdout:
            assert child.stdout.readline() == b"ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.5 + 0.11 * kill)
            child.kill()
            child.wait()
        opened = []
        for secret in (now, then):
            try:
                assert Vault.open(folder, Passphrase(secret, n=CHEAP)) == made
                opened.append(secret)
            except PrivacyError:
                continue
        assert len(opened) == 1
        now, then = opened[0], ({RIGHT.secret, other} - {opened[0]}).pop()
