"""The variants file: what it declares, and the line and the key that its errors name."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from resnet50_server.cli.main import main
from resnet50_server.errors import UnusableSetting, WeightsError
from resnet50_server.rollout.split import Split
from resnet50_server.rollout.variants_file import (
    MAX_FILE_BYTES,
    MAX_VARIANTS,
    DeclaredVariants,
    declared_variants,
    parse_variants_file,
)
from resnet50_server.settings import Settings
from tests.support.administering import describe

PETS = """
default = "pets"

[[variant]]
name = "IMAGENET1K_V2"

[[variant]]
name = "pets"
directory = "pets"
digest = "0123456789ab"

[[variant]]
name = "untrained"
seed = 3
"""
SPLIT = """
[[split]]
variant = "DEFAULT"
candidate = "untrained"
canary_percent = 2.5
shadow_percent = 5
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    describe(tmp_path / "pets")
    return tmp_path


def parse(folder: Path, text: str) -> DeclaredVariants:
    return parse_variants_file(folder / "variants.toml", text.encode())


def test_file_declares_variants_default_and_splits(folder):
    found = parse(folder, PETS + SPLIT)
    assert [spec.argument for spec in found.specs] == [
        "IMAGENET1K_V2",
        f"pets={folder}/pets",
        "untrained=random:3",
    ]
    assert [spec.digest for spec in found.specs] == ["", "0123456789ab", ""]
    assert found.default == "pets"
    assert found.splits == (Split("IMAGENET1K_V2", "untrained", 2.5, 5.0),)
    assert found.revision == hashlib.sha256((PETS + SPLIT).encode()).hexdigest()


def test_first_variant_is_the_default_unless_one_is_named(folder):
    assert parse(folder, '[[variant]]\nname = "DEFAULT"').default == "IMAGENET1K_V2"


def test_enum_names_and_absolute_directories_are_read(folder):
    text = (
        f'[[variant]]\nname = "ResNet50_Weights.IMAGENET1K_V1"\n[[variant]]\nname = "p"\n'
        f'directory = "{folder}/pets"'
    )
    found = parse(folder / "elsewhere", text)
    assert [spec.argument for spec in found.specs] == ["IMAGENET1K_V1", f"p={folder}/pets"]


VARIANT = '[[variant]]\nname = "a"\nseed = 0\n'
TWO = VARIANT + '[[variant]]\nname = "b"\nseed = 1\n'


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("default = ", "is not TOML: Invalid value (at "),
        ('a = "\x00"', "is not TOML: "),
        ("a = " + 5000 * "[" + 5000 * "]", "is not TOML: "),
        ("", "variant: is missing; name at least one, below [[variant]]"),
        ("# nothing\n", "variant: is missing"),
        (VARIANT + "[[splits]]\n", "splits: is unknown; known are default, variant, split"),
        ('x = 1\ndefalt = "a"\n' + VARIANT, "line 1: x: is unknown; known are default, "),
        ("variant = 1\n", "line 1: variant: entries begin with [[variant]], in double brackets"),
        ("[variant]\nname = 'a'\n", "variant: entries begin with [[variant]], in double"),
        ("[[variant]]\nseed = 0\n", "line 1: variant 1: name: is missing"),
        (VARIANT + "[[variant]]\n", "line 4: variant 2: name: is missing"),
        (
            VARIANT + "dir = 'x'\n",
            "line 4: variant 1: dir: is unknown; known are name, dir",
        ),
        ("[[variant]]\nname = 1\n", "line 2: variant 1: name: Input should be a valid string"),
        (
            "[[variant]]\nname = 'a b'\n",
            "line 2: variant 1: name: must have 1 to 64 letters, digits, '.', '_' and '-'",
        ),
        ("[[variant]]\nname = '../a'\nseed = 0\n", "line 2: variant 1: name: must have 1 to 64"),
        (
            "[[variant]]\nname = 'mine'\n",
            "line 2: variant 1: name: mine is not one of torchvision's (IMAGENET1K_V1,",
        ),
        (
            "[[variant]]\nname = 'DEFAULT'\nseed = 1\n",
            "line 2: variant 1: name: DEFAULT is torchvision's name; choose another one",
        ),
        (
            "[[variant]]\nname = 'a'\nseed = -1\n",
            "line 3: variant 1: seed: Input should be gr",
        ),
        ("[[variant]]\nname = 'a'\nseed = '1'\n", "line 3: variant 1: seed: Input should be a val"),
        (VARIANT + "directory = 'x'\n", "line 3: variant 1: seed: is set beside directory; remove"),
        (VARIANT + "digest = 'ABC'\n", "line 4: variant 1: digest: must be the first 12 to 64 hex"),
        (VARIANT * 2, "line 5: variant 2: name: a is the name of an earlier variant"),
        (
            "[[variant]]\nname = 'DEFAULT'\n[[variant]]\nname = 'IMAGENET1K_V2'\n",
            "line 4: variant 2: name: IMAGENET1K_V2 is the name of an earlier variant",
        ),
        ("default = 'z'\n" + VARIANT, "line 1: default: no variant 'z' in this file; there are: a"),
        ("default = 1\n" + VARIANT, "line 1: default: must be the name of a variant, in quot"),
        (
            TWO + "[[split]]\nvariant = 'a'\ncandidate = 'c'\n",
            "line 9: split 1: candidate: no variant 'c' in this file; there are: a, b",
        ),
        (
            TWO + "[[split]]\nvariant = 'a'\ncandidate = 'a'\ncanary_percent = 1\n",
            "line 9: split 1: candidate: is a, as the variant; name another one",
        ),
        (
            TWO + "[[split]]\nvariant = 'a'\ncandidate = 'b'\ncanary_percent = 101\n",
            "line 10: split 1: canary_percent: is 101, must be 0 to 100",
        ),
        (
            TWO + "[[split]]\nvariant = 'a'\ncandidate = 'b'\ncanary_percent = '1'\n",
            "line 10: split 1: canary_percent: Input should be a valid number",
        ),
        (
            TWO + "[[split]]\nvariant = 'a'\ncandidate = 'b'\n",
            "line 7: split 1: shadow_percent: is 0, as canary_percent is: nothing would",
        ),
        (
            TWO + "[[split]]\nvariant = 'a'\ncandidate = 'b'\nshadow_percent = 1\n" * 2,
            "line 12: split 2: variant: a has a split above already",
        ),
        ("variant = [{name = 'a'}]\n", "variant 1: name: a is not one of torchvision's"),
        (
            "".join(f"[[variant]]\nname = 'v{n}'\nseed = 0\n" for n in range(MAX_VARIANTS + 1)),
            f"line {3 * MAX_VARIANTS + 1}: variant {MAX_VARIANTS + 1}: is one too many; 64 at most",
        ),
    ],
)
def test_wrong_file_names_line_and_key(folder, text, error):
    with pytest.raises(UnusableSetting) as failed:
        parse(folder, text)
    message = str(failed.value)
    assert message.startswith(f"variants_file: {folder}/variants.toml: {error}"), message
    assert "\n" not in message


def test_canary_without_the_same_categories_is_refused(folder):
    describe(folder / "few", ["only"])
    text = "".join(
        f'[[variant]]\nname = "{name}"\ndirectory = "{name}"\n' for name in ("pets", "few")
    )
    text += '[[split]]\nvariant = "pets"\ncandidate = "few"\n'
    with pytest.raises(UnusableSetting, match="line 10: split 1: canary_percent: few has other"):
        parse(folder, text + "canary_percent = 1\n")
    assert parse(folder, text + "shadow_percent = 1\n").splits


def test_missing_directory_is_named_with_its_line(folder):
    text = '[[variant]]\nname = "a"\ndirectory = "gone"\n'
    with pytest.raises(WeightsError) as failed:
        parse(folder, text)
    start = f"variants_file: {folder}/variants.toml: line 3: variant 1: directory: a={folder}/gone:"
    assert str(failed.value).startswith(f"{start} cannot read {folder}/gone/variant.json")


def settings(**values) -> Settings:
    return Settings(**values)


def test_settings_declare_variants_where_there_is_no_file():
    found = declared_variants(settings(variants=["a=random:0"], default_variant="a"))
    assert ([spec.name for spec in found.specs], found.default, found.revision) == (["a"], "a", "")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"#" * (MAX_FILE_BYTES + 1), "cannot be read: is longer than 1 MiB"),
        (b"\xff", "is not TOML: 'utf-8' codec can't decode"),
    ],
)
def test_file_that_cannot_be_read_is_refused(tmp_path, content, reason):
    path = tmp_path / "variants.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnusableSetting) as failed:
        declared_variants(settings(variants_file=path))
    assert str(failed.value).startswith(f"variants_file: {path}: {reason}")


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"variants": ["a=random:0"]}, "variants: is declared by variants_file; remove variants"),
        ({"default_variant": "a"}, "default_variant: is declared by variants_file; remove"),
        (
            {"variants_dir": "/x", "tokens_file": "/y", "watch_variants_s": 1.0},
            "watch_variants_s: variants_file declares the variants and is watched; remove one",
        ),
        ({"variants_file": None}, "variants: name at least one"),
    ],
)
def test_one_setting_declares_the_variants(more, error):
    with pytest.raises(ValueError, match=error):
        settings(**{"variants_file": "variants.toml"} | more)


def test_command_checks_a_file(folder, capsys):
    path = folder / "variants.toml"
    path.write_text(PETS + SPLIT)
    assert main(["variants", "check-file", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"revision {hashlib.sha256((PETS + SPLIT).encode()).hexdigest()}",
        "variant IMAGENET1K_V2",
        f"variant pets={folder}/pets (default)",
        "variant untrained=random:3",
        "split IMAGENET1K_V2 → untrained: canary 2.5%, shadow 5%",
    ]
    path.write_text("[[variant]]\n")
    assert main(["variants", "check-file", str(path)]) == 1
    assert capsys.readouterr().err == (
        f"resnet50-server: variants_file: {path}: line 1: variant 1: name: is missing\n"
    )
