"""Rebinding: what changes, what does not, who hears of it, and what is refused."""

import copy
import pickle
import random

import pytest

from flambeau.symbolic import (
    MISSING,
    Dict,
    Insert,
    List,
    Node,
    SymbolicError,
    Tree,
    Tuple,
    build,
    digest,
    oneof,
    symbolize,
)


class Box:
    """Something with parts of any kind."""

    def __init__(self, a=None, b=None, items=(), table=None):
        self.a, self.b, self.items, self.table = a, b, items, table


class Layer:
    """Something with typed parts."""

    def __init__(self, width: int, rate: float = 0.5, sizes: list[int] | None = None):
        self.width, self.rate, self.sizes = width, rate, sizes


B, L = symbolize(Box), symbolize(Layer)


def check_tree(tree, parent=None, root=None):
    """Every part knows its parent, and its path leads to it."""
    root = root if root is not None else tree
    assert tree.parent is parent
    found = root
    for key in tree.keys_from_root:
        found = found._child(key, "")
    assert found is tree
    for _, item in tree._items():
        if isinstance(item, Tree):
            check_tree(item, tree, root)


def plain(value):
    """A tree as ordinary containers; a node as a dict of its arguments."""
    if isinstance(value, Node):
        return {name: plain(item) for name, item in value.args.items()}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value).__mro__[-2]([plain(item) for item in value]) if isinstance(value, Tree) else value
    return value


def random_value(rng, depth):
    kind = rng.randrange(7) if depth else rng.randrange(3)
    if kind < 3:
        return [rng.randrange(100), rng.random(), str(rng.randrange(100))][kind]
    if kind == 3:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 4:
        return {name: random_value(rng, depth - 1) for name in rng.sample(["x", "y", "z w"], rng.randrange(1, 3))}
    if kind == 5:
        return tuple(random_value(rng, depth - 1) for _ in range(rng.randrange(1, 3)))
    return B(random_value(rng, depth - 1), items=[random_value(rng, depth - 1)])


def parts(tree):
    found = []
    tree.traverse(lambda path, value, parent: found.append(value) if isinstance(value, Tree) else None)
    return found


def one_edit(rng, root):
    """A random change; returns the tree parts that must hear of it, or None if nothing changed."""
    holders = [part for part in parts(root) if not isinstance(part, Tuple)]
    target = rng.choice(holders)
    fresh = random_value(rng, 2)
    fresh = fresh if isinstance(fresh, Tree) else [fresh, next(COUNTER)]  # equal to nothing there: a change
    ancestors = []
    tree = target
    while tree is not None:
        ancestors.append(tree)
        tree = tree.parent
    model = plain(target)
    if isinstance(target, List):
        move = rng.randrange(5)
        position = rng.randrange(len(target) + 1)
        if move == 0 or not target:
            target.insert(position, fresh)
            model.insert(position, plain(as_tree(fresh)))
        elif move == 1:
            position = rng.randrange(len(target))
            del target[position]
            del model[position]
        elif move == 2:
            root.rebind({target.path + f"[{position}]": Insert(fresh)})
            model.insert(position, plain(as_tree(fresh)))
        elif move == 3:
            position = rng.randrange(len(target))
            target[position] = fresh
            model[position] = plain(as_tree(fresh))
        else:
            target.append(fresh)
            model.append(plain(as_tree(fresh)))
    elif isinstance(target, Dict):
        key = rng.choice([*target, "new"])
        if rng.random() < 0.3 and key in target and len(target) > 1:
            del target[key]
            del model[key]
        else:
            target[key] = fresh
            model[key] = plain(as_tree(fresh))
    else:
        key = rng.choice(["a", "b"])
        target.rebind({key: fresh})
        model[key] = plain(as_tree(fresh))
    assert plain(target) == model
    return ancestors


COUNTER = iter(range(10**9))


def as_tree(value):
    return List([value])[0] if isinstance(value, Tree) else B(value).a


def listen(root):
    """What the parts of a tree hear from now on."""
    heard = []
    for part in parts(root):
        if not isinstance(part, Tuple):
            part._callbacks = (lambda updates, part=part: heard.append((part, updates)),)
    return heard


def test_a_thousand_random_edits_keep_paths_parents_values_and_events_right():
    edits = 0
    for seed in range(25):
        rng = random.Random(seed)
        items = [random_value(rng, 2) for _ in range(3)]
        root = B(random_value(rng, 3), items=items, table={"k": random_value(rng, 2)})
        for _ in range(40):
            heard = listen(root)
            before, copied = digest(root), root.clone()
            expected = one_edit(rng, root)
            assert [id(part) for part, _ in heard] == [id(part) for part in expected if not isinstance(part, Tuple)]
            assert all(len(updates) == 1 for _, updates in heard)
            check_tree(root)
            check_tree(copied)
            assert digest(copied) == before != digest(root)
            edits += 1
    assert edits == 1000


def test_one_event_per_ancestor_for_many_changes_child_to_root():
    root = B(a=B(a=L(1), b=L(2)), b=L(3))
    heard = []
    for path in ("", "a", "a.a", "a.b", "b"):
        part = root.get(path) if path else root
        part.on_change(lambda updates, path=path: heard.append((path, {k: (c.old, c.new) for k, c in updates.items()})))
    root.rebind({"a.a.width": 10, "a.b.width": 20, "a.a.rate": 0.1})
    assert heard == [
        ("a.a", {"width": (1, 10), "rate": (0.5, 0.1)}),
        ("a.b", {"width": (2, 20)}),
        ("a", {"a.width": (1, 10), "a.rate": (0.5, 0.1), "b.width": (2, 20)}),
        ("", {"a.a.width": (1, 10), "a.a.rate": (0.5, 0.1), "a.b.width": (2, 20)}),
    ]
    heard.clear()
    root.rebind({"b.width": 3})
    assert heard == [], "an equal value is no change"


def test_a_failing_rebind_changes_nothing_and_tells_nobody():
    root = B(a=L(1, sizes=[1, 2, 3]), items=[L(2), L(3)], table={"x": 1, "y": L(4)})
    before, heard = digest(root), []
    root.on_change(heard.append)
    good = {
        "a.width": 5,
        "a.sizes[1]": MISSING,
        "items[0]": Insert(L(9)),
        "items[1]": L(7),
        "items[2]": 8,
        "table.x": MISSING,
        "table.z": 3,
        "b": L(1),
    }
    for bad in ({"a.width": "wide"}, {"a.sizes[9]": MISSING}, {"nothing": 1}, {"items[7]": Insert(1)}):
        with pytest.raises(SymbolicError):
            root.rebind(good | bad)
        assert digest(root) == before and heard == [] and list(root.table) == ["x", "y"]
        check_tree(root)
    root.rebind(good)
    assert digest(root) != before and len(heard) == 1
    assert plain(root.get("a.sizes")) == [1, 3]
    check_tree(root)


def test_positions_mean_the_list_before_the_rebind():
    root = B(items=list("abcd"))
    root.rebind({"items[0]": MISSING, "items[1]": "B", "items[2]": Insert("x"), "items[3]": MISSING})
    assert root.get("items") == ["B", "x", "c"]
    root.rebind({"items[3]": "d", "items[4]": "e"})
    assert root.get("items") == ["B", "x", "c", "d", "e"]


def test_rebind_by_function_does_not_enter_what_it_replaces():
    seen = []

    def double(path, value, parent):
        seen.append(path)
        if isinstance(value, Node) and value.target is Layer:
            return L(value.width * 2)
        return value

    root = B(a=L(1), items=[L(2), 3])
    root.rebind(double)
    assert root == B(a=L(2), items=[L(4), 3])
    assert seen == ["a", "b", "items", "items[0]", "items[1]", "table"]


def test_rebinding_an_item_of_a_tuple_puts_a_new_tuple_there():
    root = B(a=(1, L(2), (3, 4)))
    root.rebind({"a[2][0]": 30, "a[1].width": 20})
    assert root.a == (1, L(20), (30, 4)) and isinstance(root.a, tuple)
    check_tree(root)


def test_lists_and_dicts_in_a_tree_behave_like_their_kind():
    root = B(items=[3, 1, 2], table={"x": 1})
    items, table, heard = root.get("items"), root.table, []
    root.on_change(lambda updates: heard.append(sorted(updates)))
    items.sort()
    items.reverse()
    items += [7, 8]
    items[1:3] = [5]
    assert items.pop() == 8 and items == [3, 5, 7] and items.index(5) == 1
    items.remove(5)
    items.extend([1, 1])
    items *= 2
    assert items == [3, 7, 1, 1, 3, 7, 1, 1]
    del items[1:]
    items.clear()
    assert items == [] and not items
    table.update(y=2, z=3)
    assert table.pop("y") == 2 and table.pop("q", 5) == 5 and table.setdefault("w", 4) == 4
    assert table.popitem() == ("w", 4) and table == {"x": 1, "z": 3}
    table.clear()
    with pytest.raises(KeyError):
        del table["x"]
    assert len(heard) == 15 and heard[2] == ["items[3]", "items[4]"]
    assert build(root).items == [] and type(build(root).items) is list


def test_one_node_in_two_places_becomes_two():
    layer = L(1)
    root = B(a=layer, b=layer, items=[layer, layer])
    root.rebind({"a.width": 5})
    assert root == B(a=L(5), b=L(1), items=[L(1), L(1)]) and layer.parent is root
    check_tree(root)


def test_clone_copies_and_deepcopy_and_pickle_keep_the_value():
    root = B(a=L(1), items=[L(2), (3, {"x": L(4)})])
    root.seal()
    assert pickle.loads(pickle.dumps(root.a)).parent is None
    for copied in (root.clone(), copy.deepcopy(root), pickle.loads(pickle.dumps(root))):
        assert copied == root and hash(copied) == hash(root) and not copied.sealed
        check_tree(copied)
        copied.rebind({"items[1][1].x.width": 40})
        assert copied != root
    assert root.get("items[1][1].x.width") == 4


def test_a_sealed_tree_refuses_changes_anywhere_in_it():
    root = B(a=L(1), items=[1])
    root.seal()
    for change in (lambda: root.rebind(b=1), lambda: root.a.rebind(width=2), lambda: root.get("items").append(1)):
        with pytest.raises(SymbolicError, match="sealed"):
            change()
    with pytest.raises(SymbolicError, match="sealed"):
        root.get("items").reverse()
    root.seal(False).rebind({"a.width": 2})
    root.a.seal()
    root.rebind(b=5)
    with pytest.raises(SymbolicError, match="a is sealed"):
        root.rebind({"a.width": 3})


def test_trees_that_contain_themselves_are_refused():
    root = B(a=B())
    for value in (root, [root], {"x": (root,)}):
        with pytest.raises(SymbolicError, match="a.b.*itself"):
            root.rebind({"a.b": value})
    above = B(root)
    with pytest.raises(SymbolicError, match="a.a.b.*itself"):
        root.rebind({"a.b": above})
    above.rebind(a=None)
    endless = []
    endless.append(endless)
    with pytest.raises(SymbolicError, match=r"Box.a\[0\].*itself"):
        B(endless)
    root.rebind({"a.b": root.a})  # not a cycle: a part of a tree is copied
    assert root == B(a=B(b=B()))


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ({"layers": 1}, "layers: Box has no argument 'layers'"),
        ({"a.widht": 1}, r"a\.widht: .*did you mean width"),
        ({"a.width": 2.5}, r"a\.width: expected int, got 2.5 \(float\)"),
        ({"a.width": True}, r"a\.width: expected int, got True \(bool\)"),
        ({"a.width": MISSING}, r"a\.width: Layer requires"),
        ({"a.sizes[0]": "x"}, r"a\.sizes\[0\]: expected int"),
        ({"a.width.x": 1}, r"a\.width"),
        ({"items[5]": 1}, r"items\[5\]: no item 5 in a list of 2"),
        ({"table.q.r": 1}, r"table\.q: no key 'q'"),
        ({"": 1}, "empty path"),
        ({"a..b": 1}, "is not a path"),
        ({"[x]": 1}, "is not a path"),
        ({3: 1}, "a path is a string"),
    ],
)
def test_bad_rebinds_say_where(updates, message):
    root = B(a=L(1, sizes=[1]), items=[L(2), 3], table={"x": 1})
    with pytest.raises(SymbolicError, match=message):
        root.rebind(updates)


def test_types_hold_for_changes_deep_in_lists_and_candidates():
    root = B(items=[L(1, sizes=[1, 2])])
    with pytest.raises(SymbolicError, match=r"items\[0\]\.sizes\[2\]: expected int, got 'x'"):
        root.get("items[0].sizes").append("x")
    root.rebind({"items[0].width": oneof([1, 2])})
    with pytest.raises(SymbolicError, match=r"items\[0\]\.width\.candidates\[1\]: expected int, got 'x'"):
        root.rebind({"items[0].width.candidates[1]": "x"})
    with pytest.raises(SymbolicError, match=r"items\[0\]\.width\.candidates: oneof expects"):
        root.rebind({"items[0].width.candidates": []})
    root.get("items[0].sizes").append(3)
    assert root.get("items[0].sizes") == [1, 2, 3]


def is_layer(value):
    return isinstance(value, Node) and value.target is Layer


def test_query_and_traverse():
    from flambeau.symbolic import Action

    root = B(a=L(1), items=[L(2), {"x": L(3)}])
    assert root.query(r".*width$") == {"a.width": 1, "items[0].width": 2, "items[1].x.width": 3}
    assert list(root.query(where=is_layer)) == ["a", "items[0]", "items[1].x"]
    order = []
    done = root.traverse(lambda p, v, parent: order.append(p), lambda p, v, parent: order.append("/" + p))
    assert done and order[:4] == ["", "a", "a.width", "/a.width"] and order[-1] == "/"
    order.clear()
    root.traverse(lambda p, v, parent: order.append(p) or (Action.CONTINUE if p == "items" else Action.ENTER))
    assert order == ["", "a", "a.width", "a.rate", "a.sizes", "b", "items", "table"]
    order.clear()
    assert not root.traverse(lambda p, v, parent: order.append(p) or (Action.STOP if p == "a.width" else None))
    assert order == ["", "a", "a.width"]
