"""Validation errors as lines for people: where it was given, which key, what was expected, the nearest right key."""

import difflib
import re
from collections.abc import Collection
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from blobjax.config import foreign
from blobjax.config.closest import suggest
from blobjax.config.errors import brief
from blobjax.config.scalars import annotation_at, holds_text
from blobjax.config.schema import Config

# What pydantic's error types expect, in words; {…} are filled from the error's context.
_EXPECTED = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "an integer"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), "keys and values"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    "too_long": "at most {max_length} items",
    "string_type": "text",
    "invalid_key": "text as a key",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-' only, a letter or digit first",
    "finite_number": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
}


def explain(
    error: ValidationError,
    content: dict,
    origins: dict[str, str],
    schema: type[BaseModel] = Config,
    reported: Collection[str] = (),
    included: Collection[str] = (),
) -> list[str]:
    """Lines for everything that is wrong in a config, or in what another schema describes.

    Args:
      error: what validating `content` raised.
      content: the merged keys and values that were validated.
      origins: for each dotted key given, the file it came from, or `override`.
      schema: what was validated against.
      reported: dotted keys that are known to be wrong, and of which a line has been written.
      included: those of the origins whose values are not shown (config/foreign.py).
    """
    by_key: dict[str, list[Any]] = {}
    for problem in error.errors():
        key = ".".join(_path(problem, content))
        if key not in reported:
            by_key.setdefault(key, []).append(problem)
    lines = [_explain_key(key, problems, origins, schema, included) for key, problems in by_key.items() if key]
    wrong = [*filter(None, by_key), *reported]
    # Pydantic checks what must hold between keys only when every key is right. Without the wrong ones the rest can be
    # checked now; what then involves a wrong key, or its default in its place, is no finding.
    found = by_key.get("", [])
    if wrong:
        found = _recheck(content, wrong, schema)
    between = [line for problem in found for line in problem["msg"].removeprefix("Value error, ").splitlines()]
    between = [line for line in between if not any(mentions(line, key) for key in wrong)]
    hidden = [key for key, origin in origins.items() if origin in included and _free(content, key, schema)]
    for line in between:
        shown = foreign.without_values(line) if any(key in line for key in hidden) else line
        lines.append(_with_origins(shown, origins))
    return lines


def _free(content: Any, key: str, schema: type[BaseModel]) -> bool:
    """Whether a key's value is a text of any content, or a list with such; a duration that is right is none."""
    path = key.split(".")
    for part in path:
        content = content.get(part) if isinstance(content, dict) else None
    return isinstance(content, str | list) and "Duration" not in str(annotation_at(path, schema))


def not_utf8(key: str, origins: dict[str, str]) -> str:
    """The line of a key that UTF-8 cannot hold, or whose text it cannot."""
    where = f"{_origin(key, origins)}: {key}"
    return f"{where}: expected text, not bytes or half a character that UTF-8 cannot hold; write it in UTF-8"


def mentions(line: str, key: str) -> bool:
    """Whether a line speaks of a key, of one inside it, or of one around it."""
    return any(name == key or name.startswith(f"{key}.") or key.startswith(f"{name}.") for name in _keys_in(line))


def _keys_in(line: str) -> list[str]:
    sections = "|".join(Config.model_fields)
    return re.findall(rf"\b(?:{sections})(?:\.[\w-]+)+", line)


def _path(problem: Any, content: Any) -> list[str]:
    """The key that a problem is about: pydantic appends names of union members and of positions to it."""
    path: list[str] = []
    for part in problem["loc"]:
        in_dict = isinstance(content, dict) and part in content
        in_list = isinstance(content, list) and isinstance(part, int) and part < len(content)
        if in_dict or in_list:
            content = content[part]
        elif problem["type"] == "missing" and isinstance(content, dict):
            return [*path, str(part)]
        else:
            break
        path.append(str(part))
    return path


def _explain_key(
    key: str, problems: list[Any], origins: dict[str, str], schema: type[BaseModel], included: Collection[str]
) -> str:
    origin = _origin(key, origins)
    where = f"{origin}: {key}"
    first = problems[0]
    if first["type"] == "extra_forbidden":
        return f"{where}: unknown key; {_suggest_key(key, schema)}"
    if first["type"] == "missing" and isinstance(first["loc"][-1], int):
        return f"{where}: needs {first['loc'][-1] + 1} or more items, not {len(first['input'])}"
    if first["type"] == "missing":
        return f"{where}: required, and not given"
    expected = list(dict.fromkeys(_expected(problem) for problem in problems))
    given = first["input"]
    if origin in included:
        # A line of our own types (Duration, Origin) ends with what was given.
        return f"{where}: expected {' or '.join(each.partition(', not ')[0] for each in expected)}"
    message = f"{where}: expected {' or '.join(expected)}"
    if first["type"] == "value_error":
        return message
    message += f", not {_show(given)}"
    if given is None and holds_text(annotation_at(key.split("."), schema)):
        message += f"; for the word itself quote it: {key.rpartition('.')[2]}: 'null'"
    if first["type"] == "literal_error" and isinstance(given, str):
        choices = re.findall(r"'([^']+)'", first["ctx"]["expected"])
        if near := difflib.get_close_matches(given, choices, 1):
            message += f"; did you mean '{near[0]}'?"
    return message


def _expected(problem: Any) -> str:
    template = _EXPECTED.get(problem["type"])
    if template is None:
        return problem["msg"].removeprefix("Value error, ")
    return template.format(**problem.get("ctx", {}))


def _show(given: Any) -> str:
    if given is None:
        return "nothing (null)"
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, dict):
        return "keys and values"
    if isinstance(given, list | tuple):
        return "a list"
    return brief(given)


def _origin(key: str, origins: dict[str, str]) -> str:
    """Where a key was given: itself, or the section around it that was given as a whole."""
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return origins.get(key, "config")


def _with_origins(line: str, origins: dict[str, str]) -> str:
    """A line about several keys, behind the places where those that were given were given."""
    places = dict.fromkeys(origins[key] for key in _keys_in(line) if key in origins)
    return f"{', '.join(places)}: {line}" if places else line


def _recheck(content: dict, wrong: list[str], schema: type[BaseModel]) -> list[Any]:
    rest = _without(content, {tuple(key.split(".")) for key in wrong})
    try:
        schema.model_validate(rest)
    except ValidationError as error:
        return [problem for problem in error.errors() if not problem["loc"]]
    return []


def _without(content: dict, paths: set[tuple[str, ...]], at: tuple[str, ...] = ()) -> dict:
    kept = {}
    for key, value in content.items():
        here = (*at, str(key))
        # A key inside a list, or one that is missing from its section, takes the list or the section with it.
        gone = here in paths or any(
            path[:-1] == here and (not isinstance(value, dict) or path[-1] not in value) for path in paths
        )
        if not gone:
            kept[key] = _without(value, paths, here) if isinstance(value, dict) else value
    return kept


def _suggest_key(key: str, schema: type[BaseModel]) -> str:
    """Where an unknown key may belong: the same name elsewhere, a near one here, or a near one elsewhere."""
    section, _, name = key.rpartition(".")
    here = _fields_at(section.split(".") if section else [], schema)
    everywhere = _all_keys(schema)
    same = [path for path in everywhere if path.rpartition(".")[2] == name]
    near = [f"{section}.{n}" if section else n for n in difflib.get_close_matches(name, here, 1)]
    leaves = {path.rpartition(".")[2]: path for path in reversed(everywhere)}
    far = [leaves[n] for n in difflib.get_close_matches(name, leaves, 1)]
    if found := same or near or far:
        return f"did you mean {' or '.join(repr(path) for path in found)}?"
    return suggest(name, here)


def _sections_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section that an annotation holds, if any, and whether it holds one for each free name (dict[str, Source])."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    for argument in get_args(annotation):
        section, _ = _sections_in(argument)
        if section is not None:
            return section, str(annotation).startswith("dict")
    return None, False


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(f"{prefix}{name}")
        inner, free = _sections_in(field.annotation)
        if inner is not None and not free:
            keys += _all_keys(inner, f"{prefix}{name}.")
    return keys


def _fields_at(path: list[str], section: type[BaseModel]) -> list[str]:
    """The keys that the section at a path, from the given one, has."""
    skip = False
    for part in path:
        if skip:  # the free name in a dict of sections
            skip = False
            continue
        field = section.model_fields.get(part)
        inner, skip = _sections_in(field.annotation) if field else (None, False)
        if inner is None:
            return []
        section = inner
    return list(section.model_fields)
