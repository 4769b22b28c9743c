"""Makes wheels, good ones and others."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

GREETING = "def greet(): return 'hello'\n"


def installed(
    name: str = "greeting",
    version: str = "1.2",
    files: Mapping[str, bytes | str] | None = None,
    about: Mapping[str, str] | None = None,
) -> dict[str, bytes]:
    """The files of a wheel, without its RECORD. `about` has the lines of WHEEL that are other than usual."""
    head = {"Wheel-Version": "1.0", "Root-Is-Purelib": "true", "Tag": "py3-none-any"}
    head |= about or {}
    own = {f"{name}.py": GREETING} if files is None else files
    folder = f"{name}-{version}.dist-info"
    return {
        **{path: content.encode() if isinstance(content, str) else content for path, content in own.items()},
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{folder}/WHEEL": "".join(f"{key}: {value}\n" for key, value in head.items()).encode(),
    }


def record(files: Mapping[str, bytes]) -> bytes:
    """The RECORD of these files."""
    hashes = {path: base64.urlsafe_b64encode(hashlib.sha256(of).digest()).rstrip(b"=") for path, of in files.items()}
    lines = [f"{path},sha256={hashes[path].decode()},{len(content)}" for path, content in files.items()]
    (folder,) = {path.partition("/")[0] for path in files if ".dist-info/" in path}
    return "\n".join([*lines, f"{folder}/RECORD,,", ""]).encode()


def packed(path: Path, files: Mapping[str, bytes], recorded: bytes | None = None) -> Path:
    """Write a wheel of these files, and of their RECORD or another."""
    (folder,) = {name.partition("/")[0] for name in files if ".dist-info/" in name}
    all_of_it = {**files, f"{folder}/RECORD": record(files) if recorded is None else recorded}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in all_of_it.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # at no time: the same once more
    return path


def made(
    folder: Path, name: str = "greeting", version: str = "1.2", files: Mapping[str, bytes | str] | None = None
) -> Path:
    """Write a good wheel."""
    return packed(folder / f"{name}-{version}-py3-none-any.whl", installed(name, version, files))
