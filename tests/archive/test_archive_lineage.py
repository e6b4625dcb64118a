"""Parent links: a small family by hand.

a ── b ── d
 │    └── e (also from c)
 └── c
f
"""

from __future__ import annotations

import pytest

from poise_core.archive import ArchiveError, Lineage, TreeNode


@pytest.fixture
def family() -> Lineage:
    return Lineage.build([("a", []), ("b", ["a"]), ("c", ["a"]), ("d", ["b"]), ("e", ["b", "c"]), ("f", [])])


def test_relatives(family: Lineage) -> None:
    assert family.roots() == ["a", "f"]
    assert family.parent("e") == "b"
    assert family.parent("a") is None
    assert family.children("a") == ["b", "c"]
    assert family.children("c") == ["e"], "a donor of mechanisms has the child too"
    assert family.ancestors("e") == ["b", "c", "a"], "nearest first, each once"
    assert family.descendants("a") == ["b", "c", "d", "e"]
    assert family.descendants("f") == []
    assert [family.depth(name) for name in "abdf"] == [0, 1, 2, 0]


def test_the_tree_holds_each_candidate_once_under_its_primary_parent(family: Lineage) -> None:
    tree = family.tree("a")
    assert tree == TreeNode("a", (TreeNode("b", (TreeNode("d"), TreeNode("e"))), TreeNode("c")))
    assert family.tree("b") == TreeNode("b", (TreeNode("d"), TreeNode("e")))


def test_a_missing_parent_a_loop_and_an_unknown_candidate_are_named() -> None:
    with pytest.raises(ArchiveError, match="candidate b names the parent gone"):
        Lineage.build([("a", []), ("b", ["gone"])])
    with pytest.raises(ArchiveError, match="candidate b descends from itself"):
        Lineage.build([("a", []), ("b", ["c"]), ("c", ["b"])])
    with pytest.raises(ArchiveError, match="no candidate 'z'"):
        Lineage.build([("a", [])]).children("z")


def test_a_very_deep_lineage_needs_no_recursion() -> None:
    deep = Lineage.build([("n0", []), *((f"n{i}", [f"n{i - 1}"]) for i in range(1, 5000))])
    assert deep.depth("n4999") == 4999
    assert len(deep.ancestors("n4999")) == 4999
    assert deep.tree("n0").children[0].candidate_id == "n1"
