"""Tables of videos: their formats and columns, and rows that come from strangers."""

import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from cil.errors import ConfigError
from pipelines.sources import SourceOptions, check_source, list_videos


def put(folder, *names):
    for name in names:
        path = folder / os.fsdecode(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"v")


def listed(source, **options):
    return list_videos(str(source), options=SourceOptions(**options))


def captions(listing):
    return {video.name: video.caption for video in listing.videos}


def reasons(listing):
    return [(record.path, record.exception) for record in listing.refused]


def write_table(path, rows):
    """Write rows in the format of the suffix."""
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=2)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    return path


FORMATS = ["a.csv", "a.tsv", "a.jsonl", "a.parquet"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("column", ["path", "video", "file", "url", "contentUrl", "File_Name"])
def test_the_columns_are_found_in_every_format(tmp_path, name, column):
    put(tmp_path, "one.mp4", "sub/two.bin", "not-named.mp4")
    rows = [
        {"id": 1, column: "one.mp4", "Caption": "a dog"},
        {"id": 2, column: "sub/two.bin", "Caption": "a cat"},
    ]
    table = write_table(tmp_path / name, rows)
    check_source(str(table), SourceOptions())
    listing = listed(table)
    assert captions(listing) == {"one.mp4": "a dog", "sub/two.bin": "a cat"}
    assert [v.location for v in listing.videos] == [
        str(tmp_path / "one.mp4"),
        str(tmp_path / "sub/two.bin"),
    ]
    assert (listing.refused, listing.num_other_files) == ((), 0)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("root", [None, "elsewhere"])
def test_the_tables_of_webvid(tmp_path, name, root):
    put(tmp_path / (root or "."), "000_050/1066674784.mp4", "000_050/7.mp4")
    rows = [
        {
            "videoid": number,
            "contentUrl": f"https://example.com/{number}.mp4",
            "duration": "PT00H00M05S",
            "page_dir": "000_050",
            "name": caption,
        }
        for number, caption in [(1066674784, "sunset"), (7, "a dog"), (8, "gone")]
    ]
    table = write_table(tmp_path / name, rows)
    listing = listed(table, video_root=str(tmp_path / root) if root else None)
    assert captions(listing) == {"000_050/1066674784.mp4": "sunset", "000_050/7.mp4": "a dog"}
    assert reasons(listing) == [("000_050/8.mp4", "FileNotFoundError")]


def test_explicit_columns_win(tmp_path):
    put(tmp_path, "a.mp4", "b.mp4")
    table = write_table(
        tmp_path / "t.csv", [{"path": "a.mp4", "clip": "b.mp4", "text": "no", "label": "yes"}]
    )
    assert captions(listed(table, path_column="clip", caption_column="label")) == {"b.mp4": "yes"}
    assert captions(listed(table)) == {"a.mp4": "no"}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path_column": "nowhere"}, r"data\.path_column: .* no column 'nowhere'.* path, size"),
        ({"caption_column": "nowhere"}, r"data\.caption_column: .* no column 'nowhere'"),
        ({}, r"no column of .* names files; it has id, size; .*data\.path_column"),
    ],
)
def test_columns_that_are_not_there(tmp_path, name, options, words):
    put(tmp_path, "a.mp4")
    row = {"path": "a.mp4", "size": 1} if options else {"id": "a.mp4", "size": 1}
    table = write_table(tmp_path / name, [row])
    for look in (check_source, list_videos):
        with pytest.raises(ConfigError, match=words):
            look(str(table), options=SourceOptions(**options))


def test_quotes_and_line_feeds_of_csv(tmp_path):
    put(tmp_path, "a.mp4", "b,c.mp4", "d.mp4")
    (tmp_path / "t.csv").write_bytes(
        b"\xef\xbb\xbfpath,caption\r\n"
        b'a.mp4,"two\r\nlines, ""quoted"""\r\n'
        b'"b,c.mp4",\xff latin\r\n'
        b"\r\n"
        b"d.mp4,\r\n"
    )
    assert captions(listed(tmp_path / "t.csv")) == {
        "a.mp4": 'two lines, "quoted"',
        "b,c.mp4": "\ufffd latin",
        "d.mp4": None,
    }


def test_a_path_in_a_table_may_be_no_utf8(tmp_path):
    put(tmp_path, b"odd \xff.mp4")
    (tmp_path / "t.csv").write_bytes(b"path\nodd \xff.mp4\n")
    (video,) = listed(tmp_path / "t.csv").videos
    assert video.name == r"odd \xff.mp4"
    assert os.path.exists(video.location)


def test_malformed_rows_of_csv_are_refused_with_their_line(tmp_path):
    put(tmp_path, "a.mp4", "b.mp4")
    lines = [
        "path,caption",
        "a.mp4,fine",
        "a.mp4,one,too many",
        "too few",
        '"a.mp4"x,stray',
        f"{'x' * 2**21},too long",
        ",no path",
        "b.mp4,fine too",
        'c.mp4,"never closed',
        "swallowed.mp4,gone",
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    listing = listed(tmp_path / "t.csv")
    assert captions(listing) == {"a.mp4": "fine", "b.mp4": "fine too"}
    assert reasons(listing) == [
        ("t.csv:3", "MalformedRow"),
        ("t.csv:4", "MalformedRow"),
        ("t.csv:5", "MalformedRow"),
        ("t.csv:6", "MalformedRow"),
        ("t.csv:7", "EmptyField"),
        ("t.csv:9", "MalformedRow"),
    ]
    assert all(r.message.startswith(f"line {r.path[6:]} of t.csv: ") for r in listing.refused)


def test_malformed_rows_of_json_lines_are_refused_with_their_line(tmp_path):
    put(tmp_path, "a.mp4")
    lines = [
        '{"path": "a.mp4", "caption": null}',
        "not JSON",
        "",
        "[1, 2]",
        "[" * 100_000,
        '{"path": ["a.mp4"]}',
        '{"caption": "no path"}',
        '{"path": "a.mp4", "caption": {"en": "x"}}',
        '{"path": "\\ud800.mp4"}',
        '{"path": true}',
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    listing = listed(tmp_path / "t.jsonl")
    assert captions(listing) == {"a.mp4": None}
    assert sorted(reasons(listing)) == [
        ("\\ud800.mp4", "UnicodeEncodeError"),
        ("t.jsonl:10", "WrongType"),
        ("t.jsonl:2", "MalformedRow"),
        ("t.jsonl:4", "MalformedRow"),
        ("t.jsonl:5", "MalformedRow"),
        ("t.jsonl:6", "WrongType"),
        ("t.jsonl:7", "EmptyField"),
        ("t.jsonl:8", "WrongType"),
    ]
    for record in listing.refused:
        json.dumps(record.to_json()).encode()
        assert record.message.isprintable()


def test_missing_files_and_files_named_twice_are_refused(tmp_path):
    put(tmp_path, "a.mp4", "sub/b.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    rows = ["a.mp4", "./a.mp4", "sub/../a.mp4", "gone.mp4", "sub", "sub/b.mp4", "pipe.mp4", "."]
    table = write_table(tmp_path / "t.csv", [{"path": row} for row in rows])
    listing = listed(table)
    assert list(captions(listing)) == ["a.mp4", "sub/b.mp4"]
    assert [(r.path, r.stage, r.exception, r.message) for r in listing.refused] == [
        (".", "read", "IsADirectoryError", "line 9 of t.csv: a folder, not a file"),
        ("a.mp4", "duplicate", "Duplicate", "line 3 of t.csv: line 2 names the same file"),
        ("a.mp4", "duplicate", "Duplicate", "line 4 of t.csv: line 2 names the same file"),
        ("gone.mp4", "read", "FileNotFoundError", "line 5 of t.csv: No such file or directory"),
        ("pipe.mp4", "read", "NotAFile", "line 8 of t.csv: not a regular file"),
        ("sub", "read", "IsADirectoryError", "line 6 of t.csv: a folder, not a file"),
    ]


@pytest.mark.parametrize(
    "path",
    [
        "../secret.mp4",
        "sub/../../secret.mp4",
        "{tmp}/secret.mp4",
        "{tmp}/root/../secret.mp4",
        "/etc/passwd",
        "//etc/passwd",
        "file:///etc/passwd",
        "file://{tmp}/secret.mp4",
        "sftp://host/secret.mp4",
        "zip://x::file:///etc/passwd",
        "https://user:hunter2@host/x.mp4",
        "s3://key:hunter2@bucket/x.mp4",
    ],
)
def test_a_path_that_leaves_the_root_is_refused(tmp_path, path):
    put(tmp_path, "secret.mp4", "root/a.mp4", "root/sub/b.mp4")
    rows = [{"path": "a.mp4"}, {"path": path.format(tmp=tmp_path)}]
    listing = listed(write_table(tmp_path / "root" / "t.csv", rows))
    assert list(captions(listing)) == ["a.mp4"]
    (refused,) = listing.refused
    assert refused.exception in ("UnsafePath", "ConfigError")
    assert refused.message.startswith("line 3 of t.csv: ")
    assert "hunter2" not in str(refused)


def test_absolute_paths_below_the_root_are_fine_and_a_root_allows_all(tmp_path):
    put(tmp_path, "videos/a.mp4", "videos/b.mp4")
    rows = [{"path": f"{tmp_path}/videos/a.mp4"}, {"path": f"{tmp_path}/videos/./b.mp4"}]
    (tmp_path / "tables").mkdir()
    table = write_table(tmp_path / "tables" / "t.csv", rows)
    with pytest.raises(ConfigError, match=r"set data\.video_root"):
        listed(table)
    assert list(captions(listed(table, video_root=str(tmp_path)))) == [
        "videos/a.mp4",
        "videos/b.mp4",
    ]
    prefix = str(tmp_path).lstrip("/")
    assert list(captions(listed(table, video_root="/"))) == [
        f"{prefix}/videos/a.mp4",
        f"{prefix}/videos/b.mp4",
    ]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("content", [b"", b"\n", os.urandom(3000), b"PAR1" * 50, b"\0" * 100])
def test_a_file_that_is_no_table_is_a_config_error(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    for look in (check_source, list_videos):
        with pytest.raises(ConfigError, match=r"^data\.videos") as caught:
            look(str(tmp_path / name), options=SourceOptions())
        assert str(caught.value).isprintable()


def test_a_table_with_no_usable_row_names_the_first_reason(tmp_path):
    table = write_table(tmp_path / "t.csv", [{"path": "gone.mp4"}, {"path": "lost.mp4"}])
    with pytest.raises(ConfigError, match=r"2 were refused, gone\.mp4: line 2 of t\.csv: No such"):
        listed(table)


def test_a_truncated_parquet_file_is_a_config_error(tmp_path):
    put(tmp_path, "a.mp4")
    table = write_table(tmp_path / "t.parquet", [{"path": "a.mp4"}] * 10)
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=r"cannot read .*t\.parquet"):
        listed(table)
