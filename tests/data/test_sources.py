from __future__ import annotations

import json
import pickle
import tempfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_switchkd.core.errors import UserError
from lightning_switchkd.data.samples import SampleError
from lightning_switchkd.data.sources import open_source

RECORDS: list[dict[str, Any]] = [
    {"id": 1, "image": None, "conversations": [{"from": "human", "value": 'a "quoted" {brace} [bracket] \\ \n ü 🐈'}]},
    {"id": "two", "model": "", "conversations": [{"from": "gpt", "value": '\\"}]'}]},
    {},
]


def written(folder: Path, content: str | bytes, name: str = "data.json") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read_all(path: Path) -> list[Any]:
    source = open_source(path)
    return [source.read(i) for i in range(len(source))]


LINES = [json.dumps(r) for r in RECORDS]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("array.json", json.dumps(RECORDS)),
        ("compact.json", json.dumps(RECORDS, separators=(",", ":"), ensure_ascii=False)),
        ("pretty.json", json.dumps(RECORDS, indent=4, ensure_ascii=False)),
        ("crlf.json", json.dumps(RECORDS, indent=1).replace("\n", "\r\n")),
        ("bom.json", "\ufeff" + json.dumps(RECORDS)),
        ("spaced.json", "\n\n " + json.dumps(RECORDS) + "\n \n"),
        ("lines.jsonl", "\n".join(LINES) + "\n"),
        ("no_final_newline.jsonl", "\n".join(LINES)),
        ("crlf_bom.jsonl", "\ufeff" + "\r\n".join(LINES) + "\r\n"),
        ("blank_lines.jsonl", "\n\n".join(LINES) + "\n\n\n"),
        ("lines.json", "\n".join(LINES)),
    ],
)
def test_every_format_gives_the_same_records(tmp_path: Path, name: str, content: str) -> None:
    assert read_all(written(tmp_path, content, name)) == RECORDS


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    raws=st.lists(st.dictionaries(st.text(), json_values, max_size=4), min_size=1, max_size=5),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    lines=st.booleans(),
)
def test_any_objects_come_back(raws: list[Any], indent: int | None, ascii_only: bool, lines: bool) -> None:
    def dumps(value: Any) -> bytes:
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")

    with tempfile.TemporaryDirectory() as folder:
        content = b"\n".join(map(dumps, raws)) if lines else dumps(raws)
        assert read_all(written(Path(folder), content, "x.jsonl")) == raws


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        (" \n", "starts with"),
        ("[]", "contains no samples"),
        ('{"images": [{"id": 1}]}', "instead of a list"),
        ('"text"', "neither a JSON list of samples nor JSONL"),
        ("\ufeff[1, 2]", "expected a complete JSON object"),
        ('[{"a": 1}', "expected ',' and the next sample"),
        ('[{"a": 1},]', "expected ',' and the next sample"),
        ('[{"a": 1} {"a": 2}]', "expected ',' and the next sample"),
        ('[{"a": 1}] and more', "text after the end of the list"),
        ('[{"a": 1},\n{"a": "open}]', "line 2 (byte 11)"),
        ('[{"a": "raw\nnewline"}]', "invalid JSON"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: str | bytes, says: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        open_source(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        '[{"a": 1}, {"a": [1, 2}, {"b": 2}]',
        '[{"a": 1},\n{"a": tru},\n{"b": 2}]',
        b'[{"a": 1}, {"a": "\xff"}, {"b": 2}]',
        '{"a": 1}\n{"ä": 1, b}\n{"b": 2}\n',
        '{"a": 1}\n{"a": 1\n{"b": 2}\n',
        '{"a": 1}\n{"a": {"c": "unto\n{"b": 2}\n',
        '{"a": 1}\n<html>\n{"b": 2}',
        '{"a": 1}\r\n{"a": "cut of\r\n\r\n{"b": 2}',
    ],
)
def test_a_record_that_does_not_parse_is_a_bad_one_among_good_ones(tmp_path: Path, content: str | bytes) -> None:
    source = open_source(written(tmp_path, content))
    assert len(source) == 3
    assert (source.read(0), source.read(2)) == ({"a": 1}, {"b": 2})
    with pytest.raises(SampleError, match=r"Sample 1 of .*data\.json: Invalid JSON") as caught:
        source.read(1)
    assert caught.value.code == "bad_json"


def test_a_file_cut_short_loses_its_last_line_alone(tmp_path: Path) -> None:
    source = open_source(written(tmp_path, '{"a": 1}\n{"b": 2}\n{"c": "cu', "cut.jsonl"))
    assert [source.read(i) for i in range(2)] == [{"a": 1}, {"b": 2}]
    with pytest.raises(SampleError, match="Sample 2 of"):
        source.read(2)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The file .*nowhere\.json does not exist"):
        open_source(tmp_path / "nowhere.json")


def test_the_index_is_kept_and_renewed(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(RECORDS))
    fingerprint = open_source(path).fingerprint
    (index,) = (tmp_path / ".index").iterdir()
    before = index.stat().st_mtime_ns
    assert open_source(path).fingerprint == fingerprint
    assert index.stat().st_mtime_ns == before, "indexed twice"

    index.write_bytes(index.read_bytes()[:50])  # half-written
    assert read_all(path) == RECORDS
    index.write_bytes(b"")
    assert read_all(path) == RECORDS

    written(tmp_path, json.dumps(RECORDS[::-1]))
    assert read_all(path) == RECORDS[::-1]
    assert open_source(path).fingerprint != fingerprint


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    prints = [
        open_source(written(tmp_path, content, name)).fingerprint
        for name, content in [
            ("a.json", '[{"answer": "yes"}]'),
            ("b.jsonl", '{"answer": "yes"}'),
            ("c.json", '[{"answer": "not"}]'),
        ]
    ]
    assert prints[0] == prints[1] != prints[2]


def test_an_unwritable_folder_leaves_the_index_in_the_user_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".index").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = written(tmp_path, json.dumps(RECORDS))
    assert read_all(path) == RECORDS
    assert len(list((tmp_path / "cache" / "lightning_switchkd").iterdir())) == 1
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    with pytest.raises(UserError, match="Cannot write the index of"):
        open_source(path)


def test_many_may_index_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(RECORDS * 200))
    with ThreadPoolExecutor(8) as pool:
        sources = list(pool.map(open_source, [path] * 8))
    assert {len(source) for source in sources} == {600}
    assert [file.suffix for file in (tmp_path / ".index").iterdir()] == [".npy"]


def test_a_worker_gets_a_path_not_the_data(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(RECORDS * 1000))
    sent = pickle.dumps(open_source(path))
    assert len(sent) < 1000
    assert pickle.loads(sent).read(1) == RECORDS[1]


def test_memory_stays_flat(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps([{"id": i, "text": "long text " * 100} for i in range(3000)]))  # 3 MB
    tracemalloc.start()
    source = open_source(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 3000
    assert peak < 600_000


def test_a_file_changed_while_in_use_is_a_bad_record(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps(RECORDS))
    source = open_source(path)
    with path.open("r+b") as file:
        file.write(b"[x")
    with pytest.raises(SampleError, match=r"Sample 0 of .*data\.json: Invalid JSON") as caught:
        source.read(0)
    assert caught.value.code == "bad_json"
