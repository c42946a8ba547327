"""The traversal of many decision trees together, in a number of steps that the deepest tree sets.

All nodes of all trees stand in arrays, breadth first, so that the two children of a node are neighbours. A row visits
one node of each tree in a step. A leaf's threshold is infinite: no value is greater, so the row stays there. A value
that is missing is replaced beforehand by one that goes the node's default way, so a step has no branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ciml.tensorflow import load_tensorflow
from ciml.training.conversion.step import Function, Step

#: What a node compares in place of a missing value: this goes left, or right, or is a number as any other.
LEFT = 0
RIGHT = 1
AS_ZERO = 2
#: The same where a value of at most 1e-35 (LightGBM's ``kZeroThreshold``) is missing too.
ZERO_LEFT = 3
ZERO_RIGHT = 4
_ZERO_LIMIT = float(np.float32(1e-35))


@dataclass(frozen=True)
class Nodes:
    """The nodes of one or more trees; arrays of the same length, and how they compare values.

    Attributes:
      feature: int, the column that a node compares; any number in a leaf.
      threshold: float, with which it compares.
      left: int, the position of the child for small values; -1 in a leaf.
      right: int, the position of the other child.
      missing: int, one of `LEFT`, `RIGHT`, `AS_ZERO`, `ZERO_LEFT` and `ZERO_RIGHT`.
      value: float64 [nodes, outputs]; that of leaves counts.
      roots: int [trees], the positions of the trees' roots.
      narrow: whether values are rounded to float32 before they are compared.
      strict: whether only smaller values go left; otherwise equal ones do too.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing: np.ndarray
    value: np.ndarray
    roots: np.ndarray
    narrow: bool = False
    strict: bool = False


def joined(trees: Sequence[Nodes]) -> Nodes:
    """Return the nodes of all trees, which compare alike, as one."""
    starts = np.concatenate([[0], np.cumsum([len(tree.left) for tree in trees])[:-1]])

    def moved(positions: np.ndarray, start: int) -> np.ndarray:
        return np.where(positions < 0, -1, positions + start)

    pairs = list(zip(trees, starts, strict=True))
    return replace(
        trees[0],
        feature=np.concatenate([tree.feature for tree in trees]),
        threshold=np.concatenate([tree.threshold for tree in trees]),
        left=np.concatenate([moved(tree.left, start) for tree, start in pairs]),
        right=np.concatenate([moved(tree.right, start) for tree, start in pairs]),
        missing=np.concatenate([tree.missing for tree in trees]),
        value=np.concatenate([tree.value for tree in trees]),
        roots=np.concatenate([tree.roots + start for tree, start in pairs]),
    )


def leaf_values(step: Step, nodes: Nodes, columns: int) -> Function:
    """Return a function from float64 [n, columns] to the leaves' values, float64 [n, trees, outputs].

    Args:
      step: collects the arrays.
      nodes: of all trees.
      columns: the number of features.
    """
    tf = load_tensorflow()
    order, first_child, depth = _breadth_first(nodes)
    inner = nodes.left[order] >= 0
    kinds = np.unique(nodes.missing[order][inner])
    block = np.where(inner, np.searchsorted(kinds, nodes.missing[order]), 0)
    feature = np.where(inner, nodes.feature[order] + block * columns, 0)
    largest = np.finfo(np.float64).max
    # An infinite value, which is a missing one, is beyond the threshold of every node that has children.
    threshold = np.where(inner, np.clip(largest_left(nodes)[order], -largest, largest), np.inf)
    leaves, leaf_of_node = np.unique(nodes.value[order], axis=0, return_inverse=True)

    # A step gathers once for a node, which halves its time. Whole numbers of a float64 are exact.
    table = step.variables(np.stack([feature, first_child, threshold], axis=1).astype(np.float64))
    rows = step.variables(np.where(inner, 0, leaf_of_node.ravel()).astype(np.int32))
    values = step.variables(leaves.astype(np.float64))
    trees = len(nodes.roots)
    kinds_used = [int(kind) for kind in kinds]
    width = max(len(kinds_used), 1) * columns

    def traverse(x: Any) -> Any:
        compared = tf.cast(tf.cast(x, tf.float32), tf.float64) if nodes.narrow else x
        flat = tf.reshape(_compared(compared, kinds_used), [-1])
        count = tf.shape(x)[0]
        starts = tf.range(count)[:, tf.newaxis] * width
        packed = tf.identity(table)  # read once, and not in every step

        def advance(node: Any) -> tuple[Any]:
            column, child, bound = tf.unstack(tf.gather(packed, node), axis=-1)
            value = tf.gather(flat, starts + tf.cast(column, tf.int32))
            return (tf.cast(child, tf.int32) + tf.cast(value > bound, tf.int32),)

        node = tf.tile(tf.range(trees)[tf.newaxis, :], [count, 1])
        if depth:
            shape = [tf.TensorShape([None, trees])]
            node = tf.while_loop(lambda _: True, advance, [node], shape_invariants=shape, maximum_iterations=depth)[0]
        return tf.gather(values, tf.gather(rows, node))

    return traverse


def largest_left(nodes: Nodes) -> np.ndarray:
    """Return for each node the largest value that goes left, float64 [nodes].

    It is a value of the type that is compared, so that a runtime that computes in float32 compares the same.
    """
    kind = np.float32 if nodes.narrow else np.float64
    with np.errstate(over="ignore"):
        bound = nodes.threshold.astype(kind)
    beyond = bound >= nodes.threshold if nodes.strict else bound > nodes.threshold
    return np.where(beyond, np.nextafter(bound, kind(-np.inf)), bound).astype(np.float64)


def _breadth_first(nodes: Nodes) -> tuple[np.ndarray, np.ndarray, int]:
    """Order the nodes by depth, over all trees.

    Returns:
      The nodes in their new order, which begins with the roots; the new position of each one's left child, or its own
      for a leaf; and the depth of the deepest tree.
    """
    levels = []
    level = nodes.roots
    while len(level):
        levels.append(level)
        parents = level[nodes.left[level] >= 0]
        level = np.stack([nodes.left[parents], nodes.right[parents]], axis=1).ravel()
    order = np.concatenate(levels)
    parents = nodes.left[order] >= 0
    first_child = np.arange(len(order))
    first_child[parents] = len(nodes.roots) + 2 * np.arange(parents.sum())
    return order, first_child, len(levels) - 1


def _compared(x: Any, kinds: Sequence[int]) -> Any:
    """Return the columns to compare, [n, kinds * columns]: x with its missing values replaced, for each kind."""
    tf = load_tensorflow()
    missing = tf.math.is_nan(x)
    infinity = tf.constant(np.inf, x.dtype)
    finite = tf.clip_by_value(x, x.dtype.min, x.dtype.max)
    zero = tf.abs(x) <= tf.constant(_ZERO_LIMIT, x.dtype)
    blocks = {
        LEFT: lambda: tf.where(missing, -infinity, finite),
        RIGHT: lambda: tf.where(missing, infinity, finite),
        AS_ZERO: lambda: tf.where(missing, tf.zeros_like(x), finite),
        ZERO_LEFT: lambda: tf.where(missing | zero, -infinity, finite),
        ZERO_RIGHT: lambda: tf.where(missing | zero, infinity, finite),
    }
    return tf.concat([blocks[kind]() for kind in kinds], axis=1) if kinds else x
