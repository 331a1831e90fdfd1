"""Which documents are held out: decided by each document's own content, up to differences that no reader sees."""

import hashlib
import unicodedata

# What ASCII has of white space besides the line end.
_SPACES = tuple("\t\v\f\r\x1c\x1d\x1e\x1f ")


def normal_form(text: str) -> str:
    """A document as the split sees it: without what copies of one text may differ in.

    No byte order mark, no NUL, Unicode in form NFC, line ends as LF, no white space at the ends of lines, no blank
    lines at either end, one line end after the last line. Only the split reads this; what is trained on is the text.
    """
    text = text.replace("\0", "").lstrip("\ufeff")
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.isascii() and text[-1:] not in _SPACES and not any(f"{space}\n" in text for space in _SPACES):
        # Most texts: nothing to remove at line ends, and to search for it is quicker than to remove it.
        return text.strip("\n") + "\n"
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n") + "\n"


def held_out_position(text: str) -> float:
    """Where in [0, 1) a document falls; below data.held_out_fraction it is held out.

    The SHA-256 of its normal form. Independent of the other documents, their order, the domain and the tokenizer: a
    document that is held out once is never trained on, and copies of it are held out with it.
    """
    # Half a surrogate pair is refused later, with the document's place.
    digest = hashlib.sha256(normal_form(text).encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
