"""Words, sentences and paragraphs of a Markdown page, without its code, formulas and markup."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GUIDES = sorted((DOCS / "guides").glob("[0-9]*.md"), key=lambda path: int(path.name.split("-")[0]))
GENERATED = ("_build", "auto_examples", "api")
_FENCE = re.compile(r"^(`{3,}|:{3,})")


def written_pages():
    """Every page of the site that somebody has written."""
    return [page for page in sorted(DOCS.rglob("*.md")) if page.relative_to(DOCS).parts[0] not in GENERATED]


# What a user reads: architecture and the like are for those who change it, in words of their own.
PAGES = [ROOT / "README.md", *(page for page in written_pages() if page.parent.name != "developers")]
DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))


def drop_code(text):
    """The lines of a page outside fences of backticks, without the colons that open and close a card."""
    lines, closing = [], None
    for line in text.splitlines():
        if closing is None and line.startswith("```"):
            closing = "```"
        elif closing is not None:
            if line.strip() == closing:
                closing = None
        elif not _FENCE.match(line) and not line.startswith("<!--"):
            lines.append(line)
    return lines


def drop_formulas(lines):
    kept, inside = [], False
    for line in lines:
        if line.strip() == "$$":
            inside = not inside
        elif not inside:
            kept.append(line)
    return kept


def is_table(line):
    return line.lstrip().startswith("|")


def is_markup(line):
    """A heading, an option of a directive, or a line that is one link or picture."""
    return bool(re.match(r"\s*(#|:[\w-]+:|\(.*\)=$|!?\[[^\]]*\]\([^)]*\)\.?$)", line))


def plain(text):
    """Text as a reader sees it: links by their words, pictures and marks gone."""
    text = re.sub(r"!\[([^\]]*)\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"[*`]", "", text)


def count_words(text):
    """Words outside code fences: those of tables and headings, too, but not the rules and bars that draw a table."""
    lines = [line for line in drop_code(text) if not re.fullmatch(r"[\s|:-]*", line)]
    return len(re.findall(r"\S*\w\S*", plain("\n".join(lines)).replace("|", " ")))


def paragraphs(text):
    """Paragraphs and items of lists, each as one string."""
    found, current = [], []
    for line in [*drop_formulas(drop_code(text)), ""]:
        item = re.match(r"\s*([-*]|\d+\.) ", line)
        if not line.strip() or is_table(line) or is_markup(line) or item:
            if current:
                found.append(" ".join(current))
            current = [line[item.end() :]] if item else []
        else:
            current.append(line.strip())
    return [plain(paragraph) for paragraph in found]


def sentences(text):
    """Sentences of the paragraphs: what ends in a full stop, a question or exclamation mark, a colon before a list not."""
    return [
        sentence
        for paragraph in paragraphs(text)
        for sentence in re.split(r"(?<=[.!?])[\")]*\s+(?=[\"(A-Z0-9$*`_])", paragraph)
        if re.search(r"\w", sentence)
    ]


def words(sentence):
    return re.findall(r"\S*\w\S*", sentence)
