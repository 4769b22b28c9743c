"""Wheels that an operator adds to an image: pure Python, read whole and checked before anything of one is used.

The format is that of https://packaging.python.org/en/latest/specifications/binary-distribution-format/.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from pathlib import Path

MAX_WHEEL_BYTES = 32 << 20
"""What one wheel may have, as it is packed."""
MAX_FILES = 4_000
"""How many files the wheels of an image may have together."""
MAX_BYTES = 128 << 20
"""What these may have together, unpacked."""
MAX_NAME_BYTES = 400

_NAME = re.compile(
    r"(?P<name>\w[\w.]*)-(?P<version>[\w.!+]+)(-\d\w*)?-(?P<python>[\w.]+)-(?P<abi>[\w.]+)-(?P<platform>[\w.]+)\.whl"
)
_COMPILED = re.compile(r"\.(so(\.[\d.]+)?|pyd|dylib|dll|exe|a|o|wasm)$", re.IGNORECASE)


class WheelRefused(Exception):
    """A wheel cannot be had or is not taken; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class WheelFile:
    """Where a wheel is, and the SHA-256 that it must have; empty where any will do."""

    path: Path
    sha256: str = ""

    def content(self) -> bytes:
        """Return its bytes.

        Raises:
            WheelRefused: it cannot be read, is too large, or is not the one that was pinned.
        """
        try:
            with self.path.open("rb") as file:
                content = file.read(MAX_WHEEL_BYTES + 1)
        except OSError as error:
            raise WheelRefused(f"the wheel {self.path} cannot be read: {error.strerror}") from None
        if len(content) > MAX_WHEEL_BYTES:
            raise self.refused(f"it has more than {MAX_WHEEL_BYTES >> 20} MiB")
        actual = hashlib.sha256(content).hexdigest()
        if self.sha256 and actual != self.sha256:
            raise self.refused(f"its SHA-256 is {actual}, not {self.sha256}")
        return content

    def refused(self, why: str) -> WheelRefused:
        """Say that it is not taken."""
        return WheelRefused(f"the wheel {self.path} is not taken: {why}")

    def tags(self) -> re.Match[str]:
        """Return what its file name says: `name`, `version`, and the tags `python`, `abi` and `platform`.

        Raises:
            WheelRefused: it is no name of a wheel.
        """
        found = _NAME.fullmatch(self.path.name)
        if found is None:
            raise self.refused("its name is not NAME-VERSION-PYTHON-ABI-PLATFORM.whl")
        return found

    @property
    def label(self) -> tuple[str, str]:
        """The name and version that its file name says; see `tags`."""
        tags = self.tags()
        return tags["name"], tags["version"]


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel that was checked. `files` are what it installs, by their paths below the folder of packages."""

    name: str
    version: str
    files: Mapping[str, bytes]


def unpacked(wheels: Iterable[tuple[WheelFile, bytes]]) -> dict[str, bytes]:
    """Check wheels, and return the files of all of them together.

    Raises:
        WheelRefused: one is malformed, has compiled code, is too large, or has a file or name of another's.
    """
    files: dict[str, bytes] = {}
    owners: dict[str, WheelFile] = {}
    for wheel, content in wheels:
        read = _read(wheel, content, MAX_FILES - len(files), MAX_BYTES - sum(map(len, files.values())))
        for path in (*read.files, _normalized(read.name)):
            if path in owners:
                raise wheel.refused(f"{path} is in {owners[path].path} too")
            owners[path] = wheel
        files.update(read.files)
    return files


def _read(wheel: WheelFile, content: bytes, most_files: int, most_bytes: int) -> Wheel:
    """Check one wheel."""
    named = wheel.tags()
    if (named["abi"], named["platform"]) != ("none", "any") or not re.search(r"\bpy3", named["python"]):
        tags = "-".join(named.group("python", "abi", "platform"))
        raise wheel.refused(f"only pure Python is, with the tags py3-none-any, and not {tags}")
    try:
        files = _files(wheel, content, most_files, most_bytes)
    except (zipfile.BadZipFile, zlib.error, struct.error, NotImplementedError, EOFError, ValueError) as error:
        raise wheel.refused(f"it is no whole zip file: {error}") from None
    about = f"{named['name']}-{named['version']}.dist-info"
    folders = {folder for path in files if (folder := path.partition("/")[0]).endswith(".dist-info")}
    if folders != {about}:
        raise wheel.refused(f"it must have the folder {about}, and no other of that kind")
    _check_record(wheel, files, f"{about}/RECORD")
    _check_pure(wheel, _headers(wheel, files, f"{about}/WHEEL"))
    metadata = _headers(wheel, files, f"{about}/METADATA")
    name, version = str(metadata["Name"]), str(metadata["Version"])
    if (_normalized(name), version) != (_normalized(named["name"]), named["version"].replace("_", "-")):
        raise wheel.refused(f"its METADATA is of {name} {version}")
    return Wheel(name, version, _installed(wheel, files, f"{named['name']}-{named['version']}.data"))


def _files(wheel: WheelFile, content: bytes, most_files: int, most_bytes: int) -> dict[str, bytes]:
    """Return all files of a zip by name, after a look at what it says that they are."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        listed = archive.infolist()
        if len(listed) > most_files:
            raise wheel.refused(f"the wheels of an image may have {MAX_FILES:,} files, and with it there are more")
        if sum(info.file_size for info in listed) > most_bytes:
            raise wheel.refused(f"the wheels of an image may unpack to {MAX_BYTES >> 20} MiB, and with it it is more")
        for info in listed:
            _check_entry(wheel, info)
        names = Counter(info.filename for info in listed)
        if twice := next((name for name, times in names.items() if times > 1), ""):
            raise wheel.refused(f"{twice} is in it twice")
        files = {info.filename: archive.read(info) for info in listed if not info.is_dir()}
    for name in files:
        if above := next((path for path in _above(name) if path in files), ""):
            raise wheel.refused(f"{above} is a file, and has {name} below it")
    return files


def _above(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]


def _check_entry(wheel: WheelFile, info: zipfile.ZipInfo) -> None:
    name = info.filename.removesuffix("/")
    shown = repr(info.orig_filename[:100])
    if (
        info.filename != info.orig_filename  # what follows a null character, or a separator of another system's
        or {"", ".", ".."} & set(name.split("/"))
        or re.search(r"[\x00-\x1f\x7f\\:]", name)
        or len(name.encode()) > MAX_NAME_BYTES
    ):
        raise wheel.refused(f"{shown} is no name of a file in it")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        raise wheel.refused(f"{shown} is neither a file nor a folder")
    if info.flag_bits & 1:
        raise wheel.refused(f"{shown} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise wheel.refused(f"{shown} is packed in another way than deflate")
    if _COMPILED.search(name):
        raise wheel.refused(f"{shown} is compiled code, and only pure Python is taken")


def _check_record(wheel: WheelFile, files: Mapping[str, bytes], record: str) -> None:
    """Make sure that RECORD has every file, as it is, and nothing else."""
    listed: dict[str, str] = {}
    for row in csv.reader(io.StringIO(_text(wheel, files, record))):
        if len(row) != 3 or row[0] in listed:
            raise wheel.refused(f"its RECORD has a wrong line: {','.join(row)[:100]!r}")
        listed[row[0]] = row[1]
    unsigned = {record, f"{record}.jws", f"{record}.p7s"}
    if wrong := (files.keys() - unsigned) ^ (listed.keys() - unsigned):
        raise wheel.refused(f"its RECORD and its files are not the same: {min(wrong)}")
    for name in files.keys() - unsigned:
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[name]).digest()).rstrip(b"=").decode()
        if listed[name] != f"sha256={digest}":
            raise wheel.refused(f"{name} is not as its RECORD says")


def _check_pure(wheel: WheelFile, about: Message) -> None:
    if str(about["Wheel-Version"]).partition(".")[0] != "1":
        raise wheel.refused(f"its form is {about['Wheel-Version']}, and only 1 is known")
    if str(about["Root-Is-Purelib"]).lower() != "true":
        raise wheel.refused("it says that it is not pure Python")
    for tag in about.get_all("Tag", []):
        if not str(tag).endswith("-none-any"):
            raise wheel.refused(f"it is for {tag} and not pure Python")


def _installed(wheel: WheelFile, files: Mapping[str, bytes], data: str) -> dict[str, bytes]:
    """Return what is put among the packages: not scripts, headers and the like."""
    found: dict[str, bytes] = {}
    for name, content in files.items():
        path = name
        if name.startswith(f"{data}/"):
            kind, _, path = name.removeprefix(f"{data}/").partition("/")
            if kind == "platlib":
                raise wheel.refused(f"{name} is for one platform")
            if kind != "purelib":
                continue
        if path in found:
            raise wheel.refused(f"{path} is in it twice")
        found[path] = content
    return found


def _headers(wheel: WheelFile, files: Mapping[str, bytes], name: str) -> Message:
    return BytesParser().parsebytes(_text(wheel, files, name).encode())


def _text(wheel: WheelFile, files: Mapping[str, bytes], name: str) -> str:
    if name not in files:
        raise wheel.refused(f"it has no {name}")
    try:
        return files[name].decode()
    except UnicodeDecodeError:
        raise wheel.refused(f"{name} is not UTF-8") from None


def _normalized(name: str) -> str:
    """Return a distribution's name as https://packaging.python.org/en/latest/specifications/name-normalization/ has
    it."""
    return re.sub(r"[-_.]+", "-", name).lower()
