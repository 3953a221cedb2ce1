# SPDX-License-Identifier: Apache-2.0
"""Small functions of ``paceline.utils`` that need one process only."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest

import paceline
from paceline import utils
from paceline.utils import (
    clear_environment,
    get_int_from_env,
    parse_choice_from_env,
    parse_flag_from_env,
    patch_environment,
    purge_accelerate_environment,
    set_seed,
    synchronize_rng_state,
)


def test_patch_environment_puts_back_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRST", "a")
    monkeypatch.delenv("SECOND", raising=False)
    with patch_environment(first=1, SECOND="b"):
        assert (os.environ["FIRST"], os.environ["SECOND"]) == ("1", "b")
    with pytest.raises(KeyError), patch_environment(first=1, SECOND="b"):
        raise KeyError
    assert os.environ["FIRST"] == "a"
    assert "SECOND" not in os.environ


def test_clear_environment_puts_back_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRST", "a")
    before = dict(os.environ)
    with clear_environment():
        assert "FIRST" not in os.environ
        os.environ["NEW"] = "1"
    assert dict(os.environ) == before


def test_purge_accelerate_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def change(self: object = None) -> str:
        "Its text."
        os.environ["ACCELERATE_USE_CPU"] = "false"
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"
        return os.environ["ACCELERATE_MIXED_PRECISION"]

    async def change_later() -> str:
        return change()

    class Base:
        method = change

        @staticmethod
        def untouched() -> int:
            return 3

    purge_accelerate_environment(Base)
    Derived = type("Derived", (Base,), {"other": change})
    wrapped = purge_accelerate_environment(change)
    assert (wrapped.__name__, wrapped.__doc__) == ("change", "Its text.")
    calls = (
        wrapped,
        lambda: asyncio.run(purge_accelerate_environment(change_later)()),
        lambda: Base().method(),
        lambda: Derived().other(),
    )
    for call in calls:
        assert call() == "bf16"
        assert os.environ["ACCELERATE_USE_CPU"] == "true"
        assert "ACCELERATE_MIXED_PRECISION" not in os.environ
    assert Base.untouched() == 3


def test_words_and_numbers_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAG", "On")
    monkeypatch.setenv("NUMBER", "7")
    monkeypatch.delenv("ABSENT", raising=False)
    assert parse_flag_from_env("FLAG") is True
    assert parse_flag_from_env("ABSENT", default=True) is True
    assert parse_choice_from_env("FLAG") == "On"
    assert parse_choice_from_env("ABSENT") == "no"
    assert get_int_from_env(["ABSENT", "NUMBER"], 1) == 7
    assert get_int_from_env(["ABSENT"], 1) == 1
    assert (utils.str_to_bool("yes"), utils.str_to_bool("off", to_bool=True)) == (1, False)
    with pytest.raises(ValueError, match="got 'maybe', expected true or false"):
        utils.str_to_bool("maybe")


def test_small_functions() -> None:
    assert utils.convert_bytes(10) == "10 bytes"
    assert utils.convert_bytes(2**60) == "1024.0 PB"
    assert utils.convert_file_size_to_int("1KiB") == 1024
    assert utils.merge_dicts({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert utils.recursive_getattr(os, "path.sep") == os.sep
    assert utils.is_compiled_module(paceline.nn.Linear(1, 1)) is False
    assert utils.is_torch_tensor(paceline.ones(1)) is True
    assert utils.is_torch_tensor([1]) is False
    assert utils.ignorant_find_batch_size({"a": [paceline.ones(3, 2)]}) == 3
    assert utils.ignorant_find_batch_size("text") is None
    assert utils.release_memory(1, 2, 3) == [None] * 3
    assert utils.SAFE_WEIGHTS_PATTERN_NAME.format(suffix="-1") == "model-1.safetensors"
    assert utils.is_peft_model(object()) is False


def test_is_available_says_what_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    from paceline.utils import imports

    assert utils.is_pytest_available() is True
    assert utils.is_bf16_available() is utils.is_fp16_available(True) is True
    assert utils.is_deepspeed_available() is utils.is_habana_gaudi1() is False
    assert utils.is_cuda_available() is paceline.cuda.is_available()
    imports._installed.cache_clear()
    monkeypatch.setattr(imports, "find_spec", lambda name: None)
    assert utils.is_tensorboard_available() is False
    imports._installed.cache_clear()


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    utils.save({"w": paceline.ones(2)}, path)
    assert utils.load(path)["w"].tolist() == [1, 1]


def test_write_basic_config(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.yaml"
    assert utils.write_basic_config("BF16", path) == str(path)
    text = path.read_text()
    assert "mixed_precision: bf16" in text
    assert utils.write_basic_config("no", path) is False
    assert path.read_text() == text, "an existing file is left alone"
    with pytest.raises(ValueError, match="mixed_precision: got 'fp9', expected one of no, fp16"):
        utils.write_basic_config("fp9", tmp_path / "other")


def test_set_seed_seeds_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    numpy = pytest.importorskip("numpy")

    def draw() -> list[float]:
        return [random.random(), numpy.random.rand(), paceline.rand(1).item()]

    set_seed(5)
    first = draw()
    set_seed(5)
    assert draw() == first
    set_seed(6)
    assert draw() != first
    asked = []
    fake = type(sys)("torch")
    fake.manual_seed = lambda seed: asked.append(seed)  # type: ignore[attr-defined]
    fake.use_deterministic_algorithms = asked.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", fake)
    set_seed(5, deterministic=True)
    assert asked == [5, True]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("generator", "'generator' needs a generator: got None"),
        ("cuda", "'cuda' needs a CUDA device"),
        ("dice", "dice"),
    ],
)
def test_a_random_state_that_cannot_be_synchronised(kind: str, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        synchronize_rng_state(kind)
