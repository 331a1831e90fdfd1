import hashlib
from importlib import resources

from blobjax.data import embedded


def test_domains_are_text_of_some_size():
    assert embedded.domains() == ["bible", "jargon", "mathematics", "shakespeare"]
    total = 0
    for domain in embedded.domains():
        documents = list(embedded.documents(domain))
        assert len(documents) > 100
        assert all(document.strip() and "\0" not in document for document in documents)
        total += sum(len(document.encode()) for document in documents)
    assert 3e6 < total < 4e6


def test_the_wheel_stays_small():
    folder = resources.files("blobjax.data") / "corpus"
    assert sum(len(entry.read_bytes()) for entry in folder.iterdir()) < 1.2e6


def test_sources_page_records_what_ships():
    page = (resources.files("blobjax.data") / "corpus" / "SOURCES.md").read_text()
    for domain in embedded.domains():
        packed = (resources.files("blobjax.data") / "corpus" / f"{domain}.txt.xz").read_bytes()
        assert hashlib.sha256(packed).hexdigest() in page


def test_speeches_read_like_a_play():
    scene = next(
        text for text in embedded.documents("shakespeare") if text.startswith("Romeo and Juliet. ACT II. SCENE II.")
    )
    assert "\n\nROMEO:\nHe jests at scars that never felt a wound.\n" in scene
    assert "_" not in scene
    assert "**" not in scene
