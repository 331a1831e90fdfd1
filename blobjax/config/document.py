"""YAML documents as people write them: numbers are numbers, text is text, and an error is one line."""

import re
from pathlib import Path
from typing import Any

import yaml

from blobjax.config.errors import BadInputError
from blobjax.config.scalars import take_text
from blobjax.config.schema import Config

# YAML 1.1 reads 1e-3 as text, 010 as 8 and 1:30:00 as 5400; a user means a thousandth, ten, and no number.
_INTEGER = re.compile(r"^[-+]?(?:[0-9][0-9_]*|0x_*[0-9a-fA-F][0-9a-fA-F_]*|0o_*[0-7][0-7_]*|0b_*[01][01_]*)$")
_FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$")


# What may not stand in the place of a key, and what to write instead.
_NO_KEYS = {
    "tag:yaml.org,2002:merge": "merges (<<) are not read; write the keys out, or use include",
    "tag:yaml.org,2002:null": "a key is nothing (null or ~); write its name, or quote the word: 'null'",
    "tag:yaml.org,2002:bool": "a key is true or false (YAML reads yes, no, on and off so too); quote the word",
}


class _Loader(yaml.SafeLoader):
    """Safe YAML, with numbers as people write them, and without dates, which no key holds.

    Duplicate keys, keys that are no text, anchors, aliases and merges are refused.

    Args:
      text: the document.
      schema: whose text fields keep what is written (config/scalars.py).
    """

    def __init__(self, text: str, schema: Any):
        super().__init__(text)
        self._schema = schema

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            take_text(node, self._schema)
        return node

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if event.anchor is not None:
            # An alias may refer to itself, and nine of nine levels are a billion keys.
            kind = "aliases (*name)" if isinstance(event, yaml.AliasEvent) else "anchors (&name)"
            raise yaml.MarkedYAMLError(
                problem=f"{kind} are not read; write the keys out, or use include", problem_mark=event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if problem := _NO_KEYS.get(key.tag):
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"duplicate key '{key.value[:200]}'", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int | str:
    text = node.value.replace("_", "").lower()
    try:
        return int(text, 0 if re.match(r"[-+]?0[xob]", text) else 10)
    except ValueError:  # thousands of digits: the key that it is given to says what it expects
        return node.value


_NUMBERS = {"tag:yaml.org,2002:int": _INTEGER, "tag:yaml.org,2002:float": _FLOAT}
_TIME = "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in (*_NUMBERS, _TIME)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _regexp in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, _regexp, list("-+0123456789."))
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)


def parse_yaml(text: str, origin: str, schema: Any = None) -> Any:
    """What a YAML text says.

    Args:
      origin: where it stands, for errors.
      schema: a section, or another annotation, whose text fields keep what is written; None: plain YAML.

    Raises:
      BadInputError: it is not YAML, or holds what we do not read; the line begins with `origin`.
    """
    try:
        return _Loader(text, schema).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}:{mark.line + 1}" if mark else origin
        what = getattr(error, "problem", None) or " ".join(str(error).split())
        if mark and what == "mapping values are not allowed here":
            what = f"a value that holds ': ' needs quotes; {_quoted(text.splitlines()[mark.line])}"
        elif mark and what.endswith("but got ':'"):
            line = text.splitlines()[mark.line]
            what = f"a value that holds ': ' needs quotes; {_quoted(_entry(line, mark.column))}"
        raise BadInputError(f"{where}: not valid YAML: {what}") from None
    except RecursionError:
        raise BadInputError(f"{origin}: not valid YAML: nested too deeply") from None
    except (KeyError, IndexError, TypeError, AttributeError):  # and what a tag such as !!bool makes of other text
        raise BadInputError(
            f"{origin}: not valid YAML: a value does not fit its tag (!!…); leave the tag out"
        ) from None
    except ValueError as error:  # PyYAML lets a number or date that Python cannot make escape
        raise BadInputError(f"{origin}: not valid YAML: {error}") from None


def _entry(line: str, at: int) -> str:
    """What stands between the braces, brackets and commas around a position of a line."""
    return re.split(r"[{\[,]", line[:at])[-1] + re.split(r"[}\],]", line[at:])[0]


def _quoted(line: str) -> str:
    """How to write a line `key: value: more`."""
    key, _, value = line.strip().removeprefix("- ").partition(":")
    return f"write {key}: {yaml.safe_dump(value.strip(), width=10**6).splitlines()[0]}"


def shown(path: Path) -> str:
    """A path as short as it can be told."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


# A hundred times the longest resolved config. PyYAML takes a minute for 20 MB.
LARGEST_FILE = 1 << 20


def read_yaml(path: Path, schema: Any = Config) -> dict:
    """A YAML file's keys and values.

    Args:
      schema: whose text fields keep what is written.

    Raises:
      BadInputError: it cannot be read, is not YAML, is too large, or holds something else.
    """
    origin = shown(path)
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise BadInputError(f"{origin}: has {size / 1e6:.1f} MB; a config has at most {LARGEST_FILE / 1e6:.0f} MB")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BadInputError(f"{origin}: is not UTF-8 text") from None
    except OSError as error:
        raise BadInputError(f"{origin}: cannot be read: {error.strerror}") from None
    content = parse_yaml(text, origin, schema)
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise BadInputError(f"{origin}: expected keys and values at the top, not {type(content).__name__}")
    return content
