"""The bundle that main carries belongs to the notebooks of main."""

from pathlib import Path

from common.notebooks import branch

ROOT = Path(__file__).resolve().parents[1]


def test_bundle_and_main_have_not_drifted_apart():
    assert branch.drift(ROOT) == []
