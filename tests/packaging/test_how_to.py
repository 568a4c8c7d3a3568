"""Code on the how-to pages that is from examples/ is the code of the example."""

from __future__ import annotations

import pytest

from tests.support.tutorials import ROOT, blocks

PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
EXCERPTS = [block for page in PAGES for block in blocks(page) if block.title is not None]


@pytest.mark.parametrize("block", EXCERPTS, ids=str)
def test_excerpt_is_part_of_the_example(block):
    assert block.text in (ROOT / block.title).read_text()


def test_the_page_about_web_services_has_three_excerpts():
    titles = {block.title for block in EXCERPTS if block.page.stem == "call-from-a-web-service"}
    assert len(titles) == 3


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.stem)
def test_code_blocks_have_no_placeholders(page):
    assert [str(block) for block in blocks(page) if "@@" in block.text] == []
