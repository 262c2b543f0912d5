"""Ranges of arguments whose constructors belong to libraries, which do not annotate them.

A range holds for all numbers in a list or mapping.
"""

from typing import Annotated, Any

from dpn.common.ranges import (
    AtLeast0,
    AtLeast1,
    BelowOne,
    CountOrAll,
    Form,
    Layers,
    NonNegative,
    Positive,
    Range,
)

_DEVICES = Form(
    r"auto|-1|[1-9]\d*|\d+(,\d+)+|\[\d+(, \d+)*\]", "auto, a number, or a list of indices"
)
_HEADS = Annotated[int, Range(1, 4096)]
_SIZE = Annotated[int, Range(1, 2**24)]


def _all(annotation: Any, *names: str) -> dict[str, Any]:
    return dict.fromkeys(names, annotation)


#: Arguments of optimizers.
OPTIMIZER = {
    **_all(NonNegative, "lr", "other_lr", "weight_decay", "eps"),
    **_all(BelowOne, "momentum", "alpha", "rho"),
    "betas": BelowOne,
}
#: Arguments of Lightning's Trainer.
TRAINER = {
    **_all(CountOrAll, "max_steps", "max_epochs"),
    "num_sanity_val_steps": Annotated[int, Range(-1)],
    **_all(AtLeast0, "min_steps", "min_epochs"),
    **_all(AtLeast1, "num_nodes", "accumulate_grad_batches", "log_every_n_steps"),
    **_all(AtLeast1, "check_val_every_n_epoch"),
    **_all(NonNegative, "limit_train_batches", "limit_val_batches", "overfit_batches"),
    **_all(NonNegative, "gradient_clip_val", "limit_test_batches", "limit_predict_batches"),
    "val_check_interval": Positive,
    "accelerator": Annotated[str, Form("auto|cpu|gpu|cuda|mps", "auto, cpu, gpu, cuda or mps")],
    "devices": Annotated[int, _DEVICES],
}
#: Arguments of strategies; the settings of DeepSpeed are in `config`.
STRATEGY = {"config": NonNegative}
#: Arguments of loggers.
LOGGER = _all(AtLeast1, "flush_logs_every_n_steps", "max_queue")
#: Arguments of Hugging Face's text configs.
TEXT = {
    "num_hidden_layers": Layers,
    **_all(_HEADS, "num_attention_heads", "num_key_value_heads"),
    **_all(_SIZE, "vocab_size", "hidden_size", "intermediate_size", "head_dim"),
    **_all(_SIZE, "max_position_embeddings", "sliding_window"),
    **_all(BelowOne, "attention_dropout", "embd_pdrop", "resid_pdrop", "attn_pdrop"),
    **_all(Positive, "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "rope_theta"),
    "initializer_range": NonNegative,
    "rope_parameters": Positive,
}
