"""The best of many: which pairs of a class and a location become candidates.

A level of 100×168 locations has 1.3 million pairs with 80 classes, of which a thousand are wanted. They are
sought in groups: if a thousand groups have a highest rank that is no lower than that of another group, this
one has none of the best thousand, or none that is better. So the highest of each group is looked at, and only
the members of the best groups, once more in groups, smaller ones. Which pairs are in one group is all the
same, so that neighbours in memory are.
"""

from __future__ import annotations

import math

import paddle
from paddle import Tensor


def best_pairs(ranks: list, count: int, zero: Tensor) -> tuple:
    """The best pairs of each level.

    Args:
        ranks: L × [B, C, H_l, W_l], 0 or more.
        count: K, how many are wanted.
        zero: [B, 1] float32.

    Returns:
        [B, L, K] ranks, and numbers of the pairs: class·H_l·W_l + location. Of a level of fewer than K
        locations, there may be pairs of rank 0 among them that have numbers above all of its own.
    """
    num_classes = ranks[0].shape[1]
    groups = [level.reshape([0, -1, num_classes]) for level in ranks]
    none = zero.unsqueeze(2).tile([1, count, num_classes])
    groups = [
        level if _is_at_least(level.shape[1], count) else paddle.concat([level, none], axis=1)
        for level in groups
    ]
    first = paddle.stack([_best(level.max(axis=-1), count)[1] for level in groups], axis=1)
    members = _members(groups, first)
    size = _group_size(num_classes, count)
    groups = members.reshape([0, 0, -1, size])
    second = _best(groups.max(axis=-1), count)[1]
    places = second.unsqueeze(-1).tile([1, 1, 1, size])
    members = paddle.take_along_axis(groups, places, axis=2, broadcast=False)
    best, third = _best(members.flatten(2), count)
    return best, _numbers(first, num_classes, _numbers(second, size, third))


def _is_at_least(size: int | Tensor, count: int) -> bool:
    """Whether it is known to be: most sizes of an exported program are tensors, known when it runs."""
    return isinstance(size, int) and size >= count


def _group_size(num_classes: int, count: int) -> int:
    """Of the groups into which count·C members are parted.

    With the root of C, the groups and the members of the best ones are the fewest together.
    """
    return max(size for size in range(1, math.isqrt(num_classes) + 1) if num_classes * count % size == 0)


def _best(values: Tensor, count: int) -> tuple:
    """The highest `count` along the last axis, and where they are."""
    return paddle.topk(values, count, axis=-1)


def _members(groups: list, chosen: Tensor) -> Tensor:
    """L × [B, N_l, C] at chosen [B, L, K] → [B, L, K, C]."""
    images = paddle.arange(chosen.shape[0], dtype=chosen.dtype).unsqueeze([1, 2])
    places = paddle.stack([0 * chosen + images, chosen], axis=-1)
    of_levels = paddle.split(places, len(groups), axis=1)
    return paddle.concat([paddle.gather_nd(*level) for level in zip(groups, of_levels)], axis=1)


def _numbers(chosen: Tensor, size: int, members: Tensor) -> Tensor:
    """What numbers members of the chosen groups had before the groups of `size` were chosen."""
    group = members // size
    before = paddle.take_along_axis(chosen, group, axis=-1, broadcast=False)
    return size * before + (members - size * group)
