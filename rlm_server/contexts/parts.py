"""The parts that documents and a prompt have in common, as a table that is worked on column by column."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from rlm_server.contexts.fingerprints import Integers

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts that a document and the prompt may have in common, a column each; documents by their rows."""

    row: Integers
    start: Integers
    """The first character in the document."""
    prompt: Integers
    """The first character in the prompt."""
    size: Integers
    """Characters."""

    @classmethod
    def none(cls) -> Parts:
        """Make an empty table."""
        return cls(*(np.zeros(0, np.int64) for _ in fields(cls)))

    @property
    def columns(self) -> tuple[Integers, ...]:
        """The four columns."""
        return self.row, self.start, self.prompt, self.size

    @property
    def end(self) -> Integers:
        """The first character after each in the prompt."""
        return self.prompt + self.size

    def __len__(self) -> int:
        return len(self.row)

    def chosen(self, index: Integers | slice) -> Parts:
        """Return some, in the order of the index."""
        return Parts(*(column[index] for column in self.columns))

    def with_all(self, others: Parts) -> Parts:
        """Return these and others."""
        return Parts(*(np.concatenate(both) for both in zip(self.columns, others.columns, strict=True)))

    def by_diagonal(self) -> tuple[Integers, Flags]:
        """Order the parts by diagonals: two are on one if they are of one document, and equally far from the prompt.

        Returns:
            the order, by documents, then diagonals, then places in the prompt; and where in it a diagonal begins.
        """
        diagonal = self.start - self.prompt
        order = np.lexsort((self.prompt, diagonal, self.row))
        return order, _begins(self.row[order]) | _begins(diagonal[order])

    def joined(self) -> Parts:
        """Join parts that continue each other; the result is by documents, then in the order of the prompt."""
        if not len(self):
            return self
        order, begins = self.by_diagonal()
        parts = self.chosen(order)
        begins[1:] |= parts.prompt[1:] > parts.end[:-1]
        heads = np.flatnonzero(begins)
        row, start, prompt, _ = parts.chosen(heads).columns
        joined = Parts(row, start, prompt, np.maximum.reduceat(parts.end, heads) - prompt)
        return joined.chosen(np.lexsort((start, prompt, row)))

    def spread(self, several: int) -> Integers:
        """Choose about `several` parts that lie far apart in the prompt. Of parts that overlap, the first is chosen.

        No two are on one diagonal, because they might become the same part when they are extended.
        """
        order = np.argsort(self.prompt, kind="stable")
        apart = self.prompt[order][1:] > np.maximum.accumulate(self.end[order])[:-1]
        group = np.empty(len(self), np.int64)
        group[order] = np.append(0, np.cumsum(apart))
        groups = int(np.count_nonzero(apart)) + 1
        order = np.argsort(group, kind="stable")
        number = np.arange(len(self))
        rank_in_group = number - np.maximum.accumulate(np.where(_begins(group[order]), number, 0))
        some = np.zeros(groups, np.bool_)
        some[np.linspace(0, groups - 1, min(several, groups), dtype=np.int64)] = True
        chosen = order[some[group[order]] & (rank_in_group < max(1, several // groups))]
        order, begins = self.chosen(chosen).by_diagonal()
        return chosen[order[begins]]

    def within(self, others: Parts) -> Flags:
        """Tell which are within one of `others`, a table that `outermost` returned."""
        number = np.searchsorted(others.prompt, self.prompt, "right") - 1
        return (number >= 0) & (self.end <= others.end[number])

    def outermost(self) -> Parts:
        """Leave out what is within another part of the prompt; the result is in the order of the prompt."""
        parts = self.chosen(np.lexsort((self.start, self.row, -self.size, self.prompt)))
        end = parts.end
        reached = np.zeros(len(parts), np.int64)
        np.maximum.accumulate(end[:-1], out=reached[1:])
        return parts.chosen(np.flatnonzero(end > reached))


def _begins(column: Integers) -> Flags:
    """Tell which values are not the one before."""
    return np.append(True, column[1:] != column[:-1])
