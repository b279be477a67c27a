"""The page: it stands alone, escapes what comes from outside, and says what happened."""

import itertools
import re
from collections import Counter

from tests.unit.pipelines.dataset_report.drawn_data_sets import (
    SMALL,
    broken,
    data_set,
    video,
    write,
)
from tests.unit.pipelines.dataset_report.page_reader import Page


def test_names_from_outside_are_escaped(reported):
    page = Page(reported.page)
    assert "script" not in {tag for tag, _ in page.tags}
    assert all("class" in attributes for tag, attributes in page.tags if tag == "i")
    assert "&lt;script&gt;alert(1)" in reported.page
    assert "&#34;quoted&#34;\\nsecond line\\u202e" in reported.page
    assert "\u202e" not in reported.page
    assert "broken &lt;i&gt;.mp4" in reported.page
    assert "cannot decode\\nframe 3" in reported.page
    assert "clips &lt;b&gt;" in reported.page


def test_odd_bytes_of_a_name_do_not_stop_the_report(tmp_path):
    records = [video("odd \udcff.mp4", [(SMALL, 1.0, 90.0)]), broken("\ud800.mp4")]
    before = [video("gone \udcff\n\u202e.mp4", [(SMALL, 1.0, 80.0)])]
    raw, page = write(data_set(tmp_path, records, before=before))
    assert "odd \\udcff.mp4" in page
    assert "no longer has gone \\udcff\\n\\u202e.mp4" in page
    assert raw["details"]["quarantine"][0]["examples"][0]["name"] == "\ud800.mp4"


def test_long_names_are_short_on_the_page_and_whole_in_the_numbers(reported):
    examples = [e["name"] for group in reported.details["dropped"] for e in group["examples"]]
    assert "x" * 300 + ".mp4" in examples
    assert "x" * 65 not in reported.page
    assert "x" * 42 + "…" + "x" * 17 + ".mp4" in reported.page


def test_the_page_stands_alone(reported):
    page = Page(reported.page)
    assert not re.search(r"(?:src|href|action|url)\s*[=(]\s*[\"']?\s*(?:https?:)?//", reported.page)
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "form"} == set()
    policies = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_tables_have_captions_pictures_texts_and_headings_an_order(reported):
    page = Page(reported.page)
    assert all(table["caption"] for table in page.tables)
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_a_data_set_without_fault_says_so(all_good):
    assert all_good.details["headline"] == "All 3 videos gave 6 clips; nothing is in quarantine."
    text = " ".join("".join(Page(all_good.page).text).split())
    assert "Every video of the source could be used." in text
    assert "Every candidate clip was kept." in text
    assert "No frame of a clip repeats another." in text
    assert "Look at this before you train" not in text
    assert all_good.details["quarantine"] == all_good.details["dropped"] == []


def test_the_headline_says_what_happened(reported):
    assert reported.details["headline"] == (
        "12 of 25 videos gave 23 clips of 3 sizes; 12 are in quarantine and 1 gave no clip that "
        "was kept. The data set also holds 4 clips of 2 videos that the source no longer has."
    )
    here = Counter(sidecar.bucket for sidecar in reported.made.sidecars for _ in sidecar.keys)
    assert sum(here.values()) == 23 + 4
    assert reported.details["headline"] in reported.page
