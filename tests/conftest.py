"""What tests of several rooms share: a tiny model and tiny populations on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that ``load_base`` loads a random model of width 24 from."""
    from tests.tiny_runs import save_tiny_model  # here, because it imports torch

    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_population_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """From votes, pairs or mixed to the folder of such a population."""
    from tests.tiny_runs import tiny_population

    folders: dict[str, Path] = {}

    def folder(form: str = "mixed") -> Path:
        if form not in folders:
            folders[form] = tmp_path_factory.mktemp(form)
            tiny_population(form).save(folders[form])
        return folders[form]

    return folder
