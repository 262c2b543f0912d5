"""The decoder's reading of questions without their images, for projectors that need it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpn.decoder.attention import BackendName
from dpn.decoder.loop import prefill
from dpn.routers.base import Router, RoutingContext
from dpn.tokens import Trace, pack


@torch.no_grad()
def read_questions(
    language: Any, router: Router, texts: Sequence[Tensor], backend: BackendName
) -> Tensor:
    """Return the last hidden state, after the last norm, of the last row of each text, `[S, D]`.

    Args:
        language: Hugging Face text model whose layers are `DecoderLayer`s.
        router: Router of the model, for its sizes.
        texts: Text embeddings `[t, D]` of S instructions; t may be 0.
        backend: Attention backend.
    """
    filled = [text if len(text) else text.new_zeros(1, text.shape[1]) for text in texts]
    counts = np.array([len(text) for text in filled])
    mask = np.arange(counts.max()) < counts[:, None]
    nothing = ((0, 0),) * len(filled)
    context = RoutingContext(
        nothing, ((),) * len(filled), np.zeros(len(filled), np.uint64), False, 0, 0, Trace((), ())
    )
    tokens = pack(torch.cat(filled), mask, (), (), ())
    tokens = prefill(language, Router(**router.sizes), tokens, context, backend)
    last = torch.from_numpy(counts.cumsum() - 1).to(tokens.hidden.device)
    return language.norm(tokens.hidden.index_select(0, last))
