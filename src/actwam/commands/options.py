"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

Json = Annotated[bool, tyro.conf.arg(name="json")]
Scene = Literal["clean", "randomized"]
Precision = Literal["auto", "fp32", "bf16"]
Weights = Literal["int8", "fp8"]
