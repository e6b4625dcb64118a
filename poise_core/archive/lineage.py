"""The lineage of candidates, from the parent ids in the ``candidates`` table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from poise_core.archive.errors import ArchiveError


@dataclass(frozen=True)
class TreeNode:
    """A candidate with the children whose primary parent it is."""

    candidate_id: str
    children: tuple[TreeNode, ...] = ()


@dataclass(frozen=True)
class Lineage:
    """Parent links of all candidates, in the order in which they were made.

    A candidate's primary parent is the first of its ``parent_ids``; the others are donors of mechanisms. Trees follow the
    primary parent; ``ancestors`` and ``descendants`` follow all links.
    """

    parents: dict[str, tuple[str, ...]]
    _children: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def build(cls, links: Iterable[tuple[str, Iterable[str]]]) -> Lineage:
        """Build the lineage from pairs of candidate id and parent ids.

        Raises:
            ArchiveError: a parent is not among the candidates, or a candidate descends from itself.
        """
        parents = {candidate: tuple(given) for candidate, given in links}
        children: dict[str, list[str]] = {candidate: [] for candidate in parents}
        for candidate, given in parents.items():
            for parent in given:
                if parent not in parents:
                    raise ArchiveError(f"candidate {candidate} names the parent {parent}, which the archive lacks")
                children[parent].append(candidate)
        waiting = {candidate: len(given) for candidate, given in parents.items()}
        settled = [candidate for candidate, count in waiting.items() if count == 0]
        for candidate in settled:  # the list grows during the loop: a candidate is appended after all its parents
            for child in children[candidate]:
                waiting[child] -= 1
                if waiting[child] == 0:
                    settled.append(child)
        if len(settled) < len(parents):
            looped = next(candidate for candidate, count in waiting.items() if count > 0)
            raise ArchiveError(f"candidate {looped} descends from itself")
        return cls(parents, children)

    @classmethod
    def of_rows(cls, rows: Iterable[Mapping[str, Any]]) -> Lineage:
        """Build the lineage from rows of ``candidates``, in the order of their generations.

        Raises:
            ArchiveError: see ``build``.
        """
        # the slot comes before the time, because clocks may be set back and differ between machines
        keys = ("generation", "proposal_id", "created_at", "candidate_id")
        ordered = sorted(
            rows, key=lambda row: tuple(row[key] or "" if key == "proposal_id" else row[key] for key in keys)
        )
        return cls.build((row["candidate_id"], row["parent_ids"]) for row in ordered)

    def _known(self, candidate_id: str) -> str:
        if candidate_id not in self.parents:
            raise ArchiveError(f"no candidate {candidate_id!r} in the archive")
        return candidate_id

    def roots(self) -> list[str]:
        """Return the candidates without a parent."""
        return [candidate for candidate, given in self.parents.items() if not given]

    def parent(self, candidate_id: str) -> str | None:
        """Return the primary parent; ``None`` for a root."""
        given = self.parents[self._known(candidate_id)]
        return given[0] if given else None

    def children(self, candidate_id: str) -> list[str]:
        """Return the candidates that name this one among their parents."""
        return list(self._children[self._known(candidate_id)])

    def ancestors(self, candidate_id: str) -> list[str]:
        """Return all candidates from which this one descends, the nearest first, each once."""
        return self._reach(candidate_id, self.parents)

    def descendants(self, candidate_id: str) -> list[str]:
        """Return all candidates that descend from this one, the nearest first, each once."""
        return self._reach(candidate_id, self._children)

    def depth(self, candidate_id: str) -> int:
        """Return the number of steps to the root along primary parents."""
        steps, parent = 0, self.parent(candidate_id)
        while parent is not None:
            steps, parent = steps + 1, self.parent(parent)
        return steps

    def tree(self, candidate_id: str) -> TreeNode:
        """Return the candidate with its descendants, each once and under its primary parent."""
        order, position = [self._known(candidate_id)], 0
        while position < len(order):  # breadth first, so that deep trees need no recursion
            order += self._own_children(order[position])
            position += 1
        built: dict[str, TreeNode] = {}
        for candidate in reversed(order):
            built[candidate] = TreeNode(candidate, tuple(built.pop(child) for child in self._own_children(candidate)))
        return built[candidate_id]

    def _own_children(self, candidate_id: str) -> list[str]:
        return [child for child in self._children[candidate_id] if self.parents[child][0] == candidate_id]

    def _reach(self, candidate_id: str, links: dict[str, tuple[str, ...]] | dict[str, list[str]]) -> list[str]:
        found: dict[str, None] = {self._known(candidate_id): None}
        frontier = [candidate_id]
        while frontier:
            frontier = [near for candidate in frontier for near in links[candidate] if near not in found]
            found.update(dict.fromkeys(frontier))
        return list(found)[1:]
