"""Read the settings of a run from a TOML file, every one checked by name.

A config may begin with `base = "NAME"`: the name of one that comes with the package, or a path
from the config's own folder. It then holds what differs. Tables are merged key by key; lists,
`[[data]]` among them, replace those of the base.
"""

import contextlib
import dataclasses
import difflib
import os
import sys
import types
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from clipag_plugins.arguments import fraction
from clipag_plugins.errors import ClipagError
from clipag_plugins.finetune.settings import STAGE_KEYS, Config, check

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST_FILE = 100_000  # bytes of a config
CONFIGS = Path(__file__).parent / "configs"


def read(name: str, changes: Sequence[str] = ()) -> Config:
    """Read a config: a file, or the name of one that comes with the package.

    Args:
        name: a path, or a name as `names()` lists.
        changes: settings that replace the file's, as "lr=1e-4" or "threat.eps=0.5".

    Raises:
        ClipagError: there is no such file, or something in it is not a setting.
    """
    values = _load(name, Path(), ())
    for change in changes:
        _change(values, change)
    if isinstance(stages := values.get("stages"), list) and stages:
        _inherit(values, stages)
    config: Config = _build(Config, values, "")
    check(config)
    return config


def names() -> str:
    """List the configs that come with the package."""
    return ", ".join(sorted(path.stem for path in CONFIGS.glob("*.toml")))


def _load(name: str, folder: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Read a file's values, merged into those of its bases; `above` are the files that led here."""
    path = folder / Path(name).expanduser()
    # os.path, not Path: a name that is too long counts as missing.
    if not os.path.isfile(path):  # noqa: PTH113
        path = CONFIGS / f"{name}.toml"
    if not os.path.isfile(path):  # noqa: PTH113
        raise ClipagError(f"There is no config {name!r}: name a .toml file, or {names()}.")
    path = path.resolve()
    if path in above:
        raise ClipagError(f"{path} is its own base: remove one `base`.")
    if path.stat().st_size > LARGEST_FILE:
        raise ClipagError(f"{path} has more than {LARGEST_FILE:,} bytes: name a config.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ClipagError(f"{path} is not valid TOML: {error}.") from error
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ClipagError(f"base is {base!r}: name one config, as a string.")
    return _merged(_load(base, path.parent, (*above, path)), values)


def _merged(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` on top of `base`: tables key by key, all else replaced."""
    merged = dict(base)
    for key, value in values.items():
        below = merged.get(key)
        tables = isinstance(below, dict) and isinstance(value, dict)
        merged[key] = _merged(below, value) if tables else value  # type: ignore[arg-type]
    return merged


def _inherit(values: dict[str, Any], stages: list[Any]) -> None:
    """Give each stage the run's settings that it does not set, and the run the stages' steps."""
    run = {key: value for key, value in values.items() if key not in ("stages", "steps")}
    for number, stage in enumerate(stages):
        if not isinstance(stage, dict):
            raise ClipagError(f"stages.{number} is {stage!r}: write it as a table, [[stages]].")
        _check_names(stage, STAGE_KEYS, f"stages.{number}.")
        if "steps" not in stage:
            raise ClipagError(f"stages.{number} has no steps: say how many updates it takes.")
    values["stages"] = [_merged(run, stage) for stage in stages]
    if all(type(stage["steps"]) is int for stage in stages):  # else _build says what is wrong
        values.setdefault("steps", sum(stage["steps"] for stage in stages))


def _change(values: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals:
        raise ClipagError(f"`changes` {change}: write it as KEY=VALUE, for example lr=1e-4.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a word without its quotation marks
    *parents, last = key.strip().split(".")
    place: Any = values
    for parent in parents:
        if isinstance(place, list) and parent.isdecimal() and int(parent) < len(place):
            place = place[int(parent)]
        elif isinstance(place, dict):
            place = place.setdefault(parent, {})
        else:
            raise ClipagError(f"`changes` {change}: there is no {key!r} to set.")
    if not isinstance(place, dict):
        raise ClipagError(f"`changes` {change}: there is no {key!r} to set.")
    place[last] = value


def _check_names(keys: Iterable[str], settings: Sequence[str], where: str) -> None:
    for key in keys:
        if key not in settings:
            near = difflib.get_close_matches(key, settings, 1)
            listed = ", ".join(settings)
            remedy = f"did you mean {where}{near[0]}?" if near else f"known are {listed}."
            raise ClipagError(f"{where}{key} is no setting: {remedy}")


def _build(kind: Any, values: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    _check_names(values, [*hints], where)
    return kind(**{key: _value(hints[key], value, where + key) for key, value in values.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return _build(hint, value, f"{where}.")
    if get_origin(hint) is types.UnionType:
        hint = next((h for h in get_args(hint) if isinstance(value, get_origin(h) or h)), hint)
    if get_origin(hint) is list and isinstance(value, list):
        return [_value(get_args(hint)[0], v, f"{where}.{i}") for i, v in enumerate(value)]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    if hint is float and isinstance(value, str):
        with contextlib.suppress(ValueError, OverflowError):
            return fraction(value)
    plain = get_origin(hint) or hint
    if not isinstance(plain, type) or type(value) is not plain:
        word = hint.__name__ if isinstance(hint, type) else str(hint)
        raise ClipagError(f"{where} is {value!r}, which is no {word}: correct the config.")
    return value
