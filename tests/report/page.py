"""Reads a page as strictly as a test needs it."""

import html.parser


class Page(html.parser.HTMLParser):
    """Opens and closes tags in order, and keeps what the page refers to."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.references: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "srcset", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def check(text: str) -> Page:
    """The page, if it holds all of itself and can be read by those who do not see it."""
    page = Page(text)
    assert '<html lang="en">' in text
    assert page.tags.count("h1") == 1
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert "url(" not in text
    assert "@import" not in text
    assert text.count("<img") == text.count(' alt="') - text.count(' alt=""')
    return page
