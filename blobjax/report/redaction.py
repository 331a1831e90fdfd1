"""What pages and summaries keep to themselves: they are shown around, and tell no secret and not where files lie."""

import re
import shlex
from typing import Any

from blobjax.config import Config
from blobjax.config.diff import config_diff

HIDDEN = "…"

# Keys whose values are places, or name who looks at the run.
_PLACE = re.compile(r"logging|logging\.run_dir|logging\.wandb(\..*)?|data\.prepared_dir|compute\.compilation_cache")
# Differences that are of no interest either: the name stands elsewhere, and logging changes no result.
_NO_DIFFERENCE = ("name:", "logging.", "data.prepared_dir:", "compute.compilation_cache:")

# What is named like a secret (`token`, but no `tokens` and no `tokenizer`, and not what something is per token).
_SECRET = r"(?:(?<!per )token(?![a-z])|secret|passw(?:or)?d|api[_-]?key|access[_-]?key|credential|authorization)[\w-]*"
# In quotes to their end, be they escaped or never closed, else up to a blank; what is redacted already stays as it is.
_QUOTED = r"""\\+(?P<q>["']).*?(?:\\+(?P=q)|$)|"(?:[^"\\]|\\.)*(?:"|$)|'(?:[^'\\]|\\.)*(?:'|$)"""
_VALUE = rf"(?:{HIDDEN}|{_QUOTED}|\S+)"
_IS = r"""[\\"']*\s*[=:]\s*"""
_SETTING = re.compile(r"(logging|[\w-]+(?:\.[\w-]+)+)=.*", re.DOTALL)
# Tokens that say by their own form what they are, wherever they stand: GitHub's (docs.github.com, "GitHub's token
# formats"), GitLab's (docs.gitlab.com, "Token prefixes"), Hugging Face's (hf_), those of OpenAI and Anthropic (sk-),
# AWS's access key ids (IAM user guide, "Understanding unique ID prefixes"), Slack's (docs.slack.dev, "Tokens"), and
# Google's API keys (AIza).
_TOKEN = (
    r"(?<![A-Za-z0-9])(?:gh[pousr]_\w{16,}|github_pat_\w{16,}|glpat-[\w.-]{16,}|hf_[A-Za-z0-9]{16,}|"
    r"sk-(?=[\w-]*\d)[\w-]{16,}|(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])|xox[a-z](?:\.xox[a-z])?-[\w.-]{8,}|AIza[\w-]{30,})"
)
_HIDES = (
    (re.compile(_TOKEN), HIDDEN),
    # Who logs in: of a password with a slash or an @ in it, up to the last @ of the word.
    (re.compile(r"""(://)(?:[^\s:/@"'<>]*:[^\s"'<>]*|[^/\s@]+)@"""), rf"\1{HIDDEN}@"),
    # What is signed.
    (re.compile(r"(://[^\s?]+\?)\S+"), rf"\1{HIDDEN}"),
    (re.compile(rf"(?i)({_SECRET}{_IS}(?:(?:bearer|basic|digest|token)\s+)?){_VALUE}"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer\s+)\S+"), rf"\1{HIDDEN}"),
    (re.compile(rf"((?:prepared_dir|compilation_cache|run_dir){_IS})(?:{_QUOTED}|[^\s,}}\]]+)"), rf"\1{HIDDEN}"),
    # Of an absolute path the last name is left. What follows a host or a bucket is none.
    (re.compile(r"""(?:(?<![\w/.…~@-])|(?<=file://))(?:~[\w-]*)?/(?:[^/\s"'<>]+/)+"""), f"{HIDDEN}/"),
)


def redacted(text: str) -> str:
    """Text, or a setting `key=value`, without what would give away a secret or where files lie."""
    if (setting := _SETTING.fullmatch(text)) and _is_kept(setting[1]):
        return f"{setting[1]}={HIDDEN}"
    for pattern, replacement in _HIDES:
        text = pattern.sub(replacement, text)
    return text


def _is_kept(key: str) -> bool:
    return bool(_PLACE.fullmatch(key) or re.search(rf"(?i){_SECRET}$", key))


def public(value: Any) -> Any:
    """The same content, of dicts, lists and text, with each text redacted."""
    if isinstance(value, dict):
        return {key: HIDDEN if _is_kept(str(key)) else public(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [public(each) for each in value]
    return redacted(value) if isinstance(value, str) else value


def command(line: str) -> str:
    """A command as it is typed; each of its words redacted."""
    try:
        return shlex.join(map(redacted, shlex.split(line)))
    except ValueError:  # no command after all
        return redacted(line)


def changes(old: Config, new: Config) -> list[str]:
    """What differs between two configs, as `config_diff` has it, but for where things lie and who looks at them."""
    lines = []
    for line in config_diff(old, new):
        if not line.startswith(_NO_DIFFERENCE):
            key, _, values = line.partition(": ")
            before, _, after = values.rpartition(" -> ")
            lines.append(f"{key}: {_value(key, before)} -> {_value(key, after)}")
    return lines


def _value(key: str, text: str) -> str:
    return HIDDEN if _is_kept(key) else redacted(text)
