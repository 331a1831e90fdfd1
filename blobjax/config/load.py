"""From YAML files and dotted overrides to a validated Config, with errors that name file, key and fix."""

import copy
import difflib
import re
from collections.abc import Collection, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from blobjax.config import foreign
from blobjax.config.document import LARGEST_FILE, parse_yaml, read_yaml, shown
from blobjax.config.errors import BadInputError, brief
from blobjax.config.explain import explain, not_utf8
from blobjax.config.ladder import dial
from blobjax.config.scalars import annotation_at, as_text, escaped, holds_text, unencodable
from blobjax.config.schema import Config, Data


def configs_dir() -> Path:
    """The folder of shipped configs: inside the package once installed, beside it in a source tree."""
    package = Path(str(resources.files("blobjax")))
    installed = package / "_configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped() -> list[str]:
    """Names of the shipped configs, such as `laptop` and `models/125m`; a study is not one."""
    root = configs_dir()
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not name.startswith("studies/"))


def shipped_studies() -> list[str]:
    """Names of the shipped studies, such as `lr-sensitivity`."""
    return sorted(path.stem for path in (configs_dir() / "studies").glob("*.yaml"))


def find(name: str, beside: Path | None = None) -> Path:
    """The file that a path or a shipped name means.

    Args:
      name: a path, or a name in configs/ without its suffix.
      beside: the folder relative paths are also looked up in (that of an including file).

    Raises:
      BadInputError: neither a file nor a shipped name; the nearest name is suggested.
    """
    candidates = [Path(name), configs_dir() / f"{name}.yaml"]
    if beside is not None:
        candidates.insert(0, beside / name)
    if name.removeprefix("studies/") in shipped_studies() and not Path(name).is_file():
        study = name.removeprefix("studies/")
        raise BadInputError(f"'{name}' is a study, not the config of one run; start it with: blobjax study {study}")
    return _find(name, candidates, "config", shipped())


def find_study(name: str) -> Path:
    """As `find`, for a path, a name in configs/studies/, or the directory of a study that was begun."""
    candidates = [Path(name), configs_dir() / "studies" / f"{name}.yaml", Path(name) / "study.yaml"]
    return _find(name, candidates, "study", shipped_studies())


def _find(name: str, candidates: list[Path], kind: str, known: list[str]) -> Path:
    try:
        for path in candidates:
            if path.is_file():
                return path
        is_folder = Path(name).is_dir()
    except (OSError, ValueError):  # a name too long for the file system, or with a NUL in it
        raise BadInputError(f"{kind} {name[:80]!r}… cannot be the name of a file") from None
    if is_folder:
        raise BadInputError(f"{kind} '{name}' is a directory; give a file in it")
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"shipped: {', '.join(known)}"
    raise BadInputError(f"{kind} '{name}' is neither a file nor a shipped name; {hint}")


def _read_with_includes(path: Path, including: tuple[Path, ...] = ()) -> tuple[dict, dict[str, str]]:
    """A file's keys merged over those of its includes, and for each dotted key the file it came from."""
    if path.resolve() in (parent.resolve() for parent in including):
        chain = " -> ".join(shown(each) for each in (*including, path))
        raise BadInputError(f"{shown(path)}: includes itself: {chain}")
    if including:
        return _include(_read_included(path), path, including, hidden=True)
    return _include(read_yaml(path), path, including)


def _read_included(path: Path) -> dict:
    """As `read_yaml`, but an error shows no content of a file that is no config."""
    try:
        content = read_yaml(path)
    except BadInputError as error:
        raise foreign.without_quotes(error) from None
    foreign.check(content, shown(path))
    return content


def _include(
    content: dict, path: Path, including: tuple[Path, ...], hidden: bool = False
) -> tuple[dict, dict[str, str]]:
    """Keys that stand in a file, merged over those of the files they include.

    Args:
      hidden: no value of this file is shown.
    """
    origin = shown(path)
    includes = content.pop("include", [])
    merged: dict = {}
    origins: dict[str, str] = {}
    for number, name in enumerate(includes if isinstance(includes, list) else [includes], 1):
        if not isinstance(name, str):
            what = "nothing (null); remove the line" if name is None else brief(name)
            given = "" if hidden else f", not {what}"
            raise BadInputError(f"{origin}: include: expected the path or name of a config{given}")
        try:
            included = find(name, path.parent)
        except BadInputError as error:
            wrong = f"file {number} is neither a file nor a shipped name" if hidden else error
            raise BadInputError(f"{origin}: include: {wrong}") from None
        below, below_origins = _read_with_includes(included, (*including, path))
        _merge(merged, below)
        origins.update(below_origins)
    _merge(merged, content)
    origins.update({key: origin for key in _dotted(content)})
    return merged, origins


# A mixture is one thing: another one replaces it instead of being merged into it.
_WHOLE = {("data", "mixture")}


def _merge(into: dict, other: dict, at: tuple[str, ...] = ()) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict) and (*at, key) not in _WHOLE:
            _merge(into[key], value, (*at, key))
        else:
            into[key] = value


def _dotted(content: dict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in content.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, dict):
            keys += _dotted(value, f"{prefix}{key}.")
    return keys


class Setting(NamedTuple):
    """One key set to a value, and where that was asked for."""

    key: str
    value: Any
    origin: str = "override"


def parse_override(override: str) -> Setting:
    """Reads one `dotted.key=value`, the value as YAML, or as it is written where the key holds text.

    Raises:
      BadInputError: it has another form.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        given = override if len(override) < 200 else f"{override[:200]}…"
        raise BadInputError(f"override '{given}' is not of the form dotted.key=value, such as model.d_model=512")
    origin = f"override {key[:200]}"
    if len(text) > LARGEST_FILE:
        raise BadInputError(f"{origin}: the value has {len(text) / 1e6:.1f} MB; at most 1 MB is read")
    annotation = annotation_at(key.split("."), Config)
    if not holds_text(annotation):
        return Setting(key, parse_yaml(text, origin, annotation))
    try:
        value = as_text(text, annotation)
    except yaml.YAMLError:
        raise BadInputError(f"{origin}: the quotes do not match in {text[:60]}") from None
    # Only a key that can hold nothing has taken this as nothing.
    if value is not None and (word := text.strip()) in ("null", "~"):
        # With the shell's quotes, which would else take away the inner ones.
        raise BadInputError(
            f"override: {key}: expected text, not nothing (null); for the word itself quote it: \"{key}='{word}'\""
        )
    return Setting(key, value)


def _set(content: dict, origins: dict[str, str], setting: Setting) -> None:
    key, value, origin = setting
    parts = key.split(".")
    node = content
    for depth, part in enumerate(parts[:-1], 1):
        if node.get(part) is None:
            # One weight is changed within the mixture that would have been, be it the default one.
            node[part] = dict(Data().mixture) if tuple(parts[:depth]) == ("data", "mixture") else {}
            origins.setdefault(".".join(parts[:depth]), origin)
        node = node[part]
        if not isinstance(node, dict):
            raise BadInputError(f"{origin} {key}: {'.'.join(parts[:depth])} is a value, not a section")
    node[parts[-1]] = value
    given = [key, *(f"{key}.{inner}" for inner in (_dotted(value) if isinstance(value, dict) else []))]
    for stale in [name for name in origins if name.startswith(f"{key}.")]:
        del origins[stale]
    origins.update(dict.fromkeys(given, origin))


def load(name: str, overrides: Sequence[str] = (), size: Any = None) -> Config:
    """Reads a config by path or shipped name, applies `dotted.key=value` overrides and validates the whole.

    Args:
      size: such as `5M`: what follows from it (config/ladder.py) is set over the file and under the overrides.

    Raises:
      BadInputError: every problem found, one line each.
    """
    path = find(name)
    content, origins = _read_with_includes(path)
    content.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-") or "run")
    settings: list[Setting] = []
    problems: list[str] = []
    for override in overrides:
        try:
            settings.append(parse_override(override))
        except BadInputError as error:
            problems += error.problems
    return _resolve(content, origins, settings, problems, _included(origins, path), size)


def load_inline(content: dict, path: Path, settings: Sequence[Setting], size: Any = None) -> Config:
    """As `load`, for a config that stands inside another file: a study's base.

    Args:
      content: its keys and values; `include` is followed.
      path: the file it stands in, named in errors, and beside which includes are looked for.
      settings: what is set on top of it, in order.
      size: as of `load`.

    Raises:
      BadInputError: every problem found, one line each.
    """
    # A copy all through: what is set for one cell must not be found in the next.
    merged, origins = _include(copy.deepcopy(content), path, (path,))
    return _resolve(merged, origins, settings, [], _included(origins, path), size)


def _included(origins: dict[str, str], path: Path) -> set[str]:
    """The files, as errors name them, that were reached by `include` from one."""
    return set(origins.values()) - {shown(path)}


def _from_size(size: Any, content: dict, settings: Sequence[Setting]) -> list[Setting]:
    """What a size sets; its batch is counted in sequences of the length that the file and the settings come to."""
    data = content.get("data")
    seq_len = data.get("seq_len") if isinstance(data, dict) else None
    for setting in settings:
        if setting.key == "data.seq_len":
            seq_len = setting.value
        elif setting.key == "data" and isinstance(setting.value, dict):
            seq_len = setting.value.get("seq_len")
    if not isinstance(seq_len, int) or seq_len < 1:  # not given, or wrong, which is then said
        seq_len = Data().seq_len
    return [Setting(key, value, f"--size {size}") for key, value in dial(size, seq_len).items()]


def _resolve(
    content: dict,
    origins: dict[str, str],
    settings: Sequence[Setting],
    problems: list[str],
    included: Collection[str],
    size: Any = None,
) -> Config:
    problems = list(problems)
    if size is not None:
        try:
            settings = [*_from_size(size, content, settings), *settings]
        except BadInputError as error:
            problems += error.problems
    for setting in settings:
        try:
            _set(content, origins, setting)
        except BadInputError as error:
            problems += error.problems
    # Validation and all that writes a text later would end with a traceback.
    garbled = dict.fromkeys(unencodable(content))
    content, origins = escaped(content), escaped(origins)
    problems += [not_utf8(key, origins) for key in garbled]
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        problems += explain(error, content, origins, reported=garbled, included=included)
    if problems:
        raise BadInputError(*problems)
    return config


def dump(config: Config) -> str:
    """The resolved config as YAML that `load` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100, allow_unicode=True)
