from __future__ import annotations

import json

from tests.support.official import COPY, published


def test_the_copy_of_torchvisions_facts_is_exact():
    assert json.loads(COPY.read_text()) == published()
