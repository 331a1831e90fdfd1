"""From YAML files and dotted overrides to a validated Config, with errors that name file, key and fix."""

import difflib
import re
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from blobjax.config.errors import BadInputError
from blobjax.config.schema import Config


def configs_dir() -> Path:
    """The folder of shipped configs: inside the package once installed, beside it in a source tree."""
    package = Path(str(resources.files("blobjax")))
    installed = package / "_configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped() -> list[str]:
    """Names of the shipped configs, such as `laptop` and `models/125m`."""
    root = configs_dir()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


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
    for path in candidates:
        if path.is_file():
            return path
    near = difflib.get_close_matches(name, shipped(), 1)
    hint = f"did you mean '{near[0]}'?" if near else f"shipped configs: {', '.join(shipped())}"
    raise BadInputError(f"config '{name}' is neither a file nor a shipped name; {hint}")


# YAML 1.1 reads 1e-3 as a string; every user of a trainer means the number.
_FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$")


class _Loader(yaml.SafeLoader):
    """Safe YAML, with numbers such as 1e-3 as floats and duplicate keys refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            keys = [self.construct_object(key) for key, _ in node.value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.MarkedYAMLError(problem=f"key '{twice}' stands twice", problem_mark=node.start_mark)
        return mapping


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _parse_yaml(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}" if mark else origin
        raise BadInputError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None


def _read(path: Path, including: tuple[Path, ...] = ()) -> tuple[dict, dict[str, str]]:
    """A file's keys merged over those of its includes, and for each dotted key the file it came from."""
    if path.resolve() in including:
        raise BadInputError(f"{path}: includes itself through {' -> '.join(str(p) for p in including)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(f"{path}: cannot be read: {error}") from None
    content = _parse_yaml(text, str(path))
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise BadInputError(f"{path}: expected keys and values at the top, not {type(content).__name__}")
    includes = content.pop("include", [])
    merged: dict = {}
    origins: dict[str, str] = {}
    for name in [includes] if isinstance(includes, str) else includes:
        if not isinstance(name, str):
            raise BadInputError(f"{path}: include: expected the path or name of a config, not {name!r}")
        below, below_origins = _read(find(name, path.parent), (*including, path.resolve()))
        _merge(merged, below)
        origins.update(below_origins)
    _merge(merged, content)
    origins.update({key: str(path) for key in _dotted(content)})
    return merged, origins


# A mapping under these keys replaces the inherited one instead of being merged into it: a mixture is one thing.
_WHOLE = {"mixture"}


def _merge(into: dict, other: dict) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict) and key not in _WHOLE:
            _merge(into[key], value)
        else:
            into[key] = value


def _dotted(content: dict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in content.items():
        keys.append(f"{prefix}{key}")
        if isinstance(value, dict):
            keys += _dotted(value, f"{prefix}{key}.")
    return keys


def _override(content: dict, origins: dict[str, str], override: str) -> None:
    """Applies one `dotted.key=value`, the value read as YAML."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise BadInputError(f"override '{override}' is not of the form dotted.key=value, such as model.d_model=512")
    value = _parse_yaml(text, f"override {key}")
    node = content
    for depth, part in enumerate(parts[:-1]):
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise BadInputError(f"override {key}: {'.'.join(parts[: depth + 1])} is a value, not a section")
    node[parts[-1]] = value
    origins[".".join(parts)] = "override"


def load(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Reads a config by path or shipped name, applies `dotted.key=value` overrides and validates the whole.

    Raises:
      BadInputError: every problem found, one line each.
    """
    path = find(name)
    content, origins = _read(path)
    content.setdefault("name", path.stem)
    for override in overrides:
        _override(content, origins, override)
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise BadInputError(*[_explain(problem, origins, path) for problem in error.errors()]) from None


def _explain(problem: Any, origins: dict[str, str], path: Path) -> str:
    """One line for one validation problem: where it was given, the key, what was expected, the nearest key."""
    location = [str(part) for part in problem["loc"]]
    # Pydantic ends the location of a failed union with the alternative's name; a reader wants the key.
    while location and ".".join(location) not in origins and len(location) > 1 and problem["type"] != "missing":
        location.pop()
    key = ".".join(location)
    origin = origins.get(key, str(path))
    where = key if origin == "override" else f"{origin}: {key}" if key else origin
    if problem["type"] == "extra_forbidden":
        known = _fields_at([str(part) for part in problem["loc"][:-1]])
        near = difflib.get_close_matches(location[-1], known, 1)
        hint = f"did you mean '{'.'.join([*location[:-1], near[0]])}'?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:] if message.startswith(("Input ", "Field ")) else message
    given = problem["input"]
    if isinstance(given, str | int | float) and problem["type"] != "value_error":
        message += f", not {given!r}"
    return f"{where}: {message}"


def _fields_at(location: list[str]) -> list[str]:
    """The keys a section has, found by walking the schema along a location."""
    section: Any = Config
    for part in location:
        field = section.model_fields.get(part) if isinstance(section, type) and issubclass(section, BaseModel) else None
        if field is None:
            # Inside a dict of sections (data.sources.NAME): the key itself is free, its value is the section.
            section = next((a for a in get_args(section) if isinstance(a, type) and issubclass(a, BaseModel)), Config)
            continue
        options = [field.annotation, *get_args(field.annotation)]
        section = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), field.annotation)
    return list(section.model_fields) if isinstance(section, type) and issubclass(section, BaseModel) else []


def dump(config: Config) -> str:
    """The resolved config as YAML that `load` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100, allow_unicode=True)
