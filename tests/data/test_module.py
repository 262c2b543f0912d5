import inspect
import logging

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import dpn.data
from dpn.data.batch import DataError
from tests.data.conftest import gpt, human, row


def answers_of(length):
    """A row whose answer's length depends on its number, so token counts differ."""
    return [row(i, human("hi"), gpt("b " * (1 + i % 5))) for i in range(length)]


def data_of(file, processor, **options):
    return dpn.data.build(
        "llava_json",
        processor=processor,
        train_file=str(file),
        image_root=str(file.parent / "images"),
        **options,
    )


class Recorder(LightningModule):
    """Learns nothing and records the batches."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.tokens, self.stop_at = [], [], stop_at

    def training_step(self, batch, _):
        self.seen.append(batch.sample_ids.tolist())
        self.tokens.append((batch.num_supervised, batch.window_tokens))
        return self.weight.sum()

    def on_train_batch_start(self, *_):
        if self.stop_at is not None and self.global_step == self.stop_at:
            raise KeyError("killed")

    def configure_optimizers(self):
        # Makes Lightning create the loader's iterator before it restores the optimizer step.
        steps = self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), lr=1 / steps)


def trainer_in(folder, **options):
    checkpoint = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    return Trainer(
        **{"max_epochs": 2, **options},
        accelerator="cpu",
        callbacks=[checkpoint],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


@pytest.mark.parametrize("stop_at", [0, 2, 3, 5])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_after_a_kill_sees_the_batches_that_were_left(
    stop_at, accumulate, tmp_path, write, processor
):
    """3 optimizer steps an epoch, so step 3 is the border between two epochs."""
    file = write(answers_of(3 * 4 * accumulate - 2))
    options = {"batch_size": 4, "seed": 5}

    def fit(model, folder, checkpoint=None):
        trainer = trainer_in(folder, accumulate_grad_batches=accumulate)
        trainer.fit(model, data_of(file, processor, **options), ckpt_path=checkpoint)
        return model

    whole = fit(Recorder(), tmp_path / "whole")
    assert len(whole.seen) == 6 * accumulate
    with pytest.raises(KeyError):
        fit(Recorder(stop_at), tmp_path / "killed")
    checkpoint = tmp_path / "killed" / f"step={stop_at}.ckpt" if stop_at else None
    resumed = fit(Recorder(), tmp_path / "resumed", checkpoint)
    assert resumed.seen == whole.seen[stop_at * accumulate :]
    assert resumed.tokens == whole.tokens[stop_at * accumulate :]


def test_every_batch_knows_the_supervised_tokens_of_its_window(tmp_path, write, processor):
    model = Recorder()
    file = write(answers_of(12))
    trainer = trainer_in(tmp_path, accumulate_grad_batches=3, max_epochs=1)
    trainer.fit(model, data_of(file, processor, batch_size=2))
    own, windows = zip(*model.tokens, strict=True)
    assert len(set(own)) > 1
    assert windows == tuple(sum(own[i // 3 * 3 : i // 3 * 3 + 3]) for i in range(6))


def test_overfitting_shows_the_same_batches_again(tmp_path, write, processor):
    model = Recorder()
    file = write(answers_of(12))
    trainer = trainer_in(tmp_path, overfit_batches=2, max_epochs=3)
    trainer.fit(model, data_of(file, processor, batch_size=2, val_file=str(file)))
    assert model.seen == [[0, 1], [2, 3]] * 3


def test_workers_change_nothing_and_count_skipped_rows_once(write, processor, caplog):
    rows = answers_of(9)
    rows[4] = {"id": "bad"}
    file = write(rows)
    alone, spread = (
        data_of(file, processor, batch_size=2, on_error="skip", num_workers=n) for n in (0, 2)
    )
    loaders = [data.train_dataloader() for data in (alone, spread)]
    for _ in range(2):
        first, second = list(loaders[0]), list(loaders[1])
        assert [b.sample_ids.tolist() for b in first] == [b.sample_ids.tolist() for b in second]
        assert all(torch.equal(a.labels, b.labels) for a, b in zip(first, second, strict=True))
    assert alone.skipped == spread.skipped
    assert list(alone.skipped) == [(str(file), 4)]
    assert "there is no conversation" in alone.skipped[str(file), 4]
    said = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert [m for m in said if m.startswith("Skipped")] == [
        f"Skipped bad row number 1. {alone.skipped[str(file), 4]}"
    ] * 2  # once by each data module


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("part", ["train_dataloader", "val_dataloader", "val_share"])
def test_a_bad_row_of_a_worker_is_one_sentence(workers, part, write, processor):
    file = write([*answers_of(3), {"id": "bad"}])
    data = data_of(file, processor, batch_size=2, num_workers=workers, val_file=str(file))
    with pytest.raises(DataError, match=r"\ARow 3 of .*there is no conversation.* holds id\.\Z"):
        list(getattr(data, part)())


def test_rows_to_validate_on_can_be_limited_also_with_a_holdout(write, processor):
    file = write(answers_of(9))
    whole, few = (
        [b.sample_ids.tolist() for b in data_of(file, processor, **options).val_dataloader()]
        for options in ({"holdout": 4}, {"holdout": 4, "val_rows": 3})
    )
    assert few == [whole[0][:3]]


def test_validation_keeps_the_order_of_the_file(write, processor):
    file = write(answers_of(5))
    data = data_of(file, processor, val_file=str(file), val_rows=5, eval_batch_size=2)
    assert [b.sample_ids.tolist() for b in data.val_dataloader()] == [[0, 1], [2, 3], [4]]
    assert data_of(file, processor).val_dataloader() == []


def test_loaders_without_a_processor_say_what_is_missing(write):
    data = data_of(write(answers_of(2)), None)
    with pytest.raises(ValueError, match="Set `processor`"):
        data.train_dataloader()


def test_corpus_is_the_text_that_the_model_sees(write):
    rows = [row(0, human("<image>\nWhat?"), gpt("red"), image="red.png"), {"id": "bad"}, row(1)]
    data = data_of(write(rows), None)
    texts = list(data.corpus())
    assert texts[1] == "\nWhat? ASSISTANT: red"
    assert texts[2].endswith(
        "questions. USER: How many birds are there? ASSISTANT: There are 1 of them."
    )
    plain = data_of(write(rows[:1]), None, template="plain")
    assert list(plain.corpus()) == ["", "red\n"]


def test_sources_are_found_by_file_name_with_a_schema():
    assert {"llava_json", "mosaic"} <= set(dpn.data.names())
    for name in dpn.data.names():
        parameters = dict(inspect.signature(dpn.data.resolve(name)).parameters)
        assert {"batch_size", "num_workers", "on_error", "seed"} <= set(parameters)
        assert all(p.annotation is not p.empty for p in parameters.values())
    with pytest.raises(ValueError, match=r"'mosiac'; there is .*llava_json, mosaic"):
        dpn.data.resolve("mosiac")


def test_missing_files_are_reported_together(write, processor):
    good = data_of(write(answers_of(2)), processor).source
    assert good.check() == []
    bad = dpn.data.resolve("llava_json")(
        train_file="no.json", val_file="nor.json", image_root="none", template="v2", num_workers=-1
    )
    assert bad.check() == [
        "`data.num_workers=-1` is not possible; it can be at least 0.",
        "`data.train_file=no.json` does not exist; give the JSON file's path.",
        "`data.val_file=nor.json` does not exist; give the JSON file's path.",
        "`data.image_root=none` is not a folder; give the images'.",
        "`data.template=v2` is unknown; there is plain, v1, short.",
    ]


@pytest.mark.parametrize(("holdout", "count"), [(3, 3), (0.25, 5), (0.26, 5)])
def test_held_out_rows_are_the_same_for_all_seeds_and_never_trained_on(
    holdout, count, write, processor
):
    file = write(answers_of(20))

    def rows_of(seed, **options):
        data = data_of(file, processor, batch_size=1, seed=seed, holdout=holdout, **options)
        loaders = data.train_dataloader(), data.val_dataloader()
        train, val = (
            [number for batch in loader for number in batch.sample_ids.tolist()]
            for loader in loaders
        )
        assert val == sorted(val)
        return train, val

    (train, val), (shuffled, again) = rows_of(0), rows_of(1)
    assert val == again
    assert train != shuffled
    assert len(val) == count
    assert sorted(train + val) == sorted(shuffled + val) == list(range(20))
    assert rows_of(0, holdout_seed=1)[1] != val
    fewer, held = rows_of(0, train_rows=10 + count)
    assert sorted(fewer + held) == list(range(10 + count))


def test_impossible_held_out_splits_are_refused(write, processor):
    file = write(answers_of(4))
    whole = data_of(file, processor, holdout=4)
    with pytest.raises(DataError, match=r"`data.holdout=4` of 4 rows leaves no rows to train on"):
        whole.train_dataloader()
    for amount in (-1, 0, 1.5):
        (found,) = data_of(file, processor, holdout=amount).source.check()
        assert found.startswith(f"`data.holdout={amount}` is not possible")
    (found,) = data_of(file, processor, holdout=1, val_file=str(file)).source.check()
    assert found.startswith("`data.val_file` and `data.holdout` both determine")
