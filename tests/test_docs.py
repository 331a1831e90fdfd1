"""The pages keep what they promise: links lead somewhere, keys exist, nothing is left to fill in."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from blobjax.config import Config


def _is_section(annotation) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SECTIONS = {name for name, field in Config.model_fields.items() if _is_section(field.annotation)}
pytestmark = pytest.mark.smoke


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_is_left_to_fill_in(page):
    assert not re.findall(r"@@|TODO|FIXME|XXX", page.read_text())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_exist(page):
    """Whatever a page writes as `section.key` is a key of the schema."""
    named = set(re.findall(rf"`((?:{'|'.join(SECTIONS)})(?:\.[a-z_0-9]+)+)[=`]", page.read_text()))
    unknown = []
    for key in named:
        if key.endswith(".py") or (ROOT / "blobjax" / f"{key.replace('.', '/')}.py").exists():
            continue  # a file or a module, whose folder is called as the section
        node = Config
        for part in key.split("."):
            if not _is_section(node):
                break  # inside a mapping such as data.mixture, whose names are the user's
            if part not in node.model_fields:
                unknown.append(key)
                break
            node = node.model_fields[part].annotation
    assert not unknown


def test_there_is_something_to_check():
    assert {"README.md", "training.md", "performance.md"} <= {page.name for page in PAGES}
    assert {"model", "compute", "data", "optimizer"} <= SECTIONS
