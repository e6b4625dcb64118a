"""The list of shipped algorithms."""

from __future__ import annotations

import subprocess
import sys

import pytest

from poise_core.algorithms import algorithm_path, list_algorithms


def test_lists_the_known_algorithms() -> None:
    literature = "reinforce_group_baseline rloo grpo dr_grpo dapo gspo cispo gmpo sapo reinforce_plus_plus pass_at_k"
    variants = "bn av vm_av msa fa sa dace cag dcbe"
    assert list_algorithms() == sorted(f"{literature} {variants}".split())


def test_paths_exist() -> None:
    for name in list_algorithms():
        assert algorithm_path(name).is_file()
        assert algorithm_path(name).stem == name


@pytest.mark.parametrize("name", ["ppo", "", "__init__", "../contract", "grpo.py"])
def test_unknown_name_is_answered_with_the_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"no algorithm .* av, bn, .*, vm_av"):
        algorithm_path(name)


def test_listing_imports_neither_torch_nor_a_candidate() -> None:
    code = (
        "import sys, poise_core.algorithms as a; a.list_algorithms(); a.algorithm_path('grpo');"
        "assert 'torch' not in sys.modules;"
        "assert not [m for m in sys.modules if m.startswith('poise_core.algorithms.')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
