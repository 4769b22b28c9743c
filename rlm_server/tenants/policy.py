"""A tenant's policy: its share of slots that tenants compete for, and which models and images are for it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase


@dataclass(frozen=True, slots=True)
class Policy:
    """A tenant's own policy.

    Where several tenants wait for slots, it gets a share in proportion to `weight`. Of a route's fallbacks, those may
    answer that `fallbacks` names; None allows all of them. It may ask the `models`, and start from the `images`, that
    are named; all where none is. Names may be patterns, in which `*` stands for anything and `?` for one character.
    """

    weight: float = 1.0
    fallbacks: frozenset[str] | None = frozenset()
    models: tuple[str, ...] = ()
    images: tuple[str, ...] = ()

    def allows(self, fallback: str) -> bool:
        """Whether this model may answer in place of another."""
        return self.permits(fallback) and (self.fallbacks is None or _among(fallback, self.fallbacks))

    def permits(self, model: str) -> bool:
        """Whether this model may be asked."""
        return not self.models or _among(model, self.models)

    def images_of(self, images: Collection[str]) -> tuple[str, ...]:
        """Of these images, those that may be started from, in their order."""
        return tuple(image for image in images if not self.images or _among(image, self.images))


class Weights(Mapping[str, float]):
    """The weights of policies, always as they are now."""

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        self._policies = policies

    def __getitem__(self, tenant: str) -> float:
        return self._policies[tenant].weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._policies)

    def __len__(self) -> int:
        return len(self._policies)


def is_pattern(name: str) -> bool:
    """Whether this is a pattern, and no name."""
    return any(character in name for character in "*?[")


def _among(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
