"""What every test runs under: shapes checked, one thread, no network, no screen.

Shapes are checked in the tests only. The hook rewrites `actwam` while it is imported, so it must come first.
Child processes started by "spawn" do not read this file: they run the plain package, as a user does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import hypothesis
import jaxtyping
import pytest
import torch

if any(name.split(".")[0] == "actwam" for name in sys.modules):
    raise RuntimeError("actwam was imported before tests/conftest.py: its shapes would go unchecked")
jaxtyping.install_import_hook("actwam", "beartype.beartype")

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
# One thread: tiny models gain nothing from more, and where another process wants the second core, threads
# that wait for one another make every operation ten times slower. Child processes, which may train, have two.
os.environ["OMP_NUM_THREADS"] = "2"
torch.set_num_threads(1)
# The same examples every time, and however slow the machine is.
hypothesis.settings.register_profile("actwam", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("actwam")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No shape checks in this test: it asks what the package itself says of a wrong shape."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
