"""Only the server's own user may read what the server keeps: texts of tenants, their accounts, a key."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile

from rlm_server.config.settings import ConfigError


def check_private(folder: Path) -> None:
    """Make the folder where it is missing, and refuse to start where others can read it or anything right in it.

    Raises:
        ConfigError: they can, or somebody else owns it, or it cannot be written to; the message says what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"data_dir: {folder} cannot be written to: {error.strerror}") from None
    for path in _kept(folder):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue  # it went away meanwhile
        if found.st_uid != os.geteuid():
            raise ConfigError(
                f"data_dir: {path} belongs to user {found.st_uid}, and the server runs as {os.geteuid()}: "
                f"run `chown -R {os.geteuid()} {folder}`, or serve as that user"
            )
        if found.st_mode & 0o077:
            raise ConfigError(
                f"data_dir: others than its owner may use {path} (mode {stat.S_IMODE(found.st_mode):o}): "
                f"run `chmod -R go= {folder}`"
            )


SESSION_SECRET = "session-secret"  # noqa: S105 - its name
"""The file of the secret that stored sessions are sealed with: 64 hexadecimal digits."""


def session_secret(folder: Path) -> bytes:
    """Return the secret that stored sessions in a folder are sealed with. Where there is none yet, it is made.

    Raises:
        ConfigError: it is not what was made, or others than its owner may use it.
    """
    path = folder / SESSION_SECRET
    if not path.exists():
        _make_secret(path)
    found = path.stat()
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise ConfigError(f"others than its owner may use {path} (mode {mode:o}): run `chmod go= {path}`")
    try:
        secret = bytes.fromhex(path.read_text())
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise ConfigError(
            f"{path} is not what the server made: put it back from a backup, or remove it with the folder "
            f"{folder / 'sessions'}, which cannot be read without it"
        )
    return secret


def _make_secret(path: Path) -> None:
    """Make the secret. It is there as a whole or not at all, whoever is killed; one that is there stays."""
    new = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink(missing_ok=True)


def _kept(folder: Path) -> Iterator[Path]:
    yield folder
    yield from sorted(folder.iterdir())
