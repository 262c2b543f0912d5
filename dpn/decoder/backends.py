"""Names of the attention backends of `dpn.decoder.attention`, known before torch is imported."""

from typing import Literal

BackendName = Literal["auto", "segments", "padded", "varlen", "flash"]
