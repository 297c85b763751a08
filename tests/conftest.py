"""What every test runs under: shapes checked, two threads, no network, no screen.

Shapes are checked in the tests only. The hook rewrites `actwam` while it is imported, so it must come first.
Child processes started by "spawn" do not read this file: they run the plain package, as a user does.
"""

from __future__ import annotations

import os
import sys

import jaxtyping
import torch

if any(name.split(".")[0] == "actwam" for name in sys.modules):
    raise RuntimeError("actwam was imported before tests/conftest.py: its shapes would go unchecked")
jaxtyping.install_import_hook("actwam", "beartype.beartype")

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
# Two threads everywhere: sums in another order differ in their last bits, and some tests compare to 1e-6.
os.environ["OMP_NUM_THREADS"] = "2"
torch.set_num_threads(2)
