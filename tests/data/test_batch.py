import torch

from dpn.data.batch import Sample, collate

SAMPLES = [
    Sample([1, 7, 8], [-100, 7, 8], [torch.full((3, 2, 4), 1.0)], 5, {"id": "a"}),
    Sample([1], [-100], [], 6, {"id": "b"}),
    Sample(
        [1, 3, 3, 9], [-100, -100, -100, 9], [torch.full((3, 4, 2), 2.0), torch.ones(3, 1, 1)], 9
    ),
]


def test_collate_by_hand():
    batch = collate(SAMPLES, pad_token_id=0)
    assert batch.input_ids.tolist() == [[1, 7, 8, 0], [1, 0, 0, 0], [1, 3, 3, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert batch.labels.tolist() == [[-100, 7, 8, -100], [-100] * 4, [-100, -100, -100, 9]]
    assert batch.sample_ids.tolist() == [5, 6, 9]
    assert batch.image_sizes.tolist() == [[2, 4], [4, 2], [1, 1]]
    assert batch.image_sample.tolist() == [0, 2, 2]
    assert batch.pixel_values.shape == (3, 3, 4, 4)
    assert batch.pixel_values.sum((1, 2, 3)).tolist() == [3 * 8, 3 * 16, 3]
    assert batch.pixel_values[1, :, :4, :2].eq(2).all()
    assert (len(batch), batch.num_supervised, batch.window_tokens) == (3, 3, 3)
    assert batch.meta[0] == {"id": "a"}


def test_left_padding_moves_ids_mask_and_labels_together():
    batch = collate(SAMPLES, pad_token_id=0, padding_side="left")
    assert batch.input_ids.tolist() == [[0, 1, 7, 8], [0, 0, 0, 1], [1, 3, 3, 9]]
    assert batch.attention_mask.tolist() == [[0, 1, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]
    assert batch.labels[0].tolist() == [-100, -100, 7, 8]
    assert batch.num_supervised == 3


def test_a_label_on_the_first_column_is_not_a_supervised_token():
    assert collate([Sample([5, 6], [5, 6])], 0).num_supervised == 1


def test_batches_without_images_leave_image_tensors_out():
    batch = collate(SAMPLES[1:2], 0)
    assert set(batch.model_inputs()) == {"input_ids", "attention_mask", "labels", "sample_ids"}
    assert batch.to("cpu").pixel_values is None


def test_to_moves_inputs_and_keeps_host_values():
    moved = collate(SAMPLES, 0).to("meta")
    on_device = {name for name, tensor in moved.model_inputs().items() if tensor.is_meta}
    assert on_device == {"input_ids", "attention_mask", "labels", "pixel_values"}
    assert (moved.num_supervised, moved.meta[0]) == (3, {"id": "a"})
