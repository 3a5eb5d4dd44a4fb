"""Text from bytes: the encoding is the one that a byte order mark says, and no mark is left in what was read."""

import codecs

# The longer ones first: a mark of UTF-32 begins with one of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SWAPPED = "\ufffe"  # no character: a mark, read in the other byte order


def encoding(head: bytes) -> str:
    """Return the encoding that a text's first bytes say: "utf-16" or "utf-32" by a byte order mark, else "utf-8"."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), "utf-8")


def unmarked(text: str) -> str:
    """Return `text` without byte order marks, also in its middle, where files were put one behind the other."""
    return text.replace("\ufeff", "")


def decode(raw: bytes) -> str:
    """Return the text in `raw` without its marks. Raises UnicodeDecodeError for what is not in one encoding throughout."""
    text = raw.decode(name := encoding(raw))
    if name != "utf-8" and (at := text.find(_SWAPPED)) >= 0:
        start = len(text[:at].encode(name))
        raise UnicodeDecodeError(name, raw, start, start + 2, "the other byte order begins")
    return unmarked(text)
