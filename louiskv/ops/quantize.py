"""Keys in few bits."""

import torch
from torch import Tensor


def pack_bits(bits: Tensor) -> Tensor:
    """Pack booleans [..., D] eight to a byte: [..., ceil(D / 8)] uint8, the first in the lowest bit."""
    padded = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.shape[-1] % 8))
    weight = 2 ** torch.arange(8, device=bits.device, dtype=torch.uint8)
    eights: Tensor = padded.unflatten(-1, (-1, 8))
    return (eights * weight).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, num_bits: int) -> Tensor:
    """The booleans [..., num_bits] that `pack_bits` packed."""
    shift = torch.arange(8, device=packed.device, dtype=torch.uint8)
    bits = (packed[..., None] >> shift) & 1
    return bits.flatten(-2)[..., :num_bits].bool()


def signs_of(packed: Tensor, num_bits: int, dtype: torch.dtype) -> Tensor:
    """The same as numbers [..., num_bits], 1 for True and -1 for False."""
    # One look into a table for each byte: a third of the time of shifting bits apart.
    byte = torch.arange(256, device=packed.device, dtype=torch.uint8)[:, None]
    table = unpack_bits(byte, 8).to(dtype) * 2 - 1
    signs = table.index_select(0, packed.flatten().int()).view(*packed.shape, 8)
    return signs.flatten(-2)[..., :num_bits]


def to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Round rows [..., D] to codes in 8 bits, symmetric about 0: a row is about `codes * step`.

    Returns:
        Codes [..., D] int8 and steps [...] float16; zeros for a row of zeros.
    """
    steps = (rows.float().abs().amax(-1) / 127).half()
    # A step may be a subnormal number, which is coarse: the codes are of the step that is kept.
    codes = (rows.float() / steps.float().where(steps > 0, 1.0)[..., None]).round()
    return codes.clamp(-127, 127).to(torch.int8), steps
