"""What is installed is pinned by hash, and where it is fetched from is left to the machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REGISTRIES = re.compile(
    r"pypi\.org|pythonhosted\.org|registry\.npmjs|registry\.yarnpkg|proxy\.golang|sum\.golang|static\.crates|"
    r"docker\.io|ghcr\.io|gcr\.io|\.pkg\.dev|artifactory\.|"
    r"(index-url|find-links|_INDEX|_INDEX_URL|registry|GOPROXY)[ =:\"']+[a-z]+://",
    re.IGNORECASE,
)
LOCKS_THAT_NAME_A_REGISTRY = re.compile(r"(^|/)(uv\.lock|pylock.*\.toml|poetry\.lock|yarn\.lock|\.npmrc|\.pypirc)$")


def committed() -> list[str]:
    """Return every file that is in the repository, or would be after `git add --all`."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def test_no_file_names_a_registry() -> None:
    texts = {name: (ROOT / name).read_bytes().decode("utf-8", "ignore") for name in committed()}
    assert "Makefile" in texts
    assert not [f"{name}: {found[0]}" for name, text in texts.items() if (found := REGISTRIES.search(text))]
    assert not [name for name in texts if LOCKS_THAT_NAME_A_REGISTRY.search(name)]


def test_no_npm_lock_says_where_a_package_was_resolved() -> None:
    locks = [name for name in committed() if name.endswith("package-lock.json")]
    assert not [name for name in locks if '"resolved": "http' in (ROOT / name).read_text()]


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.name)
def test_every_requirement_has_one_version_and_its_hashes(path: Path) -> None:
    entries = re.split(r"\n(?=[a-z])", path.read_text().strip())
    assert all(re.match(r"[a-z0-9-]+==[^ ]+ ", entry) and "--hash=sha256:" in entry for entry in entries)


def test_every_environment_has_the_same_versions() -> None:
    versions: dict[str, set[str]] = {}
    for path in (ROOT / "requirements").glob("*.txt"):
        for name, version in re.findall(r"^([a-z0-9-]+)==(\S+)", path.read_text(), re.MULTILINE):
            versions.setdefault(name, set()).add(version)
    assert not {name: found for name, found in versions.items() if len(found) > 1}
