"""Hostile YAML ends in a YAMLError, before it takes time or memory."""

from __future__ import annotations

import time

import pytest
import yaml

from ppfcos.yaml_files import MAX_BYTES, YAMLLimitError, load_yaml

FAN = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGE_FAN = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 60))

TOO_LARGE = {
    "a fan of aliases": FAN,
    "a fan of merge keys": MERGE_FAN,
    "a chain of aliases": CHAIN,
    "a sequence in itself": "&a [*a]",
    "a mapping in itself": "a: &a {b: *a}",
    "a key that is its mapping": "&a {*a : 1}",
    "a mapping merged into itself": "a: &a\n  <<: *a",
    "brackets": "[" * 100_000,
    "braces": "{a: " * 100_000,
    "dashes": "- " * 100_000,
    "question marks": "? " * 100_000,
    "indentation": "\n".join(" " * i + "a:" for i in range(1000)),
    "nodes": "[" + ",".join("1" * 100_001) + "]",
    "bytes": "#" * (MAX_BYTES + 1),
    "decimal digits": "9" * 5000,
    "hexadecimal digits": "0x" + "f" * 5000,
    "sexagesimal digits": "1" + ":10" * 5000,
    "sexagesimal float": "1" + ":10" * 5000 + ".5",
    "65 bits": str(2**64),
    "keys of one hash": "\n".join(f"{key * (2**61 - 1)}: 1" for key in range(1, 2000)),
    "NUL": '"a\\0b"',
    "a lone surrogate": '"\\ud800"',
}
INVALID = [
    "!!bool x", "!!int x", "!!int ''", "!!float x", "!!float ''", "!!timestamp x", "2001-99-99",
    "2001-01-01 01:00:00 +99:00", "!!binary x", "!!binary \u00e9", "!!set x", "!!omap x", "!!seq x",
    "!!map x", "!!int [1]", "? [a]\n: b", "a\0b", "a\ud800",
    '"\\UFFFFFFFF"', '"\\U00110000"', b"\xc3(", b"\xff\xfe\x00",
    "%YAML " + "9" * 5000 + ".1\n---\na", "*a", "a\n---\nb", "!!python/object/apply:os.system [ls]", "= : =",
]  # fmt: skip


@pytest.mark.parametrize("text", TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_would_take_time_or_memory_is_refused_at_once(text):
    start = time.process_time()
    with pytest.raises(YAMLLimitError):
        load_yaml(text)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("text", INVALID)
def test_an_invalid_value_is_a_yaml_error(text):
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)


def test_an_error_of_the_loaders_own_passes():
    class OwnError(Exception):
        pass

    class Loader(yaml.SafeLoader):
        pass

    def construct(loader: Loader, node: yaml.Node):
        raise OwnError

    Loader.add_constructor("!own", construct)
    with pytest.raises(OwnError):
        load_yaml("a: !own b", Loader)
    with pytest.raises(yaml.YAMLError):
        load_yaml("a: !own b")


def test_within_the_limits_it_loads_what_pyyaml_loads():
    text = """
        base: &base {x: 1, y: [1.5, .inf, true, null, "\\u00e9", 2001-01-01]}
        other: {<<: *base, y: *base}
        big: [-9223372036854775808, 18446744073709551615]
    """
    assert load_yaml(text) == load_yaml(text.encode("utf-16")) == yaml.safe_load(text)
    assert load_yaml("") is None
    depth = "[" * 50 + "1" + "]" * 50
    assert load_yaml(depth) == yaml.safe_load(depth)
    assert load_yaml("[[1, 2], 3]", max_nodes=5, max_depth=2) == [[1, 2], 3]
    for limits in ({"max_nodes": 4}, {"max_depth": 1}):
        with pytest.raises(YAMLLimitError):
            load_yaml("[[1, 2], 3]", **limits)
    names = [f"class {i}" for i in range(10_000)]
    assert load_yaml(yaml.safe_dump({"names": names})) == {"names": names}
