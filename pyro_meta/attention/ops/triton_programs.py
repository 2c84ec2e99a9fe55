# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""The programs that `pyro_meta.attention.ops.triton` launches: each runs for many blocks at once.

`program_id` says which block. Names as there; one that ends in `_at` is an address. Strides of q, k
and v over sequences, heads and tokens end in b, h and t; the last dimension is contiguous. Indices
that are multiplied by strides are widened to 64 bits first, since a batch may hold more than 2^31
numbers. Scores are in units of log 2: `scale` holds log2(e) / sqrt(d), and exp2 is what the chip
has.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["T", "B", "groups"])
def softmax_program(
    q_at, k_at, v_at, gain_at, order_at, starts_at, reach_at, sinks_at, out_at,
    scale, T, B, H, groups, heads_per_key,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    HAS_SINKS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A block of queries of one mechanism in one sequence, of one head.

    Tokens come sorted (`order_at`) by group, that is mechanism and then sequence; group g begins at
    `starts_at[g]`, and fills a block for every QUERIES of its tokens, the last of them in part. The
    program counts blocks over the groups to find its own, and reads at which positions its queries
    stand. Between the first key that any of them sees and the last there are three ranges: one that
    only some see (a window has moved on), one that all see, which needs no mask, and one on the
    diagonal. Where a mechanism has sinks, those that lie before all of them come first.
    """
    head = (tl.program_id(0) % H).to(tl.int64)
    number = tl.program_id(0) // H  # the longest blocks of all first
    D = H * WIDTH
    group = tl.arange(0, GROUPS)
    is_group = group < groups
    begin = tl.load(starts_at + group, mask=is_group, other=0)
    end = tl.load(starts_at + group + 1, mask=is_group, other=0)
    reach_of = tl.load(reach_at + group // B, mask=is_group, other=0)
    # Mechanisms of another kind, of reach 0, have no block here.
    blocks = tl.where(reach_of > 0, (end - begin + QUERIES - 1) // QUERIES, 0)
    mine = tl.sum((tl.cumsum(blocks, 0) <= number).to(tl.int32), 0)
    if mine < groups:
        is_mine = group == mine
        block = tl.sum(tl.where(group <= mine, blocks, 0), 0) - 1 - number  # the longest first
        first = tl.sum(tl.where(is_mine, begin, 0), 0) + block * QUERIES
        final = tl.minimum(first + QUERIES, tl.sum(tl.where(is_mine, end, 0), 0)) - 1
        reach = tl.sum(tl.where(is_mine, reach_of, 0), 0)
        sinks = 0
        if HAS_SINKS:
            sinks = tl.load(sinks_at + mine // B)
        sequence = (mine % B).to(tl.int64)
        offset = sequence * T
        place = first + tl.arange(0, QUERIES)
        is_query = place <= final
        last = (tl.load(order_at + tl.minimum(place, final)) - offset).to(tl.int32)
        least = (tl.load(order_at + first) - offset).to(tl.int32)
        most = (tl.load(order_at + final) - offset).to(tl.int32)

        column = tl.arange(0, WIDTH)
        key_head = head // heads_per_key
        q = tl.load(q_at + sequence * q_b + head * q_h + last.to(tl.int64)[:, None] * q_t + column)
        k_at += sequence * k_b + key_head * k_h
        v_at += sequence * v_b + key_head * v_h
        total = tl.zeros((QUERIES, WIDTH), tl.float32)
        weight = tl.zeros((QUERIES,), tl.float32)
        peak = tl.full((QUERIES,), -1e30, tl.float32)
        # But for sinks no query sees a key before `begin_key`, and every one those from `all_begin`
        # to `all_end`.
        begin_key = tl.maximum(least - reach + 1, 0) // KEYS * KEYS
        all_end = (least + 1) // KEYS * KEYS
        all_begin = (tl.maximum(most - reach + 1, 0) + KEYS - 1) // KEYS * KEYS
        all_begin = tl.minimum(all_begin, all_end)
        if HAS_SINKS:
            total, weight, peak = _meet(
                total, weight, peak, q, k_at, v_at, k_t, v_t, scale, 0,
                tl.minimum(sinks, begin_key), last, reach, sinks, most, True, WIDTH, KEYS,
                HAS_SINKS, PRECISION,
            )  # fmt: skip
        total, weight, peak = _meet(
            total, weight, peak, q, k_at, v_at, k_t, v_t, scale, begin_key, all_begin, last,
            reach, sinks, most, True, WIDTH, KEYS, HAS_SINKS, PRECISION,
        )  # fmt: skip
        total, weight, peak = _meet(
            total, weight, peak, q, k_at, v_at, k_t, v_t, scale, all_begin, all_end, last,
            reach, sinks, most, False, WIDTH, KEYS, HAS_SINKS, PRECISION,
        )  # fmt: skip
        total, weight, peak = _meet(
            total, weight, peak, q, k_at, v_at, k_t, v_t, scale, all_end, most + 1, last,
            reach, sinks, most, True, WIDTH, KEYS, HAS_SINKS, PRECISION,
        )  # fmt: skip
        channel = head * WIDTH + column
        gain = tl.load(gain_at + (mine // B) * D + channel)
        rows = total / weight[:, None] * gain[None, :]
        cell = (offset + last)[:, None] * D + channel[None, :]
        tl.store(out_at + cell, rows.to(out_at.dtype.element_ty), mask=is_query[:, None])


@triton.jit
def _meet(
    total, weight, peak, q, k_at, v_at, k_t, v_t, scale, begin, end, last, reach, sinks, most,
    IS_MASKED: tl.constexpr, WIDTH: tl.constexpr, KEYS: tl.constexpr, HAS_SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Queries meet the keys begin .. end, in a running softmax (arXiv 1805.02867, 2205.14135).

    `total` is the sum of values, weighed, and `weight` that of the weights, both over 2^peak, the
    largest score so far: where a larger one turns up, what was summed shrinks.
    """
    column = tl.arange(0, WIDTH)
    for start in range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        at = key.to(tl.int64)
        if IS_MASKED:
            is_key = key <= most
            k = tl.load(k_at + at[None, :] * k_t + column[:, None], mask=is_key[None, :], other=0.0)
            v = tl.load(v_at + at[:, None] * v_t + column[None, :], mask=is_key[:, None], other=0.0)
        else:
            k = tl.load(k_at + at[None, :] * k_t + column[:, None])
            v = tl.load(v_at + at[:, None] * v_t + column[None, :])
        scores = tl.dot(q, k, input_precision=PRECISION) * scale
        if IS_MASKED:
            is_seen = key[None, :] > last[:, None] - reach
            if HAS_SINKS:
                is_seen = is_seen | (key[None, :] < sinks)
            is_seen = is_seen & (key[None, :] <= last[:, None])
            scores = tl.where(is_seen, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        shrink = tl.exp2(peak - higher)
        part = tl.exp2(scores - higher[:, None])
        weight = weight * shrink + tl.sum(part, 1)
        total = total * shrink[:, None]
        total += tl.dot(part.to(v.dtype), v, input_precision=PRECISION)
        peak = higher
    return total, weight, peak


@triton.jit
def _phi(x):
    """elu(x) + 1."""
    x = x.to(tl.float32)
    return tl.maximum(x, 0.0) + tl.exp(tl.minimum(x, 0.0))


@triton.jit(do_not_specialize=["n"])
def states_program(
    k_at, v_at, states_at, n, G, k_b, k_h, k_t, v_b, v_h, v_t,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_s phi(k_s) v_s^T and sum_s phi(k_s) of a whole chunk, written to the next one's place.

    The host then sums over chunks, so that each has what was before it; the first has zeros.
    """
    chunk = tl.program_id(0) % (n - 1)
    head = (tl.program_id(0) // (n - 1)).to(tl.int64)
    k_at += head // G * k_b + head % G * k_h
    v_at += head // G * v_b + head % G * v_h
    column = tl.arange(0, WIDTH)
    state = tl.zeros((WIDTH, WIDTH), tl.float32)
    sums = tl.zeros((WIDTH,), tl.float32)
    for start in range(0, CHUNK, ROWS):
        row = (chunk * CHUNK + start + tl.arange(0, ROWS)).to(tl.int64)
        phi_k = _phi(tl.load(k_at + row[None, :] * k_t + column[:, None]))  # [d, C]
        v = tl.load(v_at + row[:, None] * v_t + column[None, :]).to(tl.float32)
        state += tl.dot(phi_k, v, input_precision=PRECISION)
        sums += tl.sum(phi_k, 1)
    states_at += (head * n + chunk + 1) * (WIDTH * WIDTH + WIDTH)
    tl.store(states_at + column[:, None] * WIDTH + column[None, :], state)
    tl.store(states_at + WIDTH * WIDTH + column, sums)


@triton.jit(do_not_specialize=["T", "n", "B", "index"])
def linear_program(
    q_at, k_at, v_at, states_at, gain_at, choice_at, out_at,
    T, n, B, H, heads_per_key, index, q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    IS_ROUTED: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Neighbouring rows of one head: from the state before their chunk, and its keys so far.

    Rows are all those of a stretch of positions, chosen or not, for their keys lie together; what
    no token chose is left at once, and rows of others are not written.
    """
    head = (tl.program_id(0) % H).to(tl.int64)
    sequence = (tl.program_id(0) // H % B).to(tl.int64)
    number = tl.program_id(0) // H // B
    key_head = head // heads_per_key
    q_at += sequence * q_b + head * q_h
    k_at += sequence * k_b + key_head * k_h
    v_at += sequence * v_b + key_head * v_h
    column = tl.arange(0, WIDTH)
    row = number * ROWS + tl.arange(0, ROWS)
    wide = row.to(tl.int64)
    is_own = row < T
    if IS_ROUTED:
        is_own &= tl.load(choice_at + sequence * T + wide, mask=is_own, other=-1) == index
    if tl.max(is_own.to(tl.int32), 0) > 0:
        q = tl.load(q_at + wide[:, None] * q_t + column[None, :], mask=is_own[:, None], other=0.0)
        phi_q = _phi(q)
        chunk = number * ROWS // CHUNK
        states_at += ((sequence * (H // heads_per_key) + key_head) * n + chunk) * (
            WIDTH * WIDTH + WIDTH
        )
        before = tl.load(states_at + column[:, None] * WIDTH + column[None, :])
        before_sum = tl.load(states_at + WIDTH * WIDTH + column)
        total = tl.dot(phi_q, before, input_precision=PRECISION)
        weight = tl.sum(phi_q * before_sum[None, :], 1)
        for start in range(chunk * CHUNK, number * ROWS + 1, ROWS):
            key = start + tl.arange(0, ROWS)
            at = key.to(tl.int64)
            is_key = key < T
            k = tl.load(k_at + at[None, :] * k_t + column[:, None], mask=is_key[None, :], other=0.0)
            v = tl.load(v_at + at[:, None] * v_t + column[None, :], mask=is_key[:, None], other=0.0)
            scores = tl.dot(phi_q, _phi(k), input_precision=PRECISION)
            scores = tl.where(key[None, :] <= row[:, None], scores, 0.0)
            total += tl.dot(scores, v.to(tl.float32), input_precision=PRECISION)
            weight += tl.sum(scores, 1)
        rows = total / tl.maximum(weight, 1.1754943508222875e-38)[:, None]
        D = H * WIDTH
        channel = head * WIDTH + column
        if IS_ROUTED:
            rows = rows * tl.load(gain_at + index * D + channel)[None, :]
        cell = (sequence * T + wide)[:, None] * D + channel[None, :]
        tl.store(out_at + cell, rows.to(out_at.dtype.element_ty), mask=is_own[:, None])
