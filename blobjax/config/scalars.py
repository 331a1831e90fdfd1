"""What a plain YAML scalar means where the schema says that a key holds text: its own characters.

YAML 1.1 makes `no` false, 20261130 a number and 1:30:00 a number of seconds. A key that holds text
gets what was written; quotes are never needed, and never wrong.
"""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel

_TEXT = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"
# What YAML makes of plain scalars, and the types that fields have where it is right.
_MADE = {
    "tag:yaml.org,2002:bool": (bool,),
    "tag:yaml.org,2002:int": (int, float),
    "tag:yaml.org,2002:float": (float, int),
}
# `=` and `<<`, which are no values; as a key `<<` merges.
_NO_VALUES = ("tag:yaml.org,2002:value", _MERGE)


def annotation_at(path: list[str], annotation: Any) -> Any:
    """The annotation of the key at a path below one; None where the schema has no such key."""
    for part in path:
        annotation = _inside(annotation, part)
    return annotation


def holds_text(annotation: Any) -> bool:
    """Whether a key with this annotation holds one text, or nothing, and no list, section or number."""
    members = set(_members(annotation))
    return str in members and members <= {str, types.NoneType}


def as_text(written: str, annotation: Any) -> str | None:
    """What is written behind `key=` for a key that `holds_text`: every character, or what quotes hold.

    Raises:
      yaml.YAMLError: it begins with a quote, and is no quoted text.
    """
    stripped = written.strip()
    if stripped[:1] in ("'", '"'):
        read = yaml.safe_load(stripped)
        return read if isinstance(read, str) else written
    if types.NoneType in _members(annotation) and stripped in ("", "null", "~"):
        return None
    return written


def take_text(node: yaml.Node, annotation: Any) -> None:
    """Makes plain scalars text, in place, wherever the schema has text: in a document's keys and values."""
    if isinstance(node, yaml.MappingNode):
        free = any(get_origin(member) is dict for member in _members(annotation))
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if free and key.tag != _MERGE:
                    take_text(key, str)
                take_text(value, _inside(annotation, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            take_text(value, _inside(annotation, position))
    elif isinstance(node, yaml.ScalarNode) and node.style is None:
        members = set(_members(annotation))
        read = node.tag in _MADE and str in members and not members.intersection(_MADE[node.tag])
        if read or node.tag in _NO_VALUES:
            node.tag = _TEXT


def escaped(content: Any) -> Any:
    """A copy in which `\\udcff` stands written out for what UTF-8 cannot hold, in keys and in values."""
    if isinstance(content, dict):
        return {escaped(key): escaped(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [escaped(item) for item in content]
    return content.encode(errors="backslashreplace").decode() if isinstance(content, str) else content


def unencodable(content: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Dotted keys, `escaped`, that UTF-8 cannot hold or whose text it cannot: a byte, or half of a character."""
    if isinstance(content, dict):
        for key, value in content.items():
            inside = (*path, str(escaped(key)))
            yield from unencodable(key, inside)
            yield from unencodable(value, inside)
    elif isinstance(content, list | tuple):
        for position, value in enumerate(content):
            yield from unencodable(value, (*path, str(position)))
    elif isinstance(content, str) and content != escaped(content):
        yield ".".join(path)


def _members(annotation: Any) -> Iterator[Any]:
    """The alternatives of a union, without what Annotated adds."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation


def _inside(annotation: Any, part: str | int) -> Any:
    """The annotation of a section's key, of a value under a free name, or of an item; None where there is none."""
    found: Any = None
    for member in _members(annotation):
        arguments = get_args(member)
        if isinstance(member, type) and issubclass(member, BaseModel):
            field = member.model_fields.get(str(part))
            inner = field.annotation if field else None
        elif get_origin(member) is dict and isinstance(part, str):
            inner = arguments[1]
        elif get_origin(member) in (tuple, list) and isinstance(part, int):
            fixed = get_origin(member) is tuple and arguments[-1] is not Ellipsis
            inner = (arguments[part] if part < len(arguments) else None) if fixed else arguments[0]
        else:
            continue
        if inner is not None:
            found = inner if found is None else found | inner
    return found
