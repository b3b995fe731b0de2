"""Text of users in Markdown, as reports and model cards hold it: it shows as it is, whatever it holds."""

import html
import re

# What Markdown or a renderer of formulas would read as its own; an underscore inside a word is none.
SPECIAL = re.compile(r"[\\`*\[\]|$~]|(?<![^\W_])_|_(?![^\W_])")


def plain(text: str) -> str:
    """Text for a paragraph, a heading or a cell of a table, in one line."""
    escaped = SPECIAL.sub(lambda match: f"&#{ord(match[0])};", html.escape(text, quote=False))
    return " ".join(escaped.split())


def code(text: str) -> str:
    """Text as code, in one line, also in a cell of a table; a backtick becomes an apostrophe."""
    return "`" + " ".join(text.replace("`", "'").replace("|", "\\|").split()) + "`"
