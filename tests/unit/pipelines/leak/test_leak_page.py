"""The page of a leak report, without a browser."""


def test_page(written):
    assert (written / "report.html").exists()
