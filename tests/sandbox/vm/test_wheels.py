"""A wheel is taken whole, as it says that it is, or refused by name before anything of it is used."""

from __future__ import annotations

import hashlib
import random
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from sandbox.vm import wheels
from sandbox.vm.wheels import WheelFile, WheelRefused, unpacked
from tests.sandbox.vm.wheel_maker import installed, made, packed, record

NAME = "greeting-1.2-py3-none-any.whl"


def read(*paths: Path) -> dict[str, bytes]:
    found = [WheelFile(path) for path in paths]
    return unpacked((wheel, wheel.content()) for wheel in found)


def refused(path: Path, *others: Path) -> str:
    """Why a wheel is not taken."""
    with pytest.raises(WheelRefused) as caught:
        read(*others, path)
    said = str(caught.value)
    assert str(path) in said
    assert len(said) < 1_000
    return said.partition(": ")[2]


def test_a_good_wheel_gives_all_its_files(tmp_path: Path) -> None:
    own: dict[str, bytes | str] = {
        "greeting/__init__.py": "x = 1\n",
        "greeting/data.json": b"{}",
        "greeting/deep/er.py": "",
    }
    files = read(made(tmp_path, files=own))
    assert {path: files[path].decode() for path in own} == {
        "greeting/__init__.py": "x = 1\n",
        "greeting/data.json": "{}",
        "greeting/deep/er.py": "",
    }
    assert files.keys() - own.keys() == {f"greeting-1.2.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD")}


def test_what_is_for_the_packages_comes_there_and_scripts_are_left_out(tmp_path: Path) -> None:
    data = "greeting-1.2.data"
    files = read(made(tmp_path, files={f"{data}/purelib/more.py": "", f"{data}/scripts/greet": "#!python"}))
    assert [path for path in files if "dist-info" not in path] == ["more.py"]


def test_a_wheel_that_a_real_tool_made_is_taken(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "Some.Thing"\nversion = "2.0.post1"\n'
    )
    (tmp_path / "some_thing").mkdir()
    (tmp_path / "some_thing" / "__init__.py").write_text("")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=tmp_path, check=True, capture_output=True
    )
    (path,) = (tmp_path / "dist").glob("*.whl")
    assert "some_thing/__init__.py" in read(path)


def with_entry(name: str | zipfile.ZipInfo, content: bytes = b"") -> Callable[[Path], None]:
    """A wheel with one entry more, which its RECORD has."""

    def write(path: Path) -> None:
        files = installed()
        plain = name if isinstance(name, str) else name.filename
        packed(path, files, record({**files, plain: content}))
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, content)

    return write


def of(
    recorded: Callable[[bytes], bytes] = bytes, name: str = "greeting", version: str = "1.2", **about: str
) -> Callable[[Path], None]:
    head = {key.replace("_", "-"): value for key, value in about.items()}
    return lambda path: void(packed(path, files := installed(name, version, about=head), recorded(record(files))))


def linked() -> zipfile.ZipInfo:
    link = zipfile.ZipInfo("link.py")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    return link


def without(name: str) -> Callable[[Path], None]:
    files = {path: content for path, content in installed().items() if not path.endswith(name)}
    return lambda path: void(packed(path, files))


def twice(path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        with_entry("greeting.py", b"other")(path)


def bomb(path: Path) -> None:
    """A file of 129 MiB that says that it has one byte."""
    packed(path, {**installed(), "bomb.py": bytes(wheels.MAX_BYTES + 1)})


def lying(path: Path) -> None:
    bomb(path)
    data = path.read_bytes()
    size = (wheels.MAX_BYTES + 1).to_bytes(4, "little")
    assert size in data
    path.write_bytes(data.replace(size, (1).to_bytes(4, "little")))


def void(_: object) -> None:
    pass


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "no zip": (lambda path: void(path.write_bytes(b"text")), "it is no whole zip file"),
    "empty": (lambda path: void(path.write_bytes(b"")), "it is no whole zip file"),
    "above": (with_entry("../evil.py"), "'../evil.py' is no name of a file in it"),
    "absolute": (with_entry("/evil.py"), "'/evil.py' is no name"),
    "inside and up": (with_entry("a/../../evil.py"), "is no name"),
    "a dot": (with_entry("./evil.py"), "is no name"),
    "twice a slash": (with_entry("a//evil.py"), "is no name"),
    "another system's": (with_entry("a\\evil.py"), "is no name"),
    "a drive": (with_entry("C:evil.py"), "is no name"),
    "control": (with_entry("a\nb.py"), "is no name"),
    "long": (with_entry("a" * 401), "is no name"),
    "a link": (with_entry(linked(), b"/etc/passwd"), "'link.py' is neither a file nor a folder"),
    "twice": (twice, "greeting.py is in it twice"),
    "below a file": (with_entry("greeting.py/x.py"), "greeting.py is a file, and has greeting.py/x.py below it"),
    "shared object": (with_entry("greeting/fast.so"), "'greeting/fast.so' is compiled code"),
    "shared object of a version": (with_entry("lib.so.1.2"), "'lib.so.1.2' is compiled code"),
    "of another system": (with_entry("fast.PYD"), "'fast.PYD' is compiled code"),
    "not in RECORD": (of(lambda text: text.replace(b"greeting.py", b"other.py")), "its RECORD and its files are not"),
    "another hash": (of(lambda text: text.replace(b"sha256=", b"sha256=x", 1)), "is not as its RECORD says"),
    "another kind of hash": (of(lambda text: text.replace(b"sha256=", b"md5=")), "is not as its RECORD says"),
    "a line of RECORD": (of(lambda text: text + b"one,two\n"), "its RECORD has a wrong line: 'one,two'"),
    "RECORD twice": (of(lambda text: text + text), "its RECORD has a wrong line"),
    "RECORD is no text": (of(lambda text: b"\xff"), "greeting-1.2.dist-info/RECORD is not UTF-8"),
    "no WHEEL": (without("/WHEEL"), "it has no greeting-1.2.dist-info/WHEEL"),
    "no METADATA": (without("/METADATA"), "it has no greeting-1.2.dist-info/METADATA"),
    "of another": (of(name="other"), "it must have the folder greeting-1.2.dist-info"),
    "of another version": (of(version="1.3"), "it must have the folder greeting-1.2.dist-info"),
    "not pure": (of(Root_Is_Purelib="false"), "it says that it is not pure Python"),
    "for a platform": (of(Tag="cp312-cp312-linux_x86_64"), "it is for cp312-cp312-linux_x86_64 and not pure Python"),
    "of a later form": (of(Wheel_Version="2.0"), "its form is 2.0, and only 1 is known"),
    "for one platform": (with_entry("greeting-1.2.data/platlib/x.py"), "x.py is for one platform"),
    "bomb": (bomb, "may unpack to 128 MiB"),
    "lying bomb": (lying, "it is no whole zip file"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wheel_that_is_wrong_is_refused_by_name(tmp_path: Path, case: str) -> None:
    make, why = WRONG[case]
    make(path := tmp_path / NAME)
    assert why in refused(path)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("greeting.whl", "its name is not NAME-VERSION-PYTHON-ABI-PLATFORM.whl"),
        ("greeting-1.2-cp312-cp312-manylinux_2_17_x86_64.whl", "only pure Python is, with the tags py3-none-any"),
        ("greeting-1.2-py3-abi3-any.whl", "and not py3-abi3-any"),
        ("greeting-1.2-py2-none-any.whl", "and not py2-none-any"),
        ("greeting-1.2-py3-none-wasi.whl", "and not py3-none-wasi"),
        ("other-1.2-py3-none-any.whl", "it must have the folder other-1.2.dist-info"),
    ],
)
def test_what_its_name_says_is_looked_at(tmp_path: Path, name: str, why: str) -> None:
    assert why in refused(made(tmp_path).rename(tmp_path / name))


def test_a_wheel_that_is_pinned_is_that_one_or_none(tmp_path: Path) -> None:
    path = made(tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert WheelFile(path, digest).content() == path.read_bytes()
    made(tmp_path, files={"greeting.py": "evil = 1"})
    with pytest.raises(WheelRefused, match=f"{NAME} is not taken: its SHA-256 is [0-9a-f]{{64}}, not {digest}"):
        WheelFile(path, digest).content()


def test_a_wheel_that_cannot_be_read_or_is_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WheelRefused, match=f"{NAME} cannot be read: No such file"):
        WheelFile(tmp_path / NAME).content()
    monkeypatch.setattr(wheels, "MAX_WHEEL_BYTES", 100)
    with pytest.raises(WheelRefused, match=f"{NAME} is not taken: it has more than"):
        WheelFile(made(tmp_path)).content()


def test_the_wheels_of_an_image_share_its_bounds_and_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(tmp_path)
    other = made(tmp_path, "other", files={"greeting.py": ""})
    assert refused(other, first) == f"greeting.py is in {first} too"
    again = made(tmp_path, version="1.3", files={"more.py": ""})
    assert refused(again, first) == f"greeting is in {first} too"
    more = made(tmp_path, "more")
    assert len(read(first, more)) == 8
    monkeypatch.setattr(wheels, "MAX_FILES", 7)
    assert "may have 7 files" in refused(more, first)


def test_a_wheel_that_is_damaged_anywhere_is_taken_as_it_was_or_refused(tmp_path: Path) -> None:
    good = made(tmp_path).read_bytes()
    whole, damaged, chance = read(tmp_path / NAME), tmp_path / "damaged" / NAME, random.Random(1)
    damaged.parent.mkdir()
    for place in range(len(good)):
        changed = bytearray(good)
        changed[place] ^= 1 << chance.randrange(8)
        damaged.write_bytes(changed)
        with suppress(WheelRefused):
            assert read(damaged) == whole
        damaged.write_bytes(good[:place])
        refused(damaged)
