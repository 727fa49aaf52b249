from __future__ import annotations

import pickle
from typing import Any

import pytest

from lightning_switchkd.data.formats import parse_sample
from lightning_switchkd.data.samples import ImageRef, Sample, SampleError, SampleLocation, Turn


def raw(*texts: str, **fields: Any) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": "x", "conversations": turns} | fields


def parse(sample: Any) -> Sample:
    return parse_sample(sample, SampleLocation("folder/mix.json", 7))


@pytest.mark.parametrize(("given", "expected"), [(12, "12"), ("000000033471", "000000033471"), (None, "7")])
def test_ids_become_text(given: object, expected: str) -> None:
    assert parse(raw("q", "a", id=given)).id == expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ()),
        ({"image": None}, ()),
        ({"image": ""}, ()),
        ({"model": ""}, ()),
        ({"image": "a.jpg"}, ("a.jpg",)),
        ({"image": ["a.jpg"]}, ("a.jpg",)),
        ({"images": ["a.jpg"]}, ("a.jpg",)),
        ({"images": "a.jpg", "image": None}, ("a.jpg",)),
        ({"image": {"path": "a.jpg"}}, ("a.jpg",)),
        ({"images": [{"path": "a.jpg", "bytes": None}]}, ("a.jpg",)),
    ],
)
def test_every_way_to_name_images(fields: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert parse(raw("q", "a", **fields)).images == tuple(map(ImageRef, expected))


def test_both_vocabularies_of_turns_and_a_system_turn() -> None:
    llava = {"conversations": [{"from": "system", "value": "s"}, *raw("q", "a")["conversations"]]}
    chat = {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
        ]
    }
    expected = (Turn("system", "s"), Turn("user", "q"), Turn("assistant", "a"))
    assert parse(llava).turns == parse(chat).turns == expected
    assert parse(llava).answer == "a"


def test_the_source_is_the_field_or_the_file() -> None:
    assert parse(raw("q", "a")).source == "mix"
    assert parse(raw("q", "a", source="gqa")).source == "gqa"


@pytest.mark.parametrize(
    ("texts", "images", "expected"),
    [
        (("<image>\nq", "a"), 1, ("<image>\nq", "a")),
        (("q\n<image>", "a"), 1, ("q\n<image>", "a")),
        (("in <image> what?", "a"), 1, ("in <image> what?", "a")),
        (("q", "a", "<image>\nq2", "b"), 1, ("q", "a", "<image>\nq2", "b")),
        (("q", "a"), 1, ("<image>\nq", "a")),
        (("<image>", "a"), 1, ("<image>", "a")),
        (("<image> or <image>?", "a"), 2, ("<image> or <image>?", "a")),
        (("what does <image> mean?", "<image> is a tag"), 0, ("what does <image> mean?", "<image> is a tag")),
    ],
)
def test_placeholders(texts: tuple[str, ...], images: int, expected: tuple[str, ...]) -> None:
    sample = parse(raw(*texts, image=["a.jpg"] * images))
    assert tuple(turn.text for turn in sample.turns) == expected


@pytest.mark.parametrize(
    ("sample", "code", "says"),
    [
        ("text", "schema", "must be a JSON object"),
        (raw("q", "a", id=1.5), "schema", "'id'"),
        (raw("q", "a", id=True), "schema", "'id'"),
        (raw("q", "a", image=3), "schema", "An image must be"),
        (raw("q", "a", image=["a", None]), "schema", "An image must be"),
        (raw("q", "a", image={"bytes": "a"}), "schema", "An image must be"),
        (raw("q", "a", image="a", images=["b"]), "schema", "both 'image' and 'images'"),
        (raw("q", "a", video="a.mp4"), "schema", "'video' is not supported"),
        (raw("q", "a", source=3), "schema", "'source'"),
        ({"id": 1}, "schema", "'conversations'"),
        ({"id": 1, "conversations": []}, "schema", "'conversations'"),
        ({"id": 1, "conversations": ["q"]}, "schema", "Turn 0 must be an object"),
        ({"conversations": [{"from": "human", "value": ["q"]}]}, "schema", "text of turn 0"),
        ({"conversations": [{"from": "tool", "value": "q"}]}, "roles", "'tool'"),
        ({"conversations": [{"from": ["human"], "value": "q"}]}, "roles", "['human']"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "roles", "Turn 0 is from assistant, expected user"),
        ({"conversations": [{"from": "system", "value": "a"}]}, "roles", "The final answer is missing"),
        ({"conversations": [{"from": "human", "value": "q"}] * 2}, "roles", "Turn 1 is from user"),
        (raw("q", "a", "q2"), "roles", "The final answer is missing"),
        (raw("q", " \n"), "empty_answer", "turn 1 is empty"),
        (raw("q", "", "q", "a"), "empty_answer", "turn 1 is empty"),
        (raw(" ", "a"), "schema", "turn 0 is empty"),
        (raw("q", "a", image=["a", "b"]), "image_count", "Found 0 <image> placeholders but 2 images"),
        (raw("<image><image>q", "a", image="a"), "image_count", "Found 2 <image> placeholders but 1 image. "),
        (raw("<image>\nq", "an <image>", image="a"), "image_count", "outside a user turn"),
    ],
)
def test_errors_name_the_problem_the_place_and_the_fix(sample: Any, code: str, says: str) -> None:
    with pytest.raises(SampleError) as caught:
        parse(sample)
    assert caught.value.code == code
    assert says in str(caught.value)
    assert "Sample 7" in str(caught.value)
    assert "folder/mix.json" in str(caught.value)
    if isinstance(sample, dict) and "id" in sample:
        assert f"id {sample['id']!r}" in str(caught.value)


def test_errors_travel_between_processes() -> None:
    error = pickle.loads(pickle.dumps(SampleError("schema", "wrong").at(SampleLocation("a/b.json", 1), 7)))
    assert (error.code, str(error)) == ("schema", "Sample 1 (id 7) of a/b.json: wrong [schema]")
