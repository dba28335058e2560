"""The bundle that main carries belongs to the notebooks of main."""

from pathlib import Path

import pytest

from common.notebooks import branch

ROOT = Path(__file__).resolve().parents[1]


def test_bundle_and_main_have_not_drifted_apart():
    if not branch.unit_notebooks(ROOT):
        pytest.skip("NO UNIT HAS A NOTEBOOK YET: nothing that could be published")
    assert branch.drift(ROOT) == []
