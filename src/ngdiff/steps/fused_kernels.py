"""tables of addresses and chunks -> Triton kernels over all tensors of two gradients; see :mod:`.fused`."""

# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def _chunk(places, chunks, left_sample, right_sample):
    """Return both addresses of this program's chunk, and how many numbers lie behind them."""
    program = tl.program_id(0)
    tensor = tl.load(chunks + 3 * program)
    first = tl.load(chunks + 3 * program + 1)
    size = tl.load(chunks + 3 * program + 2)
    left = tl.load(places + 2 * tensor).to(left_sample.dtype) + first
    right = tl.load(places + 2 * tensor + 1).to(right_sample.dtype) + first
    return left, right, size - first


@triton.jit
def products(places, chunks, found, left_sample, right_sample, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Store this chunk's g_R·g_R, g_R·g_f and g_f·g_f."""
    left, right, size = _chunk(places, chunks, left_sample, right_sample)
    lane = tl.arange(0, BLOCK)
    own = tl.zeros((BLOCK,), dtype=tl.float32)
    cross = tl.zeros((BLOCK,), dtype=tl.float32)
    other = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(0, CHUNK, BLOCK):
        there = start + lane < size
        mine = tl.load(left + start + lane, mask=there, other=0.0).to(tl.float32)
        theirs = tl.load(right + start + lane, mask=there, other=0.0).to(tl.float32)
        own += mine * mine
        cross += mine * theirs
        other += theirs * theirs
    row = found + 3 * tl.program_id(0)
    tl.store(row, tl.sum(own.to(tl.float64), axis=0))
    tl.store(row + 1, tl.sum(cross.to(tl.float64), axis=0))
    tl.store(row + 2, tl.sum(other.to(tl.float64), axis=0))


@triton.jit
def combination(
    places,
    chunks,
    left_weight,
    right_weight,
    left_sample,
    right_sample,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Put left_weight * g_R + right_weight * g_f in the place of this chunk of g_R."""
    left, right, size = _chunk(places, chunks, left_sample, right_sample)
    lane = tl.arange(0, BLOCK)
    for start in range(0, CHUNK, BLOCK):
        there = start + lane < size
        mine = tl.load(left + start + lane, mask=there, other=0.0).to(tl.float32)
        theirs = tl.load(right + start + lane, mask=there, other=0.0).to(tl.float32)
        sum_ = left_weight * mine + right_weight * theirs
        tl.store(left + start + lane, sum_.to(left_sample.dtype.element_ty), mask=there)
