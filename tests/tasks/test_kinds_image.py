"""Images: where they come from, and how they become pixel values."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from effitrans.errors import UsageError
from effitrans.tasks import data_loader, encode, load_task, predict
from tests.tasks.cases import make, make_model

TASK = {"name": "pictures", "kind": "image-classification", "inputs": "image", "target": "label", "labels": ["a", "b"]}


def folder_of_images(folder, modes=("L", "RGB", "RGBA", "L"), size=(8, 8)):
    rows = []
    for number, mode in enumerate(modes):
        channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
        pixels = np.random.default_rng(number).integers(0, 256, (*size, *channels), dtype=np.uint8)
        (folder / "pictures").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
        rows.append({"image": f"pictures/{number}.png", "label": "ab"[number % 2]})
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task({**TASK, "data": {"train": "train.jsonl"}}, folder)


def test_paths_of_images_start_at_the_data_file(tmp_path, monkeypatch):
    task = folder_of_images(tmp_path)
    monkeypatch.chdir("/")
    rows = task.rows("train")
    assert rows[0]["image"].size == (8, 8)
    model = make_model("vit", task, None)
    encoded = encode(task, "train", None, model)
    expected = np.asarray(Image.open(tmp_path / "pictures/0.png"), dtype=np.float32) / 255
    assert torch.equal(encoded[0]["pixel_values"], torch.from_numpy(expected)[None])
    assert encoded[1]["pixel_values"].shape == (1, 8, 8)
    assert [encoded[n]["labels"] for n in range(4)] == [0, 1, 0, 1]
    assert len(predict(model, task, "train")) == 4


def test_fingerprint_is_of_the_pixels(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    first, second = folder_of_images(one), folder_of_images(two)
    assert first.fingerprint("train") == second.fingerprint("train")
    Image.new("L", (8, 8)).save(two / "pictures" / "2.png")
    assert first.fingerprint("train") != second.fingerprint("train")


def test_missing_image_is_refused(tmp_path):
    task = folder_of_images(tmp_path)
    (tmp_path / "pictures" / "2.png").unlink()
    with pytest.raises(UsageError, match=r"row 3 .*2\.png, which does not exist"):
        task.rows("train")


def test_images_become_the_size_and_channels_of_the_model(tmp_path):
    task = folder_of_images(tmp_path, size=(12, 16))
    model = make_model("vit", task, None)
    batch = next(iter(data_loader(task, "train", None, batch_size=4, model=model)))
    assert batch["pixel_values"].shape == (4, 1, 8, 8)
    assert batch["pixel_values"].dtype == torch.float32
    assert 0 <= batch["pixel_values"].min() <= batch["pixel_values"].max() <= 1
    model.config.num_channels = 3
    assert encode(task, "train", None, model)[0]["pixel_values"].shape == (3, 8, 8)


def test_own_image_processor_of_a_model_is_used(tmp_path):
    from transformers import AutoImageProcessor, ViTImageProcessor

    if getattr(AutoImageProcessor, "is_dummy", False):
        pytest.skip("this version of transformers reads image processors with torchvision alone")
    ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(
        tmp_path
    )
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    task = folder_of_images(tmp_path)
    model = make_model("vit", task, None)
    model.config.num_channels = 3
    pixels = encode(task, "train", processor, model)[1]["pixel_values"]
    expected = np.asarray(Image.open(tmp_path / "pictures/1.png"), dtype=np.float32).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(pixels.numpy(), (expected - 0.5) / 0.25, atol=1e-5)
    digits = load_task("digits")
    pixels = encode(digits, "test", processor, limit=2)[0]["pixel_values"]
    expected = np.array(digits.rows("test")[0]["image"])
    np.testing.assert_allclose(pixels[0].numpy(), (expected - 0.5) / 0.25, atol=0.01)


def test_whole_numbers_are_bytes_and_floats_are_not(tmp_path):
    rows = [{"image": [[0, 255], [51, 102]], "label": 0}, {"image": [[0, 0], [0, 0]], "label": 1}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    task = load_task({**TASK, "data": {"train": "train.json"}}, tmp_path)
    assert encode(task, "train", None)[0]["pixel_values"].flatten().tolist() == pytest.approx([0, 1, 0.2, 0.4])


@pytest.mark.parametrize(
    ("image", "message"),
    [([[1.0, 2.0], [3.0]], "row 2 .* holds no image"), ([[[[1.0]]]], "4 dimensions"), ([1.0], "1 dimensions")],
    ids=["ragged", "too-deep", "flat"],
)
def test_values_that_are_no_images_are_refused(tmp_path, image, message):
    from effitrans.tasks.kinds.image_classification import _to_pixels

    with pytest.raises(UsageError, match=message):
        _to_pixels(image, None, None, "row 2 of task 'pictures'")


def test_other_number_of_channels_is_refused(tmp_path):
    task, model, _ = make("image-classification", "vit", tmp_path)
    model.config.num_channels = 3
    assert encode(task, "test", None, model)[0]["pixel_values"].shape == (3, 8, 8)
    rows = [{"image": np.zeros((2, 8, 8)).tolist(), "label": row} for row in range(3)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UsageError, match="has 2 channels and the model takes 3"):
        encode(task, "train", None, model)[0]


def test_digits_are_read_by_a_vision_transformer():
    task = load_task("digits")
    model = make_model("vit", task, None)
    found = predict(model, task, "test", limit=40, batch_size=16, progress=True)
    assert found.scores.shape == (40, 10)
    assert found.references == task.rows("test", limit=40)["label"][:]
