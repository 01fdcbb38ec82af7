"""Pages are for a reader in a hurry: how long a page, a paragraph, a sentence and a line may be."""

import re
import statistics

import pytest
from prose import (
    DECISIONS,
    GUIDES,
    PAGES,
    ROOT,
    count_words,
    drop_code,
    drop_formulas,
    is_table,
    paragraphs,
    sentences,
    words,
)

LONGEST_LINE = 120


def name_page(page):
    return page.relative_to(ROOT).as_posix()


def test_there_are_five_to_twelve_guides_with_a_number_and_a_question_each():
    assert 5 <= len(GUIDES) <= 12
    for number, guide in enumerate(GUIDES, start=1):
        assert re.match(rf"# {number}\. .*\?$", guide.read_text().splitlines()[0]), guide.name


def test_readme_has_at_most_600_words():
    assert count_words((ROOT / "README.md").read_text()) <= 600


@pytest.mark.parametrize("guide", GUIDES, ids=name_page)
def test_guide_is_short_and_has_a_snippet_that_runs(guide):
    text = guide.read_text()
    assert count_words(text) <= 650
    assert ">>>" in text


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_sentences_are_short(page):
    lengths = [len(words(sentence)) for sentence in sentences(page.read_text())]
    assert [text for text in sentences(page.read_text()) if len(words(text)) > 40] == []
    if page in GUIDES:
        assert statistics.median(lengths) <= 15
    if page.name == "benchmarks.md":  # words beside pictures
        assert max(lengths) <= 20


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_paragraphs_are_no_walls(page):
    assert [text for text in paragraphs(page.read_text()) if len(words(text)) > 120] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name_page)
def test_lines_of_prose_wrap(page):
    # A table's row and a link cannot be broken.
    long = [
        line
        for line in drop_formulas(drop_code(page.read_text()))
        if len(line) > LONGEST_LINE and not is_table(line) and not re.search(r"\]\([^)]{40,}\)", line)
    ]
    assert long == []


@pytest.mark.parametrize("record", DECISIONS, ids=name_page)
def test_a_decision_has_context_choice_and_consequence(record):
    headings = re.findall(r"^## (.*)$", record.read_text(), re.MULTILINE)
    assert [heading for heading in headings if heading != "Figures"] == ["Context", "Choice", "Consequence"]


@pytest.mark.parametrize("page", PAGES, ids=name_page)
def test_no_targets_of_the_project_in_pages(page):
    assert re.findall(r"moonshot|MISSED|\bmissed\*\*|we aimed|issue \d+", page.read_text(), re.IGNORECASE) == []
