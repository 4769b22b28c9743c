"""The cache of images: used only if it is exactly what this installation built, and made anew otherwise."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from io import BufferedReader
from pathlib import Path
from typing import Any

import pytest

from sandbox.limits import Limits
from sandbox.vm import engine, file_hashes, image
from sandbox.vm.image import ImageError, ImageSpec, Loaded, cache_folder, prepare, states
from sandbox.vm.image_cache import ImageCache, NotOurs
from sandbox.vm.instance import Instance
from sandbox.vm.session import Session
from sandbox.vm.wheels import WheelFile
from tests.sandbox.repl import Repl
from tests.sandbox.vm.wheel_maker import made, packed

TINY = ImageSpec("tiny", ("json",))


def link_tree(source: Path, target: Path) -> None:
    """Copy a folder by hard links: its files may be replaced, never changed."""
    shutil.copytree(source, target, copy_function=os.link, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def built(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache that holds the compiled module and a small image."""
    folder = tmp_path_factory.mktemp("cache", numbered=True)
    folder.chmod(0o700)
    module = cache_folder() / f"module-{image._module_key()}"
    (folder / module.name).mkdir()
    for file in module.iterdir():
        try:
            os.link(file, folder / module.name / file.name)
        except OSError:  # another file system
            shutil.copy2(file, folder / module.name / file.name)
    prepare([TINY], folder).program.close()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def cache(built: Path, tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    link_tree(built, folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def never_compile(monkeypatch: pytest.MonkeyPatch, built: Path) -> list[Path]:
    """Compiling takes minutes: hand out what was compiled before, and note that it was asked for."""
    asked: list[Path] = []
    good = (built / f"module-{image._module_key()}" / "guest.cwasm").read_bytes

    def compiled(wasm: Path) -> bytes:
        asked.append(wasm)
        return good()

    monkeypatch.setattr(engine, "compile_module", compiled)
    return asked


def entry(cache: Path, kind: str) -> Path:
    (found,) = cache.glob(f"{kind}-*")
    return found


def load(cache: Path) -> list[str]:
    """Prepare the small image, see that it works, and return what had to be done for it."""
    steps: list[str] = []
    loaded = prepare([TINY], cache, steps.append)
    session = Session(loaded.program, loaded.images["tiny"], Limits())
    assert Repl(session).show("import json; json.dumps([1])") == "'[1]'"
    session.close()
    loaded.program.close()
    return steps


def replace(path: Path, change: Callable[[bytes], bytes]) -> None:
    data = change(path.read_bytes())
    path.unlink()
    path.write_bytes(data)


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def test_what_is_intact_is_used_as_it_is(cache: Path, never_compile: list[Path]) -> None:
    assert load(cache) == []
    assert never_compile == []


@pytest.fixture
def remembering(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The memory of an image that was loaded, and whose hash is remembered."""
    monkeypatch.setattr(file_hashes, "SETTLED_SECONDS", 0.0)
    memory = entry(cache, "golden-tiny") / "memory"
    replace(memory, bytes)  # a file of its own, which may be changed
    assert load(cache) == []
    assert str(memory) in json.loads((cache / "hashes.json").read_text())
    return memory


def test_what_is_remembered_to_be_intact_is_not_hashed_again(
    cache: Path, remembering: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    honest = file_hashes.file_hash

    def noted(file: BufferedReader) -> str:
        hashed.append(Path(file.name).name)
        return honest(file)

    monkeypatch.setattr(file_hashes, "file_hash", noted)
    assert load(cache) == []
    assert "memory" not in hashed, "the others are links, and whoever links a file changes it"


def test_a_bit_that_is_flipped_is_noticed_where_the_files_time_is_put_back(cache: Path, remembering: Path) -> None:
    status = remembering.stat()
    with remembering.open("r+b") as file:
        file.seek(status.st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(remembering, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert remembering.stat().st_mtime_ns == status.st_mtime_ns
    assert "damaged" in load(cache)[0]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda e: replace(e / "memory", flip),
        lambda e: replace(e / "memory", lambda data: data[:-4096]),
        lambda e: (e / "memory").unlink(),
        lambda e: (e / "manifest.json").unlink(),
        lambda e: replace(e / "manifest.json", flip),
        lambda e: replace(e / "manifest.json", lambda _: b"[]"),
        lambda e: (e / "extra").write_bytes(b""),
        lambda e: e.chmod(0o770),
    ],
    ids=[
        "flipped bit",
        "cut",
        "no memory",
        "no manifest",
        "altered manifest",
        "list",
        "extra file",
        "writable by the group",
    ],
)
def test_an_image_that_is_not_as_it_was_built_is_built_again(
    cache: Path, never_compile: list[Path], tamper: Callable[[Path], object]
) -> None:
    good = (entry(cache, "golden-tiny") / "memory").stat().st_size
    tamper(entry(cache, "golden-tiny"))
    steps = load(cache)
    assert "damaged" in steps[0]
    assert any("starting Python" in step for step in steps)
    assert (entry(cache, "golden-tiny") / "memory").stat().st_size == good
    assert never_compile == []


def test_an_entry_made_for_something_else_is_not_used(cache: Path) -> None:
    name = entry(cache, "golden-tiny")
    manifest = json.loads((name / "manifest.json").read_text())
    manifest["entry"] = "golden-other-0"
    replace(name / "manifest.json", lambda _: json.dumps(manifest).encode())
    assert "damaged" in load(cache)[0]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda e: replace(e / "guest.cwasm", flip),
        lambda e: replace(e / "guest.cwasm", lambda data: data[: len(data) // 2]),
        lambda e: replace(e / "stdlib.zip", flip),
    ],
    ids=["flipped bit of code", "cut code", "flipped bit of the library"],
)
def test_a_module_that_is_not_as_it_was_compiled_is_compiled_again(
    cache: Path, never_compile: list[Path], tamper: Callable[[Path], object]
) -> None:
    tamper(entry(cache, "module"))
    assert any("compiling" in step for step in load(cache))
    assert len(never_compile) == 1


def test_another_prelude_is_another_image(cache: Path) -> None:
    assert ImageSpec("tiny", ("json", "csv")).prelude() != TINY.prelude()
    loaded = prepare([ImageSpec("tiny", ("json", "csv"))], cache)
    loaded.program.close()
    assert len(list(cache.glob("golden-tiny-*"))) == 2


def test_what_an_interrupted_build_left_is_cleared_away(cache: Path) -> None:
    (cache / "building-x" / "entry").mkdir(parents=True)
    load(cache)
    assert list(cache.glob("building-*")) == []


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_cache_others_can_write_to_is_refused(cache: Path, mode: int) -> None:
    cache.chmod(mode)
    with pytest.raises(ImageError, match="writable by nobody else"):
        prepare([TINY], cache)


def test_an_artifact_that_is_not_the_pinned_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, never_compile: list[Path]
) -> None:
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    (artifacts / "python-snapshot.wasm").write_bytes(b"\0asm\1\0\0\0")
    (artifacts / "python-stdlib.zip").write_bytes(b"PK")
    monkeypatch.setenv("RLM_GUEST_ARTIFACTS", str(artifacts))
    with pytest.raises(ImageError, match=r"python-snapshot\.wasm is not the pinned artifact: its SHA-256 is"):
        prepare([TINY], tmp_path / "empty")
    assert never_compile == []


def test_an_image_that_does_not_start_says_why(cache: Path) -> None:
    with pytest.raises(ImageError, match="'broken' does not start") as error:
        prepare([ImageSpec("broken", ("no_such_module",))], cache)
    assert "no_such_module" in str(error.value)
    assert list(cache.glob("golden-broken-*")) == []


def test_an_image_that_leaves_files_behind_is_refused(cache: Path, tmp_path: Path) -> None:
    module = tmp_path / "untidy.py"
    module.write_text("open('/tmp/left', 'w').close()")
    with pytest.raises(ImageError, match="leaves files behind"):
        prepare([ImageSpec("untidy", (), {"untidy": module})], cache)


def test_an_image_whose_objects_could_not_all_be_shared_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image, "Limits", partial(Limits, frame_nodes=100))
    with pytest.raises(ImageError, match=r"(?s)'unshared' cannot be settled: .*more than 100 values"):
        prepare([ImageSpec("unshared", ())], cache)
    assert list(cache.glob("golden-unshared-*")) == []


def test_an_image_that_goes_on_when_its_time_is_up_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_ENDLESS", ("while True: pass", "'this ends by itself'"))
    with pytest.raises(ImageError, match="'endless' is not stopped when its time is up: None"):
        prepare([ImageSpec("endless", ())], cache)
    assert list(cache.glob("golden-endless-*")) == []


def test_an_image_that_uses_the_page_by_which_it_is_stopped_is_refused(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = image._warmed

    def written(guest: Instance, name: str) -> bytearray:
        warm = honest(guest, name)
        warm[7] = 1
        return warm

    monkeypatch.setattr(image, "_warmed", written)
    with pytest.raises(ImageError, match="'writes' uses the first page of its memory"):
        prepare([ImageSpec("writes", ())], cache)


def test_an_applications_modules_are_there_from_the_start(cache: Path, tmp_path: Path) -> None:
    module = tmp_path / "greeting.py"
    module.write_text("import _runner\ndef greet(): return 'hello'\n_runner.reserved['greet'] = greet\n")
    loaded = prepare([ImageSpec("greets", (), {"greeting": module})], cache)
    session = Session(loaded.program, loaded.images["greets"], Limits())
    repl = Repl(session)
    assert repl.show("greet()") == "'hello'"
    turn = repl.run("greet = None; y = 1")
    assert [variable.name for variable in turn.variables] == ["y"]
    assert repl.show("greet()") == "'hello'"
    session.close()
    loaded.program.close()


def on_a_read_only_disk(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have nothing in a folder be written."""
    opened = Path.open

    def only_read(path: Path, mode: str = "r", *others: Any, **named: Any) -> Any:
        if path.is_relative_to(folder) and mode != "r" and mode != "rb":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, mode, *others, **named)

    monkeypatch.setattr(Path, "open", only_read)


def test_a_cache_that_is_only_read_gives_what_it_has_and_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ImageCache.opened(tmp_path, lambda _: None) as cache:
        built = cache.entry("whole", lambda into: void((into / "file").write_text("text")))
        cache.entry("altered", lambda into: void((into / "file").write_text("text")))
    (tmp_path / "altered" / "file").write_text("else")
    before = sorted(path for path in tmp_path.rglob("*") if path.name != "hashes.json")
    on_a_read_only_disk(monkeypatch, tmp_path)
    with ImageCache.opened(tmp_path, lambda _: None) as cache:
        assert cache.entry("whole", lambda _: None) == built
        for missing in ("altered", "other"):
            with pytest.raises(NotOurs, match=f"has no whole {missing}.*XDG_CACHE_HOME"):
                cache.entry(missing, lambda _: None)
    assert sorted(path for path in tmp_path.rglob("*") if path.name != "hashes.json") == before


def void(_: object) -> None:
    pass


def with_wheel(path: Path, imports: tuple[str, ...] = ()) -> ImageSpec:
    return ImageSpec("wheeled", imports, wheels=(WheelFile(path),))


def test_what_a_wheel_installs_is_imported_read_and_cannot_be_changed(cache: Path, tmp_path: Path) -> None:
    files = {
        "greeting/__init__.py": "made = 0\nfrom greeting.words import WORD\n",
        "greeting/words.py": "import os\nWORD = open(os.path.join(os.path.dirname(__file__), 'word.txt')).read()\n",
        "greeting/word.txt": "hello",
        "greeting/late.py": "x = 7\n",
    }
    loaded = prepare([TINY, with_wheel(made(tmp_path, files=files), ("greeting",))], cache)
    session = Session(loaded.program, loaded.images["wheeled"], Limits())
    repl = Repl(session)
    assert repl.show("import sys; 'greeting.words' in sys.modules, 'greeting.late' in sys.modules") == "(True, False)"
    assert repl.show("import greeting; greeting.WORD") == "'hello'"
    assert repl.show("import greeting.late; greeting.late.x") == "7"
    assert repl.show("import importlib.metadata; importlib.metadata.version('greeting')") == "'1.2'"
    assert repl.show("import importlib.resources as r; (r.files('greeting') / 'word.txt').read_text()") == "'hello'"
    for change in ("open(greeting.__file__, 'w')", "__import__('os').remove(greeting.__file__)"):
        turn = repl.run(change)
        assert turn.error is not None
        assert "Read-only file system" in turn.error.message
    session.close()
    other = Session(loaded.program, loaded.images["tiny"], Limits())
    error = Repl(other).run("import greeting").error
    assert error is not None
    assert error.type == "ModuleNotFoundError"
    other.close()
    loaded.program.close()


def test_an_image_is_another_where_its_wheel_is(cache: Path, tmp_path: Path) -> None:
    def word(*, steps: int) -> str:
        told: list[str] = []
        loaded = prepare([with_wheel(tmp_path / "greeting-1.2-py3-none-any.whl", ("greeting",))], cache, told.append)
        session = Session(loaded.program, loaded.images["wheeled"], Limits())
        shown = str(Repl(session).show("import greeting; greeting.greet()"))
        session.close()
        loaded.program.close()
        assert len(told) == steps
        return shown

    made(tmp_path)
    assert word(steps=1) == "'hello'"
    assert word(steps=0) == "'hello'"
    made(tmp_path, files={"greeting.py": "def greet(): return 'another'"})
    assert word(steps=1) == "'another'"
    made(tmp_path)
    assert word(steps=0) == "'hello'"


def test_a_wheel_that_is_not_taken_leaves_no_image(cache: Path, tmp_path: Path) -> None:
    path = made(tmp_path, files={"fast.so": b"\x7fELF"})
    with pytest.raises(ImageError, match=r"greeting-1.2-py3-none-any.whl is not taken: 'fast.so' is compiled code"):
        prepare([with_wheel(path)], cache)
    with pytest.raises(ImageError, match=r"(?s)the image 'wheeled' does not start: .*no_such"):
        prepare([with_wheel(made(tmp_path, files={"greeting.py": "import no_such"}), ("greeting",))], cache)
    assert not list(cache.glob("golden-wheeled-*"))


def test_a_package_that_many_use_works_from_a_wheel(cache: Path, tmp_path: Path) -> None:
    """`sortedcontainers`, put together again from what was installed of it."""
    found = metadata.distribution("sortedcontainers")
    files = {str(file): Path(str(file.locate())).read_bytes() for file in found.files or [] if file.suffix != ".pyc"}
    kept = {
        name: of for name, of in files.items() if name.rpartition("/")[2] not in {"INSTALLER", "REQUESTED", "RECORD"}
    }
    path = packed(tmp_path / f"sortedcontainers-{found.version}-py2.py3-none-any.whl", kept)
    loaded = prepare([with_wheel(path, ("sortedcontainers",))], cache)
    session = Session(loaded.program, loaded.images["wheeled"], Limits())
    assert Repl(session).show("from sortedcontainers import SortedList; list(SortedList([3, 1, 2]))") == "[1, 2, 3]"
    session.close()
    loaded.program.close()


def test_what_there_is_of_images_is_told_without_building_any(cache: Path, tmp_path: Path) -> None:
    specs = [TINY, with_wheel(made(tmp_path))]
    before = sorted(cache.iterdir())
    tiny, wheeled = states(specs, cache)
    assert (tiny.spec, tiny.wheels) == (TINY, ())
    assert tiny.size == (entry(cache, "golden-tiny") / "memory").stat().st_size
    assert (wheeled.wheels, wheeled.size) == ((("greeting", "1.2"),), None)
    assert sorted(cache.iterdir()) == before
    prepare(specs, cache).program.close()
    assert states(specs, cache)[1].size
    (tmp_path / "greeting-1.2-py3-none-any.whl").unlink()
    with pytest.raises(ImageError, match=r"greeting-1.2-py3-none-any.whl cannot be read: No such file"):
        states(specs, cache)
