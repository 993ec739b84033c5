"""The table of all sentences for operators is whole, and each is one sentence.

A new or changed error goes red here until ``sentences.txt`` has it: whoever adds it reads it beside the others. Most
end with a way out; that they do is for the reader of the table to see.
"""

from pathlib import Path

from quality.sentences import sentences

TABLE = Path(__file__).with_name("sentences.txt")
LENGTH_MOST = 330


def test_the_table_has_every_sentence_and_no_other() -> None:
    listed, found = TABLE.read_text().splitlines(), sentences()
    missing = "\n".join(sorted(set(found) - set(listed)))
    stale = "\n".join(sorted(set(listed) - set(found)))
    assert listed == found, f"to be added, in order:\n{missing}\nto be removed:\n{stale}"
    assert len(found) > 150


def test_each_is_one_sentence() -> None:
    """No full stop at the end, none in the middle, no line break, not too long to read."""
    for line in sentences():
        text = line.partition(": ")[2]
        assert not text.endswith("."), line
        assert ". " not in text.replace("... ", " "), line
        assert 6 <= len(text) <= LENGTH_MOST, line
