"""YAML files that people write: read as untrusted input, refused where they do not say what they should."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: Path, what: str, needed: Collection[str], optional: Collection[str] = ()) -> dict[str, Any]:
    """The keys and values of a file that describes `what`: all that are `needed`, and no others but `optional` ones.

    Raises ValueError, one line with the file and the key, on a file that cannot be read, and on a key that is missing,
    unknown, or stands twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        data, twice = yaml.safe_load(text), _twice(yaml.compose(text, yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    if twice:
        raise ValueError(f"{path}: key {twice} stands twice; keep one")
    if not isinstance(data, dict):
        raise ValueError(f"{path}: must hold the keys {', '.join(needed)}")
    require_keys(path, data, what, needed, optional)
    return data


def require_keys(
    where: Path | str, data: dict[str, Any], what: str, needed: Collection[str], optional: Collection[str] = ()
) -> None:
    """Raises ValueError, beginning with `where`, on a key of a table that is missing or unknown."""
    missing, unknown = [key for key in needed if key not in data], [k for k in data if k not in (*needed, *optional)]
    if missing or unknown:
        wrong = [*(f"missing key {key}" for key in missing), *(f"unknown key {key}" for key in unknown)]
        may = f" and may have {', '.join(optional)}" if optional else ""
        raise ValueError(f"{where}: {', '.join(wrong)}; {what} has {', '.join(needed)}{may}")


def require_value(where: Path | str, key: str, value: Any, fits: bool, expected: str) -> None:
    """Raises ValueError unless the value of a key fits."""
    if not fits:
        raise ValueError(f"{where}: {key} is {value!r}, expected {expected}")


def _twice(node: Any) -> str | None:
    """The first key of a YAML table, or of a table in it, that YAML would silently let the later one win over."""
    if not isinstance(node, yaml.MappingNode):
        return None
    keys = [key.value for key, _ in node.value]
    own = next((key for key in keys if keys.count(key) > 1), None)
    return own or next((found for _, value in node.value if (found := _twice(value))), None)
